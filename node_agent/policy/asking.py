"""Who may ask this node for work: keys that its steward has pinned, and what was signed with them.

The keys come to the steward outside the coordinator, whose authority cannot vouch for them, so that
a coordinator in the wrong hands can pass on what engineers signed and nothing else. Pure.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from certs.mandates import Mandate, Signed, config_digest, is_genuine, parse
from node_agent.policy.orders import Order
from node_agent.yaml_files.shapes import PUBLIC_KEY, name_like
from privacy.calibration import units_for
from privacy.filters import Filter
from protos.content import digest_of
from protos.errors import FeddpError, Malformed, NotAllowed

DAY_S: Final = 86_400

RELEASES_PER_ROUND_MAX: Final = 4
"""Releases of one signed job in one round, and as many again each time that it is resumed: what a
coordinator that keeps to its rules asks for where tries come to nothing."""


class EngineerPolicy(BaseModel):
    """A person who may ask for work.

    Attributes:
        public_key: raw Ed25519, 64 lower-case hexadecimal digits, as `feddp job key` prints it.
        projects: in which of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, name_like("anna")]
    public_key: Annotated[str, PUBLIC_KEY]
    projects: Annotated[list[Annotated[str, name_like("default")]], Field(min_length=1)]


class AskingPolicy(BaseModel):
    """`who_may_ask` in `policy.yaml`.

    Attributes:
        unsigned: whether orders that nobody signed are believed, as the coordinator sends them.
        days_max: how long before its end a signature is accepted; bounds what a stolen one is
            worth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    unsigned: Literal["refuse", "allow"] = "refuse"
    engineers: list[EngineerPolicy] = []
    days_max: float = Field(default=31.0, gt=0, le=366, allow_inf_nan=False)

    @model_validator(mode="after")
    def _each_once(self) -> "AskingPolicy":
        if len({one.name.casefold() for one in self.engineers}) != len(self.engineers):
            raise ValueError("engineers: a name is given twice")
        if len({one.public_key for one in self.engineers}) != len(self.engineers):
            raise ValueError("engineers: a key is given twice; each person has their own")
        return self

    def engineer(self, public_key: str) -> EngineerPolicy | None:
        """Whose key it is."""
        return next((one for one in self.engineers if one.public_key == public_key), None)


@dataclass(frozen=True, slots=True)
class JobSeen:
    """What this node has kept of a signed job.

    Attributes:
        public_key: of who signed it first.
        resumption, digest: of the newest mandate, and BLAKE3 of its bytes.
        ended: the coordinator has said that the job is over, and no newer mandate came since.
        releases: of the job at the order's round, posted.
    """

    public_key: str
    resumption: int
    digest: str
    ended: bool
    releases: int = 0


def mandate_of(order: Order) -> Mandate | None:
    """What an engineer signed of an order's job, not yet checked; None if nobody did.

    Raises:
        Malformed: MANDATE_INVALID.
    """
    signed = order.signed()
    return None if signed is None else parse(signed.body)


def resumption_of(order: Order) -> int:
    """How often the order's job was resumed, as its mandate says; 0 where nobody signed one that
    can be read. Whether it is any good is for others to check."""
    try:
        mandate = mandate_of(order)
    except Malformed:
        return 0
    return mandate.resumption if mandate is not None else 0


def check_asked(
    policy: AskingPolicy, order: Order, node: str, now_s: float, seen: JobSeen | None
) -> None:
    """Refuse an order that nobody who may ask has asked for.

    Args:
        now_s: seconds since the epoch, by this machine's clock.
        seen: None for a job that is new here.

    Raises:
        NotAllowed: the reasons of docs/hospital-it.md, "What a node refuses".
        Malformed: MANDATE_INVALID.
    """
    signed = order.signed()
    if signed is None:
        if policy.unsigned == "allow":
            return
        raise NotAllowed(
            "ORDER_UNSIGNED",
            "The node's policy takes signed orders only, and nobody signed this job: make a key "
            "with `feddp job key new`, have the data steward pin it, and submit the job again.",
        )
    mandate = parse(signed.body)
    _check_signer(policy, mandate, signed)
    _check_time(policy, mandate, now_s)
    if node not in mandate.nodes:
        raise NotAllowed(
            "MANDATE_OTHER_NODES", f"Job {mandate.job_id} was signed for other nodes than {node}."
        )
    _check_work(mandate, order)
    if seen is not None:
        _check_history(mandate, signed, order, seen)


def check_caps(order: Order, filter_: Filter, job_units: int) -> None:
    """Refuse what passes the epsilon that was signed for the whole job.

    Args:
        job_units: of the job on the order's account, posted and pending, this order included.

    Raises:
        NotAllowed: MANDATE_EPSILON.
        Malformed: MANDATE_INVALID.
    """
    mandate = mandate_of(order)
    if mandate is None or order.release.mechanism in ("none", "no_data"):
        return
    try:
        most = units_for(filter_.kind, filter_.order, mandate.epsilon_max, filter_.delta)
    except FeddpError:
        most = 0  # the account's filter starts above what was signed
    if job_units > most:
        raise NotAllowed(
            "MANDATE_EPSILON",
            f"Job {mandate.job_id} was signed for epsilon {mandate.epsilon_max:g} in all, and this "
            "order would pass it.",
        )


def _check_signer(policy: AskingPolicy, mandate: Mandate, signed: Signed) -> None:
    engineer = policy.engineer(mandate.public_key)
    if engineer is None:
        raise NotAllowed(
            "ENGINEER_UNKNOWN",
            f"The node's policy does not pin the key {mandate.public_key[:16]}…, which signed this "
            "job; its data steward can.",
        )
    if not is_genuine(mandate, signed):
        raise NotAllowed(
            "MANDATE_FORGED",
            f"The signature under this job is not {engineer.name}'s: what was signed has been "
            "changed on its way.",
        )
    if mandate.project not in engineer.projects:
        raise NotAllowed(
            "ENGINEER_PROJECT",
            f"The node's policy does not let {engineer.name} ask for project {mandate.project}; "
            "its data steward can.",
        )


def _check_time(policy: AskingPolicy, mandate: Mandate, now_s: float) -> None:
    if now_s >= mandate.expires_at_s:
        raise NotAllowed(
            "MANDATE_EXPIRED",
            f"What was signed of job {mandate.job_id} has ended by this node's clock; cancel it, "
            "and submit it again.",
        )
    if mandate.expires_at_s - now_s > policy.days_max * DAY_S:
        raise NotAllowed(
            "MANDATE_TOO_LONG",
            f"Job {mandate.job_id} was signed for longer than the node's policy accepts, which is "
            f"{policy.days_max:g} days; submit it with a shorter --valid.",
        )


def _check_work(mandate: Mandate, order: Order) -> None:
    """Whether the order is the work that was signed."""
    different = (
        ("JOB", "another job", order.job_id != mandate.job_id),
        ("PROJECT", "another project", order.project != mandate.project),
        ("DATA_SET", "another data set", order.data_set != mandate.data_set),
        (
            "TASK",
            "another task",
            (order.task, order.task_hash) != (mandate.task, mandate.task_hash),
        ),
        (
            "CONFIG",
            "another task_config",
            _config_digest(order) != mandate.task_config_digest,
        ),
        ("MECHANISM", "another kind of noise", _mechanism(order) != mandate.mechanism),
        ("TERMS", "other bounds or less noise", not _within_terms(mandate, order)),
        (
            "MODEL",
            "another model to begin with",
            order.round == 1 and order.base_model_digest != mandate.initial_model,
        ),
    )
    for name, what, is_different in different:
        if is_different:
            raise NotAllowed(
                f"MANDATE_OTHER_{name}",
                f"The order asks for {what} than was signed for job {mandate.job_id}.",
            )
    if order.round > mandate.rounds_max:
        raise NotAllowed(
            "MANDATE_ROUNDS",
            f"Job {mandate.job_id} was signed for {mandate.rounds_max} rounds, and the order is of "
            f"round {order.round}.",
        )


def _config_digest(order: Order) -> str:
    try:
        return config_digest(order.task_config())
    except ValueError:
        return ""  # a number that is not finite; nobody can have signed it


def _mechanism(order: Order) -> str:
    mechanism = order.release.mechanism
    return mechanism if mechanism in ("none", "no_data") else "dp"


def _within_terms(mandate: Mandate, order: Order) -> bool:
    """Whether what the job file fixed is what the order says."""
    noise = order.release.noise_multiplier
    enough = mandate.noise_multiplier is None or (
        noise is not None and noise >= mandate.noise_multiplier
    )
    stated = (
        (mandate.max_grad_norm, order.max_grad_norm),
        (mandate.proximal_mu, order.proximal_mu),
        (mandate.delta, order.delta),
    )
    return enough and all(signed in (None, ordered) for signed, ordered in stated)


def _check_history(mandate: Mandate, signed: Signed, order: Order, seen: JobSeen) -> None:
    """Whether it is newer than what this node has seen of the job."""
    if mandate.public_key != seen.public_key:
        raise NotAllowed(
            "MANDATE_OTHER_ENGINEER",
            f"Job {mandate.job_id} was signed by somebody else before; whoever wants to go on "
            "submits a job of their own.",
        )
    if mandate.resumption < seen.resumption:
        raise NotAllowed(
            "MANDATE_SUPERSEDED",
            f"Job {mandate.job_id} has been signed anew since; what was signed before is void.",
        )
    if mandate.resumption > seen.resumption:
        return
    if digest_of(signed.body) != seen.digest:
        raise NotAllowed(
            "MANDATE_REWRITTEN",
            f"This node knows another signed text for job {mandate.job_id}; a job is signed once, "
            "and anew only when it is resumed.",
        )
    if seen.ended:
        raise NotAllowed(
            "JOB_OVER",
            f"Job {mandate.job_id} has ended; what was signed of it is used up. `feddp job resume` "
            "signs it anew.",
        )
    if seen.releases >= RELEASES_PER_ROUND_MAX * (mandate.resumption + 1):
        raise NotAllowed(
            "ROUND_REPEATED",
            f"Job {mandate.job_id} has had {seen.releases} releases of round {order.round} from "
            "this node; the next one must be of a later round.",
        )
