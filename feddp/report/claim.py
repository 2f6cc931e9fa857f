"""What a job's report may say about privacy, and what it must not leave out."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from protos.feddp.v1.budgets_pb2 import BudgetAccount
from protos.feddp.v1.jobs_pb2 import Job

Kind = Literal["dp", "none", "no_data"]

_SPEC_BYTES_MAX = 64 << 10

PROTECTED = (
    "Protected is one patient's records at one hospital. Whether all of a patient's records were"
    " there or not (add or remove) changes the probability of anything that left the hospital by"
    " a factor of at most exp(epsilon), but for a chance of delta. This holds against everyone"
    " who sees what leaves the hospital: the coordinator, the other hospitals, and whoever gets"
    " the model. The guarantee is the highest lifetime limit that was ever in force for the"
    " hospital's account, at its delta; the hospital's own ledger enforces the limit of now. Where"
    " a limit was raised, delta holds for each limit by itself, and for all of them together it"
    " counts once more for each raise. A running epsilon sums up what has been released so far and"
    " is a figure to watch, not the guarantee."
)
FIGURES = (
    "Over all jobs so far. The guarantee is the highest limit that was ever in force, at delta: a"
    " lower limit admits less from then on and takes nothing back. Booked is what counts against"
    " the limit; efficiency is what the same releases would have come to, had all been fixed in"
    " advance, over that; the naive sum adds up each release's own epsilon, and of naive is what is"
    " booked over it."
)
UNPROTECTED = (
    "what the data shows about patients in general: a model may rightly predict a risk for people"
    " who were never in the data",
    "a group: the loss for several patients together grows with their number",
    "a patient with records in several hospitals: those hospitals' epsilons add up",
    "which hospitals took part, when, how long it took, and the sizes that they declared",
    "a hospital whose own machine or staff is compromised: raw data is protected there by the"
    " hospital alone",
)
NO_DP = (
    "There is no privacy guarantee. This job ran without differential privacy: updates were"
    " clipped but no noise was added, so what left a hospital may reveal individual patients to"
    " the coordinator, to the other hospitals and to whoever gets the model. Every account that"
    " released something this way is marked as without guarantee for ever, whatever is spent"
    " later."
)
NO_DATA = (
    "No patient data was read. The task makes up its updates, so there was nothing to protect and"
    " nothing was charged."
)


def kind_of(job: Job, spec: bytes) -> Kind:
    """How the job releases; by what was posted first, and by the job file where nothing was."""
    asked = _asked(spec)
    if "null" in (job.task, asked.get("task")):
        return "no_data"
    released = [node for node in job.nodes if node.rounds_participated]
    if any(not node.HasField("epsilon_spent") for node in released):
        return "none"
    privacy = asked.get("privacy")
    unaccounted = isinstance(privacy, Mapping) and privacy.get("mechanism") == "none"
    return "none" if unaccounted else "dp"


def paragraph(kind: Kind) -> str:
    """The claim, one paragraph."""
    return {"dp": PROTECTED, "none": NO_DP, "no_data": NO_DATA}[kind]


def alarm(accounts: Sequence[BudgetAccount] | None) -> str:
    """What stands above the claim when accounts have lost theirs; empty when none has."""
    lost = [account.account for account in accounts or () if not account.guarantee]
    if not lost:
        return ""
    return (
        f"No guarantee for {', '.join(lost)}: something was released from there without noise, in"
        " this job or another. The epsilons below count only what had noise."
    )


def caveats(kind: Kind, has_metrics: bool) -> tuple[str, ...]:
    """What is not protected, one clause each; empty where nothing is claimed."""
    if kind != "dp":
        return ()
    measured = (
        (
            "the held-out rows behind the test figures: those were computed once, at the end,"
            " outside this guarantee",
        )
        if has_metrics
        else ()
    )
    return (*UNPROTECTED, *measured)


def _asked(spec: bytes) -> Mapping[str, Any]:
    if len(spec) > _SPEC_BYTES_MAX:
        return {}
    try:
        value = yaml.safe_load(spec)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, Mapping) else {}
