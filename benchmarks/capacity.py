"""How large a coordinator must be: the formulas and tables of docs/capacity.md.

python -m benchmarks.capacity                  # the tables
python -m benchmarks.capacity --document       # write them into docs/capacity.md
python -m benchmarks.capacity --nodes 30 --model-bytes 40e6 --rounds-a-day 20   # your own
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import capacity_constants as measured
from benchmarks.document import replaced

DOCUMENT: Final = Path("docs/capacity.md")
KB, MB, GB = 1e3, 1e6, 1e9
KIB, MIB = 1024, 1024**2
DAY_S: Final = 86_400
YEAR_DAYS: Final = 365
LINK_BYTES_PER_S: Final = 125e6
"""One gigabit a second."""

ENTRIES_PER_ATTEMPT: Final = 2
"""A reservation and its end."""

CHECKPOINT_BYTES_PER_NODE: Final = 65
"""A leaf and a line feed: each checkpoint holds those of all accounts. At most one a round is
counted; a node that connects after something was booked makes another."""

ROUNDS_PER_JOB: Final = 4
"""As in the demo. A job keeps its first model and its answer, too."""

ROUNDS_TOLD_MAX: Final = 1000
NODES: Final = (4, 16, 100, 1000)
MODELS: Final = (40 * KB, 100 * MB, 1 * GB)
ROUNDS_A_DAY: Final = (1, 10, 100)
MEASURED: Final = {
    (4, 40 * KB): "`null-4x40KB`",
    (4, 100 * MB): "`null-4x100MB`",
    (4, 1 * GB): "`null-4x1GB`",
    (16, 100 * MB): "`null-16x100MB`",
    (100, 40 * KB): "`fleet-100`",
    (1000, 40 * KB): "`fleet-1000`",
}
"""Fleets that were run, and the case."""

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """A federation that trains models of one size.

    Attributes:
        model_bytes: of a whole update, as it travels; with an adapter, the adapter's.
    """

    nodes: int
    model_bytes: float

    @property
    def moved_bytes(self) -> float:
        """In one round, by the coordinator: the model to each node, and an update from each."""
        return 2 * self.nodes * self.model_bytes

    @property
    def cpu_s(self) -> float:
        """Of the coordinator, in one round."""
        control_s = self.nodes * measured.CONTROL.value / 1000
        return control_s + self.moved_bytes / GB * measured.BYTES.value

    @property
    def link_s(self) -> float:
        """Of one round, over a link of one gigabit a second that has nothing else to do."""
        return self.moved_bytes / LINK_BYTES_PER_S

    @property
    def memory_mib(self) -> float:
        """Of the coordinator, at most."""
        sessions = self.nodes * measured.SESSION.value / KIB
        return measured.MEMORY.value + sessions + measured.WORK_MEMORY.value

    @property
    def under_way_bytes(self) -> float:
        """On the coordinator's disk in a round: its model, the next one, and every update."""
        return (self.nodes + 2) * self.model_bytes

    @property
    def rounds_a_day_max(self) -> int:
        """Until one core works for half the day, or the link does."""
        return int(DAY_S / 2 / max(self.cpu_s, self.link_s))


def ledger_bytes_a_year(nodes: int, rounds_a_day: float, *, postgresql: bool) -> float:
    """Of tables and indexes: entries, journal, countersignatures, checkpoints."""
    one = measured.ROUND_POSTGRESQL if postgresql else measured.ROUND_SQLITE
    each = one.value * KIB + CHECKPOINT_BYTES_PER_NODE
    return YEAR_DAYS * rounds_a_day * nodes * each


def entries_a_year(nodes: int, rounds_a_day: float) -> float:
    """In all chains."""
    return YEAR_DAYS * rounds_a_day * nodes * ENTRIES_PER_ATTEMPT


def verify_s(entries: float) -> float:
    """Of `feddp budget verify FILE`, every signature checked, on two cores."""
    return measured.START.value + entries * measured.ENTRY.value / 1e6


def backup_s(kept_bytes: float) -> float:
    """Of `feddp coordinator backup` with so many bytes of models and tables."""
    return measured.START.value + kept_bytes / GB * measured.BACKUP.value


def backup_verify_s(kept_bytes: float) -> float:
    """Of `feddp coordinator backup --verify`, but for the signatures of the entries."""
    return measured.START.value + kept_bytes / GB * measured.BACKUP_VERIFY.value


def models_bytes_a_year(model_bytes: float, rounds_a_day: float) -> float:
    """On the leader's disk, and as much again in the bucket: nothing of it is ever deleted."""
    return YEAR_DAYS * rounds_a_day * (1 + 2 / ROUNDS_PER_JOB) * model_bytes


def tables() -> dict[str, list[Row]]:
    """Each table of the document by its name, headings first."""
    return {
        "constants": _constants(),
        "rounds": [
            (
                *("Nodes", "Model", "CPU", "Moved", "At 1 Gbit/s", "Memory", "Disk under way"),
                *("Most rounds a day", "Run"),
            ),
            *(_round(Fleet(nodes, size)) for nodes in NODES for size in MODELS),
        ],
        "ledger": [
            (
                *("Nodes", "Rounds a day", "Entries", "SQLite", "PostgreSQL"),
                *("To verify them", "A node's `state.db`"),
            ),
            *(_ledger(*one) for one in itertools.product(NODES, ROUNDS_A_DAY)),
        ],
        "models": [
            ("Model", "Rounds a day", "Models kept", "To back up", "To verify the backup"),
            *(_models(*one) for one in itertools.product(MODELS, ROUNDS_A_DAY)),
        ],
    }


