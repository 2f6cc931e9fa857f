"""The names of a source's columns, read without its rows; the agent needs no pyarrow for a CSV.

Column names are no patient's data. A name that is missing can therefore be told before the data is
opened, when the reservation is still void-able: found later it would cost a release.
"""

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Final

from node_agent.datasets import DataSetSpec

HEADER_BYTES: Final = 64 << 10
"""Tried first: an agent looks often, and its memory is small."""

HEADER_BYTES_MAX: Final = 4 << 20
"""10,000 columns with names of 256 letters fit."""


class WrongHeader(Exception):
    """A source is not there or lacks a declared column; a sentence for the hospital.

    Attributes:
        reason: may be told to the coordinator, the sentence not.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def check_header(spec: DataSetSpec) -> None:
    """Check that every declared column stands in the source once. No row is looked at.

    Raises:
        WrongHeader: SOURCE_MISSING, SOURCE_UNREADABLE or SCHEMA_MISMATCH.
    """
    path = spec.source
    try:
        names = _parquet_names(path) if path.suffix == ".parquet" else _csv_names(path)
    except FileNotFoundError:
        raise WrongHeader("SOURCE_MISSING", f"{path} does not exist") from None
    except OSError:
        raise WrongHeader("SOURCE_UNREADABLE", f"{path} may not be read by this account") from None
    fault = column_fault(path, names, {spec.patient, spec.label, *spec.columns})
    if fault:
        raise WrongHeader("SCHEMA_MISMATCH", fault)


def column_fault(path: Path, names: list[str], declared: Collection[str]) -> str:
    """The first declared column that does not stand in the header once; empty where all do."""
    for name in sorted(declared):
        times = names.count(name)
        if times != 1:
            what = "is missing" if times == 0 else f"stands {times} times"
            return f"column {name!r} {what} in {path}"
    return ""


def _csv_names(path: Path) -> list[str]:
    """The first line that is not empty, as pyarrow reads it."""
    with path.open("rb") as file:
        for size in (HEADER_BYTES, HEADER_BYTES_MAX):
            file.seek(0)
            start = file.read(size)
            names, ended = _first_row(start)
            if ended or len(start) < size:
                break
    return names


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


def _parquet_names(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except pa.ArrowInvalid:
        raise WrongHeader(
            "SCHEMA_MISMATCH", f"{path} is not a Parquet file that can be read"
        ) from None
