"""A Parquet file: typed columns."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node_agent.sources.problems import DataProblem, WrongHeader
from node_agent.sources.source import Cells, Column, Kind, Table, column_fault

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetFile:
    """See `node_agent.sources.source.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def header(self) -> list[Column]:
        """From the file's own schema."""
        import pyarrow as pa
        import pyarrow.parquet

        try:
            schema = pyarrow.parquet.read_schema(self._path)
        except FileNotFoundError:
            raise WrongHeader("SOURCE_MISSING", f"{self._path} does not exist") from None
        except pa.ArrowInvalid:
            raise WrongHeader(
                "SCHEMA_MISMATCH", f"{self._path} is not a Parquet file that can be read"
            ) from None
        except OSError:
            raise WrongHeader(
                "SOURCE_UNREADABLE", f"{self._path} may not be read by this account"
            ) from None
        return [Column(field.name, _kind(field.type)) for field in schema]

    def read(self, wanted: Sequence[str], declared: Collection[str]) -> Table:
        """Typed values, None where null."""
        import pyarrow as pa
        import pyarrow.parquet

        path = self._path
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                fault = column_fault(path, file.schema_arrow.names, declared)
                if fault:
                    raise DataProblem(fault)
                table = file.read(columns=list(wanted))
        except FileNotFoundError:
            raise DataProblem(f"{path} does not exist") from None
        except PermissionError:
            raise DataProblem(f"{path} may not be read by this account") from None
        except (pa.ArrowInvalid, OSError):
            raise DataProblem(f"{path} is not a Parquet file that can be read") from None
        columns = {name: _cells(table.column(name)) for name in wanted}
        return Table(columns, range(1, table.num_rows + 1))

    def pieces(self, column: str) -> Iterator[list[Any]]:
        """One column."""
        import pyarrow as pa
        import pyarrow.parquet

        fault = DataProblem(f"{self._path} has no column {column!r} that can be read")
        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                if column not in file.schema_arrow.names:
                    raise fault
                for batch in file.iter_batches(columns=[column]):
                    yield list(_cells(batch.column(0).unique()))
        except (pa.ArrowException, OSError):
            raise fault from None


def _kind(of: "pa.DataType") -> Kind:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(of):
        return _kind(of.value_type)
    if types.is_string(of) or types.is_large_string(of) or types.is_string_view(of):
        return "text"
    if types.is_integer(of):
        return "whole"
    if types.is_floating(of):
        return "number"
    if types.is_boolean(of):
        return "truth"
    # Exact numbers are read as numbers alone: of an id, make whole numbers or texts of them.
    if types.is_decimal(of):
        return "number"
    return "any" if types.is_null(of) else "other"


def _cells(column: "pa.ChunkedArray | pa.Array") -> Cells:
    """Texts, numbers, true and false, None; bytes for all else, whose values a single odd one could
    keep from being read: a text that is not UTF-8, a date that the calendar here does not have."""
    import pyarrow as pa

    of = column.type
    if pa.types.is_dictionary(of):
        return _cells(column.cast(of.value_type))
    kind = _kind(of)
    if kind == "other":
        return [b""] * len(column)
    if kind != "text":
        return list(column.to_pylist())
    raw = pa.binary() if pa.types.is_string(of) else pa.large_binary()
    return [_text(cell) for cell in column.cast(raw).to_pylist()]


def _text(cell: bytes | None) -> str | bytes | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return cell
