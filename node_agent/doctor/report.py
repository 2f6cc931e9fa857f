"""What a check says."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Result = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was checked; stable.
        found: what was found, a sentence without its full stop.
        do: what to do about it; empty where nothing is to be done.
    """

    name: str
    result: Result
    found: str
    do: str = ""


def is_in_order(checks: Iterable[Check]) -> bool:
    """Whether nothing failed; a warning is no failure."""
    return all(one.result != "failed" for one in checks)


def skipped(why: str, *names: str) -> list[Check]:
    """Checks that could not be made."""
    return [Check(name, "skipped", why) for name in names]


def span(seconds: float) -> str:
    """A length of time for people: "3 days", "50 minutes"."""
    for unit, length_s in (("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0)):
        if round(seconds / length_s) >= 2:
            return f"{seconds / length_s:.0f} {unit}s"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
