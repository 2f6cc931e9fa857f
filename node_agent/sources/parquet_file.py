"""A Parquet file: typed columns."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from node_agent.sources.problems import DataProblem, WrongHeader
from node_agent.sources.source import Cells, column_fault


class ParquetFile:
    """See `node_agent.sources.source.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """From the file's own schema."""
        import pyarrow as pa
        import pyarrow.parquet

        try:
            return list(pyarrow.parquet.read_schema(self._path).names)
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

    def read(self, wanted: Sequence[str], declared: Collection[str]) -> dict[str, Cells]:
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
        return {name: table.column(name).to_pylist() for name in wanted}

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
                    yield batch.column(0).unique().to_pylist()
        except (pa.ArrowException, OSError):
            raise fault from None
