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
    """The first declared column that does not stand in the header once; empty where all do."""
    for name in sorted(declared):
        times = names.count(name)
        if times != 1:
            what = "is missing" if times == 0 else f"stands {times} times"
            return f"column {name!r} {what} in {place}"
    return ""
