"""The data steward's policy, as `policy.yaml` says it: accounts, people, and what is allowed.

Nothing here knows an order; `node_agent.policy.judgement` judges one by this.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node_agent.connection.bandwidth import TransferPolicy
from node_agent.folder.config import parse, read_yaml
from node_agent.ledger.vouching import is_vouched
from node_agent.policy.asking import AskingPolicy
from node_agent.policy.working import WorkPolicy
from node_agent.tasks.registry import Purpose
from node_agent.yaml_files.shapes import NAME_PATTERN, PUBLIC_KEY, name_like, shaped

RDP_ORDER_MIN: Final = 2

STEWARD_NAME: Final = rf"^{NAME_PATTERN}$"

AccountName = Annotated[str, name_like("patients")]
DataSetName = Annotated[str, name_like("heart")]
PersonName = Annotated[str, name_like("anna")]
Task = Annotated[
    str,
    shaped(
        rf"{NAME_PATTERN}@[0-9a-f]{{64}}",
        "NAME@HASH with all 64 digits, as `feddp agent status` lists the installed tasks",
        f"tabular-classifier@{'0123456789abcdef' * 4}",
    ),
]


ShareKind = Literal["purpose", "project"]
"""What all jobs have in common that a limit within an account is for."""

SharePurpose = Literal[Purpose, "queries"]
"""Nothing spends from the limit for queries: no task has that purpose. It is there so that a policy
can say it before the part of feddp that answers queries does."""

Limit = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AccountPolicy(_Model):
    """Limits of one privacy account.

    Attributes:
        epsilon_limit: the most that may ever be spent at `delta`.
        filter: auto: `privacy.filters.default_filter` by the largest declared_n and the limits.
        rdp_order: with "rdp" only.
        unaccounted: whether releases without noise are allowed; they void the guarantee for ever.
        epsilon_per_purpose, epsilon_per_project: the most for all such jobs together, within
            `epsilon_limit`; what is not named has no limit of its own.
    """

    name: AccountName
    epsilon_limit: float = Field(gt=0, le=1e4, allow_inf_nan=False, examples=[10.0])
    delta: float = Field(gt=0, le=0.5, allow_inf_nan=False, examples=[1.0e-5])
    filter: Literal["auto", "gdp", "rdp"] = "auto"
    rdp_order: int = Field(default=0, ge=0, le=256)
    epsilon_per_job_max: float = Field(gt=0, le=1e4, allow_inf_nan=False, examples=[2.0])
    noise_multiplier_min: float = Field(gt=0, le=1e6, allow_inf_nan=False, examples=[0.3])
    unaccounted: Literal["refuse", "allow"] = "refuse"
    epsilon_per_purpose: dict[SharePurpose, Limit] = {}
    epsilon_per_project: dict[Annotated[str, name_like("default")], Limit] = {}

    @model_validator(mode="after")
    def _order_with_rdp_only(self) -> "AccountPolicy":
        if self.filter == "rdp" and self.rdp_order < RDP_ORDER_MIN:
            raise ValueError(
                f"filter: rdp needs an order: give rdp_order from {RDP_ORDER_MIN}, a whole number"
            )
        if self.filter != "rdp" and self.rdp_order > 0:
            raise ValueError("rdp_order goes with filter: rdp, and only with it")
        return self

    def shares(self) -> list[tuple[ShareKind, str, float]]:
        """(kind, name, epsilon) of each limit within the account's."""
        return [
            *(("purpose", name, limit) for name, limit in self.epsilon_per_purpose.items()),
            *(("project", name, limit) for name, limit in self.epsilon_per_project.items()),
        ]


class Allowance(_Model):
    """Tasks, as NAME@HASH, that may run on one data set."""

    data_set: DataSetName
    tasks: list[Task]


class StewardPolicy(_Model):
    """A person who may ask for, or agree to, a higher limit; the key is `feddp agent limit key`'s.

    Attributes:
        public_key: raw Ed25519, 64 lower-case hexadecimal digits.
    """

    name: PersonName
    public_key: Annotated[str, PUBLIC_KEY]