def markdown(lines: Sequence[Row]) -> str:
    """A table whose first row is its headings."""
    first, *rest = lines
    every = [first, tuple("---" for _ in first), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def _constants() -> list[Row]:
    return [
        ("Measured", "Number", 'Repeat it: `make bench ARGS="--case ..."`', "Metric"),
        *(
            (one.what, f"{one.value:g} {one.unit}", f"`{one.case}`", f"`{one.metric}`")
            for one in measured.CONSTANTS
        ),
    ]


def _round(fleet: Fleet) -> Row:
    return (
        *(f"{fleet.nodes:,}", size(fleet.model_bytes), span(fleet.cpu_s)),
        *(size(fleet.moved_bytes), span(fleet.link_s), f"{fleet.memory_mib:.0f} MiB"),
        *(size(fleet.under_way_bytes), _most(fleet)),
        MEASURED.get((fleet.nodes, fleet.model_bytes), "extrapolated"),
    )


def _ledger(nodes: int, rounds_a_day: int) -> Row:
    entries = entries_a_year(nodes, rounds_a_day)
    return (
        *(f"{nodes:,}", f"{rounds_a_day}", f"{_two(entries):,}"),
        size(ledger_bytes_a_year(nodes, rounds_a_day, postgresql=False)),
        size(ledger_bytes_a_year(nodes, rounds_a_day, postgresql=True)),
        span(verify_s(entries)),
        size(YEAR_DAYS * rounds_a_day * measured.NODE_STATE.value * KIB),
    )


def _models(model_bytes: float, rounds_a_day: int) -> Row:
    kept = models_bytes_a_year(model_bytes, rounds_a_day)
    return (
        *(size(model_bytes), f"{rounds_a_day}", size(kept)),
        span(backup_s(kept)),
        span(backup_verify_s(kept)),
    )


def _most(fleet: Fleet) -> str:
    """Rounds a day; beyond some it is the hospitals' training that limits them."""
    most = fleet.rounds_a_day_max
    return f"{_two(most)}" if most <= ROUNDS_TOLD_MAX else f"above {ROUNDS_TOLD_MAX:,}"


def _two(number: float) -> int:
    """Rounded to two digits: more than that nobody has measured."""
    return int(float(f"{number:.2g}"))


def size(number: float) -> str:
    """Bytes, in decimal units."""
    for unit, of in (("TB", 1e12), ("GB", GB), ("MB", MB), ("KB", KB)):
        if number >= of:
            return f"{_digits(number / of)} {unit}"
    return f"{number:.0f} B"


def span(seconds: float) -> str:
    """A time, in a unit of which there is one and a half, or at least a second."""
    for unit, of, least in (
        *(("days", DAY_S, 1.5 * DAY_S), ("h", 3600, 5400), ("min", 60, 90)),
        ("s", 1, 0.995),
    ):
        if seconds >= least:
            return f"{_digits(seconds / of)} {unit}"
    return f"{_digits(1000 * seconds)} ms"


def _digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):,g}"


def _own(nodes: int, model_bytes: float, rounds_a_day: float) -> list[Row]:
    """A fleet of the reader's own."""
    fleet = Fleet(nodes, model_bytes)
    day_s = rounds_a_day * fleet.cpu_s + nodes * measured.IDLE_CPU.value / 100 * DAY_S
    entries = entries_a_year(nodes, rounds_a_day)
    kept = models_bytes_a_year(model_bytes, rounds_a_day)
    return [
        ("What", "How much"),
        ("coordinator's CPU, a round", span(fleet.cpu_s)),
        ("a core's share of the day", f"{100 * day_s / DAY_S:.2g} %"),
        ("moved, a round", f"{size(fleet.moved_bytes)}, {span(fleet.link_s)} at 1 Gbit/s"),
        ("coordinator's memory", f"{fleet.memory_mib:.0f} MiB"),
        ("disk under way", size(fleet.under_way_bytes)),
        ("models kept, a year", size(kept)),
        ("SQLite, a year", size(ledger_bytes_a_year(nodes, rounds_a_day, postgresql=False))),
        ("PostgreSQL, a year", size(ledger_bytes_a_year(nodes, rounds_a_day, postgresql=True))),
        ("entries, a year", f"{_two(entries):,}, {span(verify_s(entries))} to verify"),
        ("a backup after a year", span(backup_s(kept))),
        ("most rounds a day", _most(fleet)),
    ]


def main() -> None:
    """Print the tables, or those of one fleet; or write them into the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--document", action="store_true", help="write docs/capacity.md's tables")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--model-bytes", type=float, default=MODELS[0])
    parser.add_argument("--rounds-a-day", type=float, default=1.0)
    options = parser.parse_args()
    if options.nodes is not None:
        if options.nodes < 1 or options.model_bytes <= 0 or options.rounds_a_day <= 0:
            parser.error("nodes, bytes and rounds are above 0")
        print(markdown(_own(options.nodes, options.model_bytes, options.rounds_a_day)))
        return
    made = {name: markdown(lines) for name, lines in tables().items()}
    if options.document:
        text = DOCUMENT.read_text(encoding="utf-8")
        for name, table in made.items():
            text = replaced(text, name, table)
        DOCUMENT.write_text(text, encoding="utf-8")
        return
    print("\n\n".join(f"{name}\n{table}" for name, table in made.items()))


if __name__ == "__main__":
    main()
