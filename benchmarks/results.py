"""What a case found: results with fixed names, as JSON and as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One number.

    Attributes:
        floor: what the same work costs at least, measured in the same run and in the same unit;
            beside a peer, what the peer takes. None when there is nothing to compare with.
        ratio: `value` / `floor`.
    """

    case: str
    metric: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None


def result(case: str, metric: str, value: float, unit: str, floor: float | None = None) -> Result:
    """A result with its ratio, rounded to what the measurement can tell."""
    ratio = value / floor if floor else None
    return Result(case, metric, _rounded(value), unit, _rounded(floor), _rounded(ratio))


def _rounded(value: float | None) -> Any:
    return None if value is None else float(f"{value:.3g}")


@dataclass(frozen=True, slots=True)
class Bound:
    """A number that is to hold, of the value or of its ratio to the floor: at most `most`, or at
    least that where more is better."""

    most: float
    of: str = "value"
    is_least: bool = False

    def held_by(self, one: Result) -> bool:
        """Whether a result keeps to it."""
        measured = one.value if self.of == "value" else one.ratio
        if measured is None:
            return False
        return measured >= self.most if self.is_least else measured <= self.most

    def __str__(self) -> str:
        if self.is_least:
            return f"at least {self.most:g}"
        return f"{self.most:g}" if self.of == "value" else f"{self.of} {self.most:g}"


ROUND_BOUNDS = {
    ("null-4x40KB", "round_time"): Bound(30),
    ("null-64x40KB", "round_time"): Bound(300),
    ("null-4x100MB", "round_time"): Bound(2.0, "ratio"),
    ("null-4x100MB", "coordinator_cpu"): Bound(2.5, "ratio"),
    ("null-4x1GB", "round_time"): Bound(2.2, "ratio"),
    ("start-4", "start_to_first_orders"): Bound(3),
    ("idle-4", "agent_idle_memory"): Bound(64),
    ("idle-4", "agent_idle_cpu"): Bound(0.5),
    ("ledger-4-writers-sqlite", "time_per_reservation"): Bound(5),  # 200 a second
    ("ledger-4-writers-sqlite", "time_per_reservation_one_account"): Bound(5),
    ("ledger-4-writers-postgresql", "time_per_reservation"): Bound(2),  # 500 a second
    ("ledger-10000-sqlite", "admission_time"): Bound(5),
    ("ledger-10000-postgresql", "admission_time"): Bound(5),
    ("ledger-verify-100k", "verify_time"): Bound(3),
    ("ledger-verify-1M", "verify_time"): Bound(30),
    ("ledger-verify-1M", "command_time"): Bound(30),
    ("restore-1gb", "restore_time"): Bound(300),
    ("gateway-unary-passthrough", "unary_p50"): Bound(1.3, "ratio"),
    ("gateway-upload-40ms", "upload_rate"): Bound(20, is_least=True),
    **{
        (f"gateway-500-{mode}", metric): Bound(most)
        for mode in ("passthrough", "terminate")
        for metric, most in (
            ("memory_per_session", 150),
            ("heartbeat_p99", 250),
            ("all_back_after_restart", 60),
        )
    },
    ("dp-sgd-step", "step_time"): Bound(1.05, "ratio"),
    ("dp-sgd-step-mlp", "step_time"): Bound(1.05, "ratio"),
}
MEMORY_OVER_MODEL_MIB = 64.0
BOUNDS_OF_ALL = {
    "agent_peak_memory": Bound(100),
    "coordinator_idle_memory": Bound(200),
    "peak_beside_fewest_nodes": Bound(1.1, "ratio"),
}


def bound_of(one: Result) -> Bound | None:
    """The number to hold for a result; None when there is none."""
    if one.metric == "coordinator_peak_over_idle" and one.floor is not None:
        return Bound(float(f"{one.floor + MEMORY_OVER_MODEL_MIB:.3g}"))
    return ROUND_BOUNDS.get((one.case, one.metric)) or BOUNDS_OF_ALL.get(one.metric)


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Results as texts in the order of `headings`."""
    made = []
    for one in results:
        bound = bound_of(one)
        held = "" if bound is None else "yes" if bound.held_by(one) else "NO"
        numbers = ("" if n is None else f"{n:g}" for n in (one.floor, one.ratio))
        row = (one.case, one.metric, f"{one.value:g}", one.unit, *numbers)
        made.append((*row, "" if bound is None else str(bound), held))
    return made


def peaks_beside_fewest_nodes(results: Sequence[Result]) -> list[Result]:
    """The coordinator's peaks with more nodes beside that with the fewest, for each large model."""
    peaks: dict[str, list[Result]] = {}
    for one in results:
        if one.metric == "coordinator_peak_over_idle" and one.floor is not None:
            peaks.setdefault(one.case.partition("x")[2], []).append(one)
    made = []
    for same_model in peaks.values():
        fewest, *others = sorted(same_model, key=_nodes)
        made += [
            result(one.case, "peak_beside_fewest_nodes", one.value, one.unit, fewest.value)
            for one in others
        ]
    return made


def _nodes(one: Result) -> int:
    """K of a case named null-KxSIZE."""
    return int(one.case.partition("x")[0].rpartition("-")[2])


def headings(floor: str = "floor") -> tuple[str, ...]:
    """Names of the columns; beside a peer, the floor's has the peer's name."""
    return ("case", "metric", "value", "unit", floor, "ratio", "to hold", "held")


def table(results: Sequence[Result], floor: str = "floor") -> str:
    """The results in columns, for a terminal."""
    lines = [headings(floor), *rows(results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write(path: Path, results: Sequence[Result]) -> None:
    """Write a list of objects with the names of `Result`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(one) for one in results], indent=2) + "\n")


def read(path: Path) -> list[Result]:
    """What `write` wrote."""
    return [Result(**one) for one in json.loads(path.read_text())]
