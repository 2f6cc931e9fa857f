"""What a data steward declares in the simulation, and may change."""

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import public_bytes_of
from node_agent.data.datasets import DataSetSpec
from node_agent.policy.asking import AskingPolicy
from node_agent.policy.policy import AccountPolicy, Allowance, Policy
from node_agent.policy.steward import Rules
from node_agent.tasks.registry import TaskInfo
from tests.stewards import vouched

TASK, TASK_HASH = "train", "1" * 64
NULL, NULL_HASH = "null", "2" * 64
TASKS = {
    TASK: TaskInfo(TASK, TASK_HASH, {"type": "object"}, True),
    NULL: TaskInfo(NULL, NULL_HASH, {"type": "object"}, False),
}
DELTA = 1e-5
PEOPLE = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    for number, name in enumerate(("anna", "bert"), start=1)
}
"""Who may raise a limit, at every hospital; the steward who vouches is another."""
_FOLDER = Path(__file__).parent


class _Present(type(_FOLDER)):  # type: ignore[misc]
    """A file that is where it is declared; nothing here opens it."""

    def exists(self, **_: object) -> bool:
        return True


class Steward:
    """Two data sets on one account or two, with limits that some jobs meet."""

    def __init__(self, dice: Random) -> None:
        limit = dice.choice([1.0, 2.0, 4.0, 10.0, 10.0, 10.0, 10.0])
        self._per_job = dice.choice([2.0, 10.0, 10.0, 10.0])
        self._accounts = ("p", "p") if dice.random() < 0.5 else ("p", "q")
        self.limits = dict.fromkeys(self._accounts, limit)
        self.allows = True
        self._changes = 0
        self._rules: Rules | None = None

    def rules(self) -> Rules:
        """The rules in force."""
        if self._rules is None:
            self._rules = self._make()
        return self._rules

    def stamp(self) -> tuple[object, ...]:
        """Differs from an earlier one when something was changed since."""
        return (self._changes,)

    def forbid(self) -> None:
        """Withdraw every task."""
        self._change(allows=False)

    def allow(self) -> None:
        """Allow them again."""
        self._change(allows=True)

    def lower(self) -> None:
        """Lower every limit for life."""
        self.limits = {name: max(1.0, limit / 4) for name, limit in self.limits.items()}
        self._change(allows=self.allows)

    def write_limit(self, account: str, epsilon_limit: float) -> None:
        """Write a number into the policy; above the limit in force it alone changes nothing."""
        self.limits[account] = epsilon_limit
        self._change(allows=self.allows)

    def _change(self, allows: bool) -> None:
        self.allows, self._rules = allows, None
        self._changes += 1

    def _make(self) -> Rules:
        accounts = [
            AccountPolicy(
                name=name,
                epsilon_limit=limit,
                delta=DELTA,
                epsilon_per_job_max=min(limit, self._per_job),
                noise_multiplier_min=0.5,
            )
            for name, limit in self.limits.items()
        ]
        tasks = [f"{TASK}@{TASK_HASH}", f"{NULL}@{NULL_HASH}"] if self.allows else []
        data_sets = tuple(
            DataSetSpec.model_construct(
                name=name,
                source=_Present(_FOLDER / f"{name}.csv"),
                patient="patient",
                label="label",
                declared_n=100,
                version=1,
                account=account,
                columns={"age": "number"},
            )
            for name, account in zip(("d", "e"), self._accounts, strict=True)
        )
        allowed = [Allowance(data_set=one.name, tasks=tasks) for one in data_sets]
        policy = Policy(
            accounts=accounts,
            allow=allowed,
            outcome_tick_s=5.0,
            who_may_ask=AskingPolicy(unsigned="allow"),
            **_people(tuple(self._accounts)),
        )
        return Rules(policy, data_sets)


@cache
def _people(accounts: tuple[str, ...]) -> dict[str, Any]:
    """The stewards, and what one of them says of the patients of several accounts."""
    stewards = [
        {"name": name, "public_key": public_bytes_of(key).hex()} for name, key in PEOPLE.items()
    ]
    if len(set(accounts)) == 1:
        return {"stewards": stewards}
    said = vouched({accounts[0]: ["d"], accounts[1]: ["e"]})
    return {**said, "stewards": [*said["stewards"], *stewards]}
