"""A quote in words."""

from collections.abc import Sequence
from typing import Final

from feddp.cli import guarantees
from feddp.cli.failures import BUDGET, FAILED
from feddp.cli.output import at_most, counted, epsilon, noise
from protos.feddp.v1.jobs_pb2 import QuotedNode, QuoteJobResponse

NAMED_MAX: Final = 8
"""Accounts that a line names."""


def rows(found: QuoteJobResponse) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Headers and a row for each node."""
    starts = any(one.epsilon_start for one in found.nodes)
    headers = (
        "NODE",
        "EPSILON OF THE JOB",
        "BOOKED BEFORE",
        "AFTER",
        *(["STARTS AT"] if starts else []),
        "LIMIT",
        "GUARANTEE",
        "DELTA",
        "ROUNDS FIT",
        "TIGHTEST LIMIT",
        "NOISE",
    )
    return headers, [_row(one, starts) for one in found.nodes]


def _row(one: QuotedNode, starts: bool) -> Sequence[str]:
    start = [epsilon(one.epsilon_start)] if starts else []
    terms = ("", "", "")
    if one.epsilon_limit:
        terms = (epsilon(one.epsilon_limit), guarantees.of_quoted(one), f"{one.delta:g}")
    if one.reason:
        before = _figure(one, "epsilon_before")
        return (one.node, f"cannot: {one.reason}", before, "", *start, *terms, "", "", "")
    told = one.noise_multiplier if one.HasField("noise_multiplier") else None
    fit = str(one.rounds_fit) if one.HasField("rounds_fit") else "no bound"
    return (
        one.node,
        _figure(one, "epsilon_job"),
        _figure(one, "epsilon_before"),
        _figure(one, "epsilon_after"),
        *start,
        *terms,
        fit,
        f"{one.tightest}: {epsilon(one.tightest_epsilon)}" if one.tightest else "",
        noise(told, without="none"),
    )


def _figure(one: QuotedNode, name: str) -> str:
    return epsilon(getattr(one, name)) if one.HasField(name) else "no guarantee"  # type: ignore[arg-type]


def lines(found: QuoteJobResponse) -> list[str]:
    """What stands below the table."""
    able = [one for one in found.nodes if not one.reason]
    said = [f"{one.node}: {one.message}" for one in found.nodes if one.message]
    said += [_short(one, found.rounds_planned) for one in able if _falls_short(one, found)]
    said += [
        f"warning: {one.account} would have spent 80 % of its budget or more"
        for one in able
        if one.nearly_spent
    ]
    said += [
        f"warning: {one.account} would have spent 80 % or more of what its policy allows {share}"
        for one in able
        for share in one.shares_nearly_spent
    ]
    said += _under_way(able)
    said.append(
        f"{len(able)} of at least {counted(found.min_participants, 'hospital')} can take part; "
        f"{counted(found.rounds_planned, 'round')}"
    )
    if len(found.nodes) < found.min_participants:
        publish = f"{counted(len(found.nodes), 'hospital')} publish{'es' * (len(found.nodes) == 1)}"
        said.append(f"only {publish} this data set: the job would wait for more")
    elif len(able) < found.min_participants:
        said.append("the job cannot start now: too few hospitals can take part")
    elif found.rounds_possible < found.rounds_planned:
        said.append(
            f"the job would do {found.rounds_possible} of {counted(found.rounds_planned, 'round')}"
            f": then fewer than {counted(found.min_participants, 'hospital')} can pay. EPSILON OF "
            "THE JOB and AFTER "
            "are what is spent by then"
        )
    if able:
        down, up = max(o.download_bytes for o in able), max(o.upload_bytes for o in able)
        said.append(f"each moves at most {_size(down)} in and {_size(up)} out")
    said.append(_time(found))
    said.append(guarantees.GUARANTEE)
    said.append(
        "BOOKED BEFORE and AFTER are what the account's filter holds against LIMIT, with what is "
        "reserved now; EPSILON OF THE JOB is the running epsilon of this job alone."
    )
    if any(one.epsilon_start for one in found.nodes):
        said.append(
            "STARTS AT is the conversion cost of an rdp account, there from its first release on: "
            "it is in BOOKED BEFORE (once anything is spent) and in AFTER, and not in EPSILON OF "
            "THE JOB."
        )
    return said


def _under_way(able: Sequence[QuotedNode]) -> list[str]:
    """That jobs spend from the same accounts, in one line however many hospitals there are."""
    shared = [one.account for one in able if one.jobs_under_way]
    if not shared:
        return []
    most = max(one.jobs_under_way for one in able)
    jobs = "1 job that is" if most == 1 else f"up to {most} jobs that are"
    return [
        f"warning: {', '.join(shared[:NAMED_MAX])}{' and others' * (len(shared) > NAMED_MAX)}: "
        f"{jobs} under way will spend from the same account; that is neither in BOOKED BEFORE nor "
        "in AFTER, and this job may do fewer rounds for it"
    ]


def _falls_short(one: QuotedNode, found: QuoteJobResponse) -> bool:
    """Whether its budgets end before the planned rounds do. Where the job chooses among hospitals
    one needs fewer rounds than are planned."""
    if not one.HasField("rounds_fit") or one.rounds_fit >= found.rounds_planned:
        return False
    return found.rounds_possible < found.rounds_planned or one.rounds >= one.rounds_fit


def _short(one: QuotedNode, planned: int) -> str:
    return (
        f"{one.node}: {one.rounds_fit} of {counted(planned, 'round')} fit its limit "
        f"({one.tightest}: {epsilon(one.tightest_epsilon)}); it would take part in {one.rounds}, "
        f"for epsilon {_figure(one, 'epsilon_job')}"
    )


def exit_code(found: QuoteJobResponse) -> int:
    """0: as planned. 4: budgets alone leave too few hospitals, at once or before the last planned
    round. 1: the job could not start now for another reason."""
    able = sum(not one.reason for one in found.nodes)
    paying = sum(one.reason != "BUDGET" for one in found.nodes)
    if paying < min(found.min_participants, len(found.nodes)):
        return BUDGET
    if able < found.min_participants:
        return FAILED
    return BUDGET if found.rounds_possible < found.rounds_planned else 0


def _time(found: QuoteJobResponse) -> str:
    most = f"at most {_duration(found.seconds_max)} while its quorum is there"
    if not found.HasField("seconds_expected"):
        return f"it takes {most}; no such job has run yet"
    return f"it takes about {_duration(found.seconds_expected)} by the last such job, {most}"


def _duration(seconds: float) -> str:
    """Rounded up, as it stands beside "at most"; so is a size."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{at_most(seconds / size)} {unit}"
    return f"{at_most(seconds)} s"


def _size(size: int) -> str:
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= least:
            return f"{at_most(size / least)} {unit}"
    return f"{size} bytes"
