"""A CSV file in UTF-8: texts, with a header.

Its lines end as the header's does. Programs that end lines by a line feed leave a carriage return
in a cell without quotation marks (as Python's own writer does): were it an end too, one patient's
note would make rows, and name others in them.
"""

import csv
import io
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from node_agent.sources.problems import DataProblem, WrongHeader
from node_agent.sources.source import Cells, Column, Table, column_fault

HEADER_BYTES: Final = 64 << 10
"""Tried first: an agent looks often, and its memory is small."""

HEADER_BYTES_MAX: Final = 4 << 20
"""10,000 columns with names of 256 letters fit."""

ENCODING: Final = "utf-8-sig"
CELL_CHARACTERS_MAX: Final = 1 << 30
PIECE_ROWS: Final = 5_000

# The library's own bound would end the reading at one long note.
csv.field_size_limit(CELL_CHARACTERS_MAX)


class CsvFile:
    """See `node_agent.sources.source.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def header(self) -> list[Column]:
        """The first line that is not empty."""
        try:
            with self._path.open("rb") as file:
                for size in (HEADER_BYTES, HEADER_BYTES_MAX):
                    file.seek(0)
                    start = file.read(size)
                    names, ended = _first_row(start)
                    if ended or len(start) < size:
                        break
        except FileNotFoundError:
            raise WrongHeader("SOURCE_MISSING", f"{self._path} does not exist") from None
        except OSError:
            raise WrongHeader(
                "SOURCE_UNREADABLE", f"{self._path} may not be read by this account"
            ) from None
        return [Column(name) for name in names]

    def read(self, wanted: Sequence[str], declared: Collection[str]) -> Table:
        """Cells as texts, bytes where they are not UTF-8."""
        try:
            with self._path.open("rb") as file:
                lines = _Lines(_lines(file))
                rows = _rows(lines)
                names = next(rows, [])
                torn_header = lines.swallowed(len(names))
                if fault := column_fault(self._path, names, declared):
                    raise DataProblem(fault if names else f"{self._path} is empty")
                places = [names.index(name) for name in wanted]
                whole, odd, torn = _Kept(places), _Kept(places), _Kept(places)
                for swallowed in torn_header:
                    torn.keep(0, swallowed)
                for number, row in enumerate(rows, start=1):
                    (whole if len(row) == len(names) else odd).keep(number, row)
                    for swallowed in lines.swallowed(len(names)):
                        torn.keep(number, swallowed)
        except FileNotFoundError:
            raise DataProblem(f"{self._path} does not exist") from None
        except OSError:
            raise DataProblem(f"{self._path} may not be read by this account") from None
        return Table(
            whole.columns(wanted),
            whole.numbers,
            odd.numbers,
            odd.columns(wanted),
            list(dict.fromkeys(torn.numbers)),
            torn.columns(wanted),
        )

    def pieces(self, column: str) -> Iterator[list[Any]]:
        """One column, `PIECE_ROWS` rows at a time."""
        fault = DataProblem(f"{self._path} has no column {column!r} that can be read")
        try:
            with self._path.open("rb") as file:
                rows = _rows(_lines(file))
                names = next(rows, [])
                if column not in names:
                    raise fault
                place = names.index(column)
                while piece := list(itertools.islice(rows, PIECE_ROWS)):
                    yield list({row[place] for row in piece if len(row) == len(names)})
        except OSError:
            raise fault from None


def _lines(raw: BinaryIO) -> Iterator[str]:
    """A file's lines from its beginning. The mark that ends none is a blank in them."""
    end, other = _line_end(raw)
    raw.seek(0)
    for line in io.TextIOWrapper(raw, ENCODING, "surrogateescape", newline=end):
        if other in line and other in (whole := line.rstrip("\r\n")):
            yield f"{whole.replace(other, ' ')}{end}"
        else:
            yield line


def _line_end(raw: BinaryIO) -> tuple[str, str]:
    """What ends its first line that is not empty, and so all others; and the other mark."""
    start = b"\n"
    while start and not start.strip():
        start = raw.readline(HEADER_BYTES_MAX)
    return ("\r", "\n") if b"\r" in start.strip() else ("\n", "\r")


class _Kept:
    """Cells at some places of rows, and the rows' numbers."""

    def __init__(self, places: Sequence[int]) -> None:
        self._at = [(place, list[str | bytes | None]()) for place in places]
        self.numbers: list[int] = []

    def keep(self, number: int, row: Sequence[str]) -> None:
        """A row's, None where it ends before the place."""
        self.numbers.append(number)
        for place, cells in self._at:
            cells.append(_text(row[place]) if place < len(row) else None)

    def columns(self, names: Sequence[str]) -> dict[str, Cells]:
        """By the names of the places' columns."""
        return {name: cells for name, (_, cells) in zip(names, self._at, strict=True)}


class _Lines:
    """A file's lines, and those that the last row was made of."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._taken.append(line)
        return line

    def swallowed(self, cells: int) -> list[list[str]]:
        """Rows of so many cells that the lines after the first would be by themselves, where the
        last row has several and its quotation marks do not pair; asked once after each row.

        Lines of other shapes are a note's: one patient's note, whose marks an export did not
        double, must not decide about everybody whose id begins a line of it.
        """
        taken, self._taken = self._taken, []
        if len(taken) < 2:
            return []
        # Empty lines before a row are none of it.
        taken = list(itertools.dropwhile(lambda line: not line.strip(), taken))
        if len(taken) < 2 or _pair(taken):
            return []
        return [row for line in taken[1:] for row in _rows([line]) if len(row) == cells]


def _pair(lines: list[str]) -> bool:
    """Whether the quotation marks are as in any file that a program has written."""
    try:
        for _ in csv.reader(lines, strict=True):
            pass
    except csv.Error:
        return False
    return True


def _rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """The header and the rows after it, without empty lines. What is no row holds no cell."""
    rows = csv.reader(lines)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield []
            continue
        if row:
            yield row


def _text(cell: str) -> str | bytes:
    """A cell, or its bytes where they are not UTF-8."""
    if cell.isascii():
        return cell
    try:
        cell.encode()
    except UnicodeEncodeError:
        return cell.encode(errors="surrogateescape")
    return cell


def _first_row(start: bytes) -> tuple[list[str], bool]:
    """The first row of a file that begins so, and whether it is known to end there."""
    # Rows may be in what was read, so that nothing of them may lead to an error.
    rows = csv.reader(_lines(io.BytesIO(start)))
    names: list[str] = []
    try:
        names = next((row for row in rows if row), [])
        return names, next(rows, None) is not None
    except csv.Error:
        return names, bool(names)
