"""What a source of records answers: its columns, their cells, and one column a piece at a time."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

Cells = Sequence[Any]
"""Texts, or typed values and None. What cannot be read as either is bytes: no row may end the
reading, as whether an attempt gives an update must not hang on one patient's record."""


MISSING: Final = frozenset({"", "NA", "N/A", "NaN", "nan", "NULL", "null"})
"""Texts that count as absent, unless the column declares one as a category."""


Kind = Literal["any", "text", "whole", "number", "truth", "other"]
"""What a column's cells are as far as the source says it without a row; "any" where it does not."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a source says of a column before a row is read."""

    name: str
    kind: Kind = "any"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as they were read.

    Attributes:
        columns: name -> (rows,) cells.
        numbers: (rows,) each row's number in its source, from 1 after the header.
        no_rows: numbers of those that hold more or fewer cells than the header, and are in no
            column.
        in_no_rows: name -> (no_rows,) what stands at the column's place there, None where nothing
            does; whether it is the column's, nobody knows.
        torn: numbers of rows of several lines whose quotation marks do not pair: the lines after
            the first may be rows that an open mark has swallowed.
        in_torn: name -> what stands at the column's place in each of those lines.
    """

    columns: Mapping[str, Cells]
    numbers: Sequence[int]
    no_rows: Sequence[int] = ()
    in_no_rows: Mapping[str, Cells] = field(default_factory=dict)
    torn: Sequence[int] = ()
    in_torn: Mapping[str, Cells] = field(default_factory=dict)


class Source(Protocol):
    """One data set's records, wherever they are."""

    def header(self) -> list[Column]:
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


def text_of(cell: Any) -> str | None:
    """A text without the spaces around it, or a whole number's digits; None for what is neither, or
    has more digits than Python writes: a database's `numeric` holds 131,072."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, bool) or not isinstance(cell, int):
        return None
    try:
        return str(cell)
    except ValueError:
        return None


def column_fault(place: Path | str, names: list[str], declared: Collection[str]) -> str:
    """Declared columns that do not stand in the header once; empty where all do."""
    times = {name: names.count(name) for name in sorted(declared)}
    found = [
        f"column {name!r} {'is missing' if count == 0 else f'stands {count} times'}"
        for name, count in times.items()
        if count != 1
    ]
    if not found:
        return ""
    return f"{', '.join(found)} in {place}{_hint(names)}"


def _hint(names: list[str]) -> str:
    """What a whole header that reads otherwise is likely to be."""
    if any(not name.isascii() and _is_no_text(name) for name in names):
        return "; its header is not UTF-8: save the file as UTF-8"
    for mark, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            return f"; its cells are separated by {called}: save the file with commas"
    return ""


def _is_no_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False