class Policy(_Model):
    """`policy.yaml`; what it does not allow is refused.

    Attributes:
        stewards: who may raise an account's limit, two of them together.
        outcome_tick_s: outcomes leave at one multiple of this from the opening of the data, fixed
            beforehand; training that is not done by then is charged and lost, so leave it room.
        transfer: when and how fast models and updates move.
        share_failure_class: whether the coordinator is told of what kind a failure was that came
            after the data was opened. It may depend on records, and no budget covers it.
        who_may_ask: engineers whose signed orders are taken.
        work: when this node works, and with how much of its machine.
        withdrawn: data sets that nothing may be learned from any more, whatever is allowed.
        disjoint_patients: why no patient is in two accounts, in words; needed for more than one
            account, as is the signature of a steward over it, the accounts and their data sets.
        disjoint_data_sets: account -> the data sets that the steward has signed for it; what
            `datasets.yaml` declares on another account, or besides, is refused.
        disjoint_signed_by, disjoint_signature: whose, and the signature in hexadecimal, as
            `feddp agent vouch` prints them.
    """

    accounts: list[AccountPolicy] = []
    stewards: list[StewardPolicy] = []
    allow: list[Allowance] = []
    outcome_tick_s: float = Field(default=1.0, gt=0, le=3600, allow_inf_nan=False)
    transfer: TransferPolicy = TransferPolicy()
    share_failure_class: bool = False
    who_may_ask: AskingPolicy = AskingPolicy()
    work: WorkPolicy = WorkPolicy()
    withdrawn: list[DataSetName] = []
    disjoint_patients: Annotated[str, Field(max_length=500)] = ""
    disjoint_data_sets: dict[AccountName, list[str]] = {}
    disjoint_signed_by: str = ""
    disjoint_signature: Annotated[
        str,
        shaped(
            "([0-9a-f]{128})?",
            "128 of the digits 0-9 and a-f, in quotes, as `feddp agent vouch` prints them",
            "0123456789abcdef" * 8,
        ),
    ] = ""

    @model_validator(mode="after")
    def _each_once(self) -> "Policy":
        names = [account.name for account in self.accounts]
        if len(set(names)) != len(names):
            raise ValueError("accounts: a name is given twice")
        people = [one.name.casefold() for one in self.stewards]
        if len(set(people)) != len(people):
            raise ValueError("stewards: a name is given twice")
        if len({one.public_key for one in self.stewards}) != len(people):
            raise ValueError("stewards: a key is given twice; each person has their own")
        return self

    @model_validator(mode="after")
    def _no_patient_in_two(self) -> "Policy":
        names = [account.name for account in self.accounts]
        if len(names) < 2:
            return self
        if not self.disjoint_patients.strip():
            raise ValueError(
                "accounts: there are several, and a patient of two of them would spend both; use"
                " one account, or say in disjoint_patients why no patient is in two, and sign it"
                " with `feddp agent vouch`"
            )
        signer = self.steward(self.disjoint_signed_by)
        if signer is None or not self.disjoint_signature:
            raise ValueError(
                "disjoint_patients: no steward has signed it; one of those that stewards names"
                " does, with `feddp agent vouch`"
            )
        paid_by = self.disjoint_data_sets
        if set(paid_by) != set(names):
            raise ValueError(
                "disjoint_data_sets: it names each account with the data sets that are signed for"
                " it, no more and no fewer; `feddp agent vouch` signs anew and prints it (a"
                " signature over the accounts' names alone counts no more)"
            )
        listed = [name for data_sets in paid_by.values() for name in data_sets]
        if len(set(listed)) != len(listed):
            raise ValueError("disjoint_data_sets: a data set is given twice; one account pays")
        if not is_vouched(
            signer.public_key,
            self.disjoint_signature,
            paid_by,
            self.disjoint_patients,
            signer.name,
        ):
            raise ValueError(
                f"disjoint_signature: {signer.name} has signed other words, other accounts or other"
                " data sets; `feddp agent vouch` signs them anew"
            )
        return self

    def steward(self, name: str) -> StewardPolicy | None:
        """The steward of that name."""
        return next((one for one in self.stewards if one.name == name), None)

    def account(self, name: str) -> AccountPolicy | None:
        """The account of that name."""
        return next((account for account in self.accounts if account.name == name), None)

    def is_signed_for(self, data_set: str, account: str) -> bool:
        """Whether a data set may be declared on an account: it stands in what the steward has
        signed, or there is one account and nothing to sign."""
        return len(self.accounts) < 2 or data_set in self.disjoint_data_sets.get(account, ())

    def tasks_on(self, data_set: str) -> frozenset[str]:
        """NAME@HASH of every task that is allowed on a data set."""
        if data_set in self.withdrawn:
            return frozenset()
        return frozenset(
            task for rule in self.allow if rule.data_set == data_set for task in rule.tasks
        )


def load_policy(path: Path) -> Policy:
    """Read `policy.yaml`.

    Raises:
        Malformed: POLICY_INVALID; the message names the key.
    """
    content = read_yaml(path, "POLICY_INVALID")
    return parse(Policy, content, path, "POLICY_INVALID", tell_value=True)


def above_limit(account: AccountPolicy, epsilon_limit: float) -> str:
    """What to tell of limits within an account that are above its own; empty where none is.

    Args:
        epsilon_limit: of the account, in force. A policy that lowers it may leave the others, so
            that this is no fault.
    """
    names = [f"{kind} {name}" for kind, name, limit in account.shares() if limit > epsilon_limit]
    if account.epsilon_per_job_max > epsilon_limit:
        names.insert(0, "one job (epsilon_per_job_max)")
    if not names:
        return ""
    return (
        f"The limit for {', '.join(names)} is above the account's own, {epsilon_limit:g}, which is "
        "reached first."
    )
