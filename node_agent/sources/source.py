"""What a source of records answers: its columns, their cells, and one column a piece at a time."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

Cells = Sequence[Any]


class Source(Protocol):
    """One data set's records, wherever they are."""

    def names(self) -> list[str]:
        """The columns, found without reading a row.

        Raises:
            WrongHeader: SOURCE_MISSING, SOURCE_UNREADABLE or SCHEMA_MISMATCH.
        """
        ...

    def read(self, wanted: Sequence[str], declared: Collection[str]) -> dict[str, Cells]:
        """Cells of the wanted columns: texts, or typed values and None; all of one length.

        Raises:
            DataProblem: the records cannot be read, or a declared column does not stand there once.
        """
        ...

    def pieces(self, column: str) -> Iterator[list[Any]]:
        """One column, some cells at a time; within a piece each value at least once.

        Raises:
            DataProblem: it cannot be read.
        """
        ...


def column_fault(place: Path | str, names: list[str], declared: Collection[str]) -> str:
    """Declared columns that do not stand in the header once; empty where all do."""
    times = {name: names.count(name) for name in sorted(declared)}
    found = [
        f"column {name!r} {'is missing' if count == 0 else f'stands {count} times'}"
        for name, count in times.items()
        if count != 1
    ]
    return f"{', '.join(found)} in {place}" if found else ""
