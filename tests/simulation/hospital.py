"""What a data steward declares in the simulation, and may change."""

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from node_agent.asking import AskingPolicy
from node_agent.datasets import DataSetSpec
from node_agent.policy import AccountPolicy, Allowance, Policy
from node_agent.steward import Rules
from node_agent.tasks.registry import TaskInfo
from tests.stewards import vouched

TASK, TASK_HASH = "train", "1" * 64
NULL, NULL_HASH = "null", "2" * 64
TASKS = {
    TASK: TaskInfo(TASK, TASK_HASH, {"type": "object"}, True),
    NULL: TaskInfo(NULL, NULL_HASH, {"type": "object"}, False),
}
DELTA = 1e-5
_FOLDER = Path(__file__).parent


class _Present(type(_FOLDER)):  # type: ignore[misc]
    """A file that is where it is declared; nothing here opens it."""

    def exists(self, **_: object) -> bool:
        return True


class Steward:
    """Two data sets on one account or two, with limits that some jobs meet."""

    def __init__(self, dice: Random) -> None:
        self._limit = dice.choice([1.0, 2.0, 4.0, 10.0, 10.0, 10.0, 10.0])
        self._per_job = dice.choice([2.0, 10.0, 10.0, 10.0])
        self._accounts = ("p", "p") if dice.random() < 0.5 else ("p", "q")
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
        """Lower the limit for life."""
        self._limit = max(1.0, self._limit / 4)
        self._change(allows=self.allows)

    def _change(self, allows: bool) -> None:
        self.allows, self._rules = allows, None
        self._changes += 1

    def _make(self) -> Rules:
        accounts = [
            AccountPolicy(
                name=name,
                epsilon_limit=self._limit,
                delta=DELTA,
                epsilon_per_job_max=min(self._limit, self._per_job),
                noise_multiplier_min=0.5,
            )
            for name in dict.fromkeys(self._accounts)
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
            **_vouched(self._accounts),
        )
        return Rules(policy, data_sets)


@cache
def _vouched(accounts: tuple[str, ...]) -> dict[str, Any]:
    return vouched({accounts[0]: ["d"], accounts[1]: ["e"]}) if len(set(accounts)) > 1 else {}
