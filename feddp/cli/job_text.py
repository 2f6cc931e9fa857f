"""A job in words: facts, table rows, and what changed since it was last looked at."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from feddp.cli import guarantees
from feddp.cli.output import counted, epsilon, moment
from protos.feddp.v1.jobs_pb2 import Job, JobNode, Round, Waiting

if TYPE_CHECKING:
    from feddp.evaluation import Evaluation, Figure

RUNNING_EPSILON = "RUNNING EPSILON"
"""A running figure is labelled as one wherever it is shown; see `guarantees` for what is none."""


def job_facts(job: Job) -> list[tuple[str, str]]:
    """Names and values for `job show`."""
    found = [
        ("job", job.job_id),
        ("name", job.name),
        ("status", job.status),
        ("phase", job.phase),
        ("rounds", f"{job.rounds_done} of {job.rounds_planned} done"),
        ("task", job.task),
        ("data set", job.data_set),
        ("submitted", f"{moment(job.created_at)} by {job.submitted_by or 'unknown'}"),
        ("target", target_text(job)),
        ("signed", signed_text(job)),
    ]
    if job.ended_at:
        found.append(("ended", moment(job.ended_at)))
    if job.message:
        found.append(("message", job.message))
    if job.model_digest:
        found.append(("model", job.model_digest))
    if job.priority:
        found.append(("priority", str(job.priority)))
    found += [("waiting for", waiting_text(waiting)) for waiting in job.waiting]
    found += [("warning", warning) for warning in job.warnings]
    if drift := drift_text(job):
        found.append(("drift", drift))
    return found


def evaluation_facts(found: "Evaluation") -> list[tuple[str, str]]:
    """Names and values of what an evaluation job found."""
    facts = [
        ("evaluates", found.evaluates),
        (
            "declared n",
            f"{counted(found.declared_n, 'patient')} of {counted(found.hospitals, 'hospital')}",
        ),
    ]
    return facts + [(name, figure_text(figure)) for name, figure in found.figures().items()]


def figure_text(figure: "Figure | None") -> str:
    """A figure with the noise's standard error."""
    if figure is None:
        return "hidden by the noise"
    return f"{figure.value:.3f} (standard error of the noise {figure.standard_error:.3f})"


def target_text(job: Job) -> str:
    """The job's own promise."""
    if not job.target_epsilon:
        return "none of its own; each account's limit holds"
    return f"epsilon {epsilon(job.target_epsilon)} at delta {job.delta:g} per data set"


def signed_text(job: Job) -> str:
    """Whose key the nodes look for."""
    if not job.signed_by:
        return "by nobody"
    return f"by the key {job.signed_by[:16]}…, until {moment(job.signed_until)}"


def node_rows(job: Job) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Headers and a row for each node."""
    headers = (
        "NODE",
        "CLASS",
        "STATE",
        "ROUNDS",
        RUNNING_EPSILON,
        *(["TARGET"] if job.target_epsilon else []),
        "LIMIT",
        "GUARANTEE",
        "DELTA",
    )
    states = node_states(job)
    rows: list[Sequence[str]] = [
        (
            node.name,
            node.node_class,
            states.get(node.name, ""),
            str(node.rounds_participated),
            epsilon(node.epsilon_spent) if node.HasField("epsilon_spent") else "no guarantee",
            *([epsilon(job.target_epsilon)] if job.target_epsilon else []),
            _limit(node, job),
            guarantees.of_node(node),
            f"{node.delta:g}",
        )
        for node in job.nodes
    ]
    return headers, rows


def _limit(node: JobNode, job: Job) -> str:
    """Of its account, now."""
    if node.account_epsilon_limit:
        return epsilon(node.account_epsilon_limit)
    return guarantees.NOT_TOLD if job.target_epsilon else epsilon(node.epsilon_limit)


def node_states(job: Job) -> dict[str, str]:
    """What each node does in the round under way, or did in the last one."""
    states = {node.name: job.phase for node in job.nodes}
    if job.rounds:
        for part in job.rounds[-1].participation:
            if part.outcome == "open":
                continue
            states[part.node] = part.outcome + (f" ({part.reason})" if part.reason else "")
    for waiting in job.waiting:
        if waiting.node:
            states[waiting.node] = f"waited for ({waiting.reason})"
    return states


def waiting_text(waiting: Waiting) -> str:
    """For whom, and why."""
    whom = f"{waiting.node}: " if waiting.node else ""
    return f"{whom}{waiting.reason}" + (f": {waiting.message}" if waiting.message else "")


def drift_text(job: Job) -> str:
    """The last known movement of the global model beside what chance alone would make of it."""
    for found in reversed(job.rounds):
        if found.HasField("drift"):
            return _drift(found)
    return ""


def _drift(found: Round) -> str:
    noise = f", chance alone {found.drift_noise:.3g}" if found.HasField("drift_noise") else ""
    return f"{found.drift:.3g}{noise}"


class Changes:
    """Turns each sight of a job into the lines that say what is new."""

    def __init__(self) -> None:
        self._round = 0
        self._done: set[int] = set()
        self._waiting: tuple[str, ...] = ()
        self._warned: set[str] = set()
        self._status = ""
        self._guarantees: tuple[str, ...] = ()

    def of(self, job: Job) -> Iterator[str]:
        """Lines about what changed; none when nothing did."""
        for found in job.rounds:
            if found.ended_at and found.number not in self._done:
                self._done.add(found.number)
                yield _round_line(found, job)
                yield from self._beside(found, job)
        if job.round > self._round and job.phase != "ended":
            self._round = job.round
            yield f"round {job.round} of {job.rounds_planned} began"
        waiting = tuple(waiting_text(one) for one in job.waiting)
        if waiting != self._waiting:
            self._waiting = waiting
            yield f"waiting for {'; '.join(waiting)}" if waiting else "no longer waiting"
        for warning in job.warnings:
            # Said once for each hospital; the count in the sentence grows with each round.
            node = warning.partition(" ")[0]
            if node not in self._warned:
                self._warned.add(node)
                yield f"warning: {warning}"
        if job.status != self._status:
            self._status = job.status
            if job.phase == "ended":
                yield f"{job.status} after {counted(job.rounds_done, 'round')}" + (
                    f": {job.message}" if job.message else ""
                )

    def _beside(self, found: Round, job: Job) -> Iterator[str]:
        """Once, and when they have changed: the guarantees that a running epsilon is none of."""
        said = tuple(guarantees.lines(job)) if _running(found) else self._guarantees
        if said != self._guarantees:
            self._guarantees = said
            yield from said


def _running(found: Round) -> list[float]:
    """The job's running epsilon at each hospital whose update is in the round."""
    return [
        part.epsilon_after
        for part in found.participation
        if part.outcome == "update" and part.HasField("epsilon_after")
    ]


def _round_line(found: Round, job: Job) -> str:
    updates = [part for part in found.participation if part.outcome == "update"]
    others = [
        f"{part.node} {part.outcome}" + (f" ({part.reason})" if part.reason else "")
        for part in found.participation
        if part.outcome != "update"
    ]
    parts = [
        f"round {found.number} of {job.rounds_planned} done",
        f"{len(updates)} update{'' if len(updates) == 1 else 's'}",
    ]
    parts += others
    if running := _running(found):
        parts.append(f"running epsilon at most {epsilon(max(running))}")
    if found.HasField("drift"):
        parts.append(f"drift {_drift(found)}")
    return ", ".join(parts)
