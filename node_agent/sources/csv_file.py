"""A CSV file in UTF-8: texts, with a header."""

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node_agent.sources.problems import DataProblem, WrongHeader
from node_agent.sources.source import Cells, column_fault

if TYPE_CHECKING:
    import pyarrow as pa

HEADER_BYTES: Final = 64 << 10
"""Tried first: an agent looks often, and its memory is small."""

HEADER_BYTES_MAX: Final = 4 << 20
"""10,000 columns with names of 256 letters fit."""


class CsvFile:
    """See `node_agent.sources.source.Source`. The header is read without pyarrow."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """The first line that is not empty, as pyarrow reads it."""
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
        return names

    def read(self, wanted: Sequence[str], declared: Collection[str]) -> dict[str, Cells]:
        """Cells as texts; a row with another number of cells is named by its line."""
        import pyarrow as pa
        import pyarrow.csv

        path = self._path
        bad_rows: list[int | None] = []

        def refuse(row: Any) -> str:
            bad_rows.append(row.number)
            return "error"

        parse = pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse)
        # Without threads pyarrow counts the rows, so that a bad one has a number.
        read = pyarrow.csv.ReadOptions(use_threads=False)
        try:
            with pyarrow.csv.open_csv(path, read_options=read, parse_options=parse) as reader:
                fault = column_fault(path, reader.schema.names, declared)
            if fault:
                raise DataProblem(fault)
            bad_rows.clear()
            table = pyarrow.csv.read_csv(path, read, parse, _as_texts(wanted))
        except FileNotFoundError:
            raise DataProblem(f"{path} does not exist") from None
        except PermissionError:
            raise DataProblem(f"{path} may not be read by this account") from None
        # The library's own text quotes the row, hence `from None`.
        except pa.ArrowInvalid:
            if path.stat().st_size == 0:
                raise DataProblem(f"{path} is empty") from None
            where = f" at line {bad_rows[0]}: it has another number of cells" if bad_rows else ""
            raise DataProblem(f"{path} is not a CSV file in UTF-8{where}") from None
        return {name: table.column(name).to_pylist() for name in wanted}

    def pieces(self, column: str) -> Iterator[list[Any]]:
        """One column as texts."""
        import pyarrow as pa
        import pyarrow.csv

        try:
            with pyarrow.csv.open_csv(
                self._path,
                read_options=pyarrow.csv.ReadOptions(use_threads=False),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=_as_texts([column]),
            ) as reader:
                for batch in reader:
                    yield batch.column(0).unique().to_pylist()
        except (pa.ArrowException, OSError, KeyError):
            raise DataProblem(f"{self._path} has no column {column!r} that can be read") from None


def _first_row(start: bytes) -> tuple[list[str], bool]:
    """The first row of a file that begins so, and whether it is known to end there."""
    # Rows may be in what was read, so that nothing of them may lead to an error.
    text = start.decode("utf-8-sig", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""))
    names: list[str] = []
    try:
        names = next((row for row in rows if row), [])
        return names, next(rows, None) is not None
    except csv.Error:
        return names, bool(names)


def _as_texts(wanted: Sequence[str]) -> "pa.csv.ConvertOptions":
    import pyarrow as pa
    import pyarrow.csv

    return pyarrow.csv.ConvertOptions(
        include_columns=list(wanted),
        column_types=dict.fromkeys(wanted, pa.string()),
        strings_can_be_null=False,
    )
