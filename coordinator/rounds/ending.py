"""How a job ends, and what becomes of its open attempts."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import participation
from coordinator.rounds.phases import (
    Attempt,
    AttemptState,
    Closing,
    Course,
    Ended,
    Phase,
    RoundRecord,
    current_round,
)
from protos.errors import invariant

Step = tuple[Phase, list[c.Command]]

RESTORED: Final = "RESTORED"
JOB_ENDED: Final = "JOB_ENDED"

EXHAUSTED_NAMED_MAX: Final = 8
"""Hospitals whose limit the end of a job names; `feddp job show` has the others' figures."""


def never_again(course: Course, usable: set[str], absences: tuple[e.Absence, ...]) -> bool:
    """Whether spent budgets alone keep the job below quorum for good."""
    spent = {a.node for a in absences if a.reason == "BUDGET" and a.for_good} - usable
    others = {a.node for a in absences} - spent
    need = course.plan.min_participants
    return len(usable | others) < need <= len(usable | others | spent)


def end_job(
    course: Course,
    status: str,
    message: str,
    now_s: float,
    unfinished: RoundRecord | None = None,
) -> Step:
    """End the job; open attempts are posted whole, since what became of them is unknown."""
    closed, charges = close_open(unfinished, now_s, ended=True) if unfinished else (None, [])
    if status == "budget_exhausted" and course.done:
        return Closing(course, status, message, closed), [*charges, c.WriteAnswer(len(course.done))]
    return Ended(course, status, message, now_s, "", closed), [*charges, c.EndJob()]


def close_open(
    record: RoundRecord, now_s: float, *, full: bool = False, ended: bool = False
) -> tuple[RoundRecord, list[c.Command]]:
    """Close what is open: the outcome is unknown, so it is booked as released.

    Args:
        full: the round has as many updates as the job wants.
        ended: the job was cancelled or ended otherwise in the middle of the round.
    """
    asked: list[c.Command] = []
    for attempt in record.opened:
        reason, message = _closed_because(attempt, full=full, ended=ended)
        record = record.with_attempt(
            replace(
                attempt,
                state=AttemptState.LOST if attempt.silent else AttemptState.LATE,
                ended_at_s=now_s,
                reason=reason,
                message=message,
            )
        )
        asked.append(c.PostCharge(attempt.attempt_id, b""))
        asked.append(c.NotifyClosed(attempt.attempt_id, attempt.node, "post"))
    return record, asked


def _closed_because(attempt: Attempt, *, full: bool, ended: bool) -> tuple[str, str]:
    if attempt.silent:
        return "OFFLINE", "was not heard from when the round closed"
    if ended:
        return JOB_ENDED, "had not answered when the job ended"
    if full:
        return (
            participation.NOT_NEEDED,
            "had not answered when the round had as many updates as it wanted",
        )
    if attempt.overdue:
        return "GRACE", "took far longer than it had before, and the round had its quorum"
    return "DEADLINE", "had not answered when the round closed"


def cancel(phase: Phase, event: e.CancelRequested, now_s: float) -> Step:
    invariant(not isinstance(phase, Ended), "an ended job cannot be cancelled")
    message = f"cancelled by {event.by}; what was spent stays booked"
    return end_job(phase.course, "cancelled", message, now_s, current_round(phase))


def fail(phase: Phase, event: e.StepFailed, now_s: float) -> Step:
    return end_job(phase.course, "failed", event.message, now_s, current_round(phase))


def restored(phase: Phase, event: e.CoordinatorRestored, now_s: float) -> Step:
    """Fail the job; whoever looks resumes it.

    Open attempts are closed here and stay reserved in the ledger: the node knows what it released
    after the backup was made, and hands it in, or signs that it never had the order.
    """
    record = current_round(phase)
    for attempt in record.opened if record is not None else ():
        closed = replace(
            attempt,
            state=AttemptState.LOST,
            ended_at_s=now_s,
            reason=RESTORED,
            message="was open when the backup was made; the node tells what became of it",
        )
        record = record.with_attempt(closed) if record is not None else None
    made = datetime.fromtimestamp(event.backup_made_at_s, UTC)
    message = (
        f"{RESTORED}: the coordinator was restored from a backup of {made:%Y-%m-%d %H:%M} UTC; "
        "`feddp job resume` goes on from the last model that was published before it"
    )
    return Ended(phase.course, "failed", message, now_s, "", record), [c.EndJob()]


def exhausted_message(absences: tuple[e.Absence, ...]) -> str:
    """Whose budgets end the job, and by which limit."""
    spent = sorted((a for a in absences if a.reason == "BUDGET"), key=lambda a: a.node)
    said = [f"{a.node}: {a.message.rstrip('.')}" for a in spent[:EXHAUSTED_NAMED_MAX]]
    if spent[EXHAUSTED_NAMED_MAX:]:
        said.append(f"and {len(spent) - EXHAUSTED_NAMED_MAX} more")
    whose = "of their accounts, of what was signed or of the job's own target"
    return f"too few hospitals can pay another round, {whose} ({'; '.join(said)})"
