"""A quote in words."""

from collections.abc import Sequence

from feddp.cli.output import epsilon
from protos.feddp.v1.jobs_pb2 import QuotedNode, QuoteJobResponse


def rows(found: QuoteJobResponse) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Headers and a row for each node."""
    headers = (
        "NODE",
        "EPSILON OF THE JOB",
        "ACCOUNT BEFORE",
        "AFTER",
        "LIMIT",
        "ROUNDS FIT",
        "TIGHTEST LIMIT",
        "NOISE",
    )
    return headers, [_row(one) for one in found.nodes]


def _row(one: QuotedNode) -> Sequence[str]:
    if one.reason:
        limit = epsilon(one.epsilon_limit) if one.epsilon_limit else ""
        return (
            one.node,
            f"cannot: {one.reason}",
            _figure(one, "epsilon_before"),
            "",
            limit,
            "",
            "",
            "",
        )
    noise = f"{one.noise_multiplier:.6g}" if one.HasField("noise_multiplier") else "none"
    fit = str(one.rounds_fit) if one.HasField("rounds_fit") else "no bound"
    return (
        one.node,
        _figure(one, "epsilon_job"),
        _figure(one, "epsilon_before"),
        _figure(one, "epsilon_after"),
        epsilon(one.epsilon_limit),
        fit,
        f"{one.tightest}: {epsilon(one.tightest_epsilon)}" if one.tightest else "",
        noise,
    )


def _figure(one: QuotedNode, name: str) -> str:
    return epsilon(getattr(one, name)) if one.HasField(name) else "no guarantee"  # type: ignore[arg-type]


def lines(found: QuoteJobResponse) -> list[str]:
    """What stands below the table."""
    able = [one for one in found.nodes if not one.reason]
    said = [f"{one.node}: {one.message}" for one in found.nodes if one.message]
    said += [
        f"warning: {one.account} would have spent 80 % of its budget or more"
        for one in able
        if one.nearly_spent
    ]
    said.append(
        f"{len(able)} of at least {found.min_participants} hospitals can take part; "
        f"{found.rounds_planned} rounds"
    )
    if len(found.nodes) < found.min_participants:
        said.append(
            f"only {len(found.nodes)} hospitals publish this data set: the job would wait for more"
        )
    if able:
        down, up = max(o.download_bytes for o in able), max(o.upload_bytes for o in able)
        said.append(f"each moves at most {_size(down)} in and {_size(up)} out")
    said.append(_time(found))
    said.append(
        "The guarantee is each account's limit at its delta; BEFORE and AFTER are running figures "
        "of its filter, with what is reserved now."
    )
    return said


def can_pay(found: QuoteJobResponse) -> bool:
    """Whether it is not for want of budget that the job has too few hospitals."""
    able = sum(one.reason != "BUDGET" for one in found.nodes)
    return able >= min(found.min_participants, len(found.nodes))


def _time(found: QuoteJobResponse) -> str:
    most = f"at most {_duration(found.seconds_max)} while its quorum is there"
    if not found.HasField("seconds_expected"):
        return f"it takes {most}; no such job has run yet"
    return f"it takes about {_duration(found.seconds_expected)} by the last such job, {most}"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s"


def _size(size: int) -> str:
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size} bytes"
