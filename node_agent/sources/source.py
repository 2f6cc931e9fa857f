"""What a source of records answers: its columns, their cells, and one column a piece at a time."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Cells = Sequence[Any]
"""Texts, or typed values and None. What cannot be read as either is bytes: no row may end the
reading, as whether an attempt gives an update must not hang on one patient's record."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as they were read.

    Attributes:
        columns: name -> (rows,) cells.
        numbers: (rows,) each row's number in its source, from 1 after the header.
        no_rows: numbers of those that hold more or fewer cells than the header, and are in no
            column.
    """

    columns: Mapping[str, Cells]
    numbers: Sequence[int]
    no_rows: Sequence[int] = ()


class Source(Protocol):
    """One data set's records, wherever they are."""

    def names(self) -> list[str]:
        """The columns, found without reading a row.

        Raises:
            WrongHeader: SOURCE_MISSING, SOURCE_UNREADABLE or SCHEMA_MISMATCH.
        """
        ...

    def read(self, wanted: Sequence[str], declared: Collection[str]) -> Table:
        """The wanted columns; no row is too odd to be passed over.

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
