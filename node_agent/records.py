"""Records of a data set as arrays, read in the worker only (numpy loads here).

A problem names the file, the column and the row, never what stands there, and never leaves the
hospital: `DataProblem` is no error of `protos.errors`, so nothing can send it by accident.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from node_agent.consent import opted_out_of, refused
from node_agent.datasets import CategoryColumn, DataSetSpec
from node_agent.sources.choice import source_of
from node_agent.sources.problems import DataProblem
from node_agent.sources.source import Cells
from node_agent.tasks.tabular_config import FEATURE_LIMIT, Feature

__all__ = ["DataProblem", "Records", "feature_matrix", "read_records"]

log = structlog.get_logger(__name__)

MISSING: Final = frozenset({"", "NA", "N/A", "NaN", "nan", "NULL", "null"})
"""Cells of a CSV file that count as absent, unless the column declares one as a category."""


@dataclass(frozen=True, slots=True)
class Records:
    """Complete rows, in file order.

    Attributes:
        features: (rows, F) float32, scaled and clipped.
        labels: (rows,) float32 of 0 and 1.
        patients: (rows,) int64, 0 to P - 1 by first appearance; equal for rows of one patient.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.float32]
    patients: NDArray[np.int64]


def read_records(spec: DataSetSpec, features: Sequence[Feature]) -> Records:
    """Read the columns that `features` use; rows that lack any of them are left out.

    Patients who did not consent or opted out are left out before any other cell of theirs is
    looked at. A row without a patient is left out too: nobody's budget would pay for it. So are a
    patient's complete rows beyond the first `rows_per_patient_max`. How many were left out goes to
    this machine's log only.

    Raises:
        DataProblem: no file, a missing column, a cell that does not read as declared, a label
            other than 0 and 1, or no complete row.
    """
    columns = list(dict.fromkeys(feature.column for feature in features))
    consent = [spec.consent.column] if spec.consent is not None else []
    wanted = list(dict.fromkeys([spec.patient, spec.label, *columns, *consent]))
    table = _without_excluded(spec, _read(spec, wanted))
    patients = _texts(spec, spec.patient, table[spec.patient], frozenset())
    labels = _labels(spec, table[spec.label])
    values: dict[str, NDArray[Any]] = {}
    complete = np.array([patient is not None for patient in patients], dtype=bool)
    complete &= ~np.isnan(labels)
    for column in columns:
        declared = spec.columns[column]
        if isinstance(declared, CategoryColumn):
            texts = _categories(spec, column, table[column], declared)
            complete &= np.array([text is not None for text in texts], dtype=bool)
            values[column] = np.array(texts, dtype=object)
        else:
            numbers = _numbers(spec, column, table[column])
            complete &= ~np.isnan(numbers)
            values[column] = numbers
    if not complete.any():
        raise DataProblem(f"{spec.source} has no row with a patient and every used column")
    numbered = _numbered([p for p, kept in zip(patients, complete, strict=True) if kept])
    within = _ranks(numbered) < spec.rows_per_patient_max
    kept = np.flatnonzero(complete)[within]
    log.info(
        "records_read",
        data_set=spec.name,
        rows_left_out=int((~complete).sum()),
        rows_beyond_patient_max=int((~within).sum()),
    )
    return Records(
        features=feature_matrix(features, {name: v[kept] for name, v in values.items()}),
        labels=labels[kept].astype(np.float32),
        patients=numbered[within],
    )


def _without_excluded(spec: DataSetSpec, table: dict[str, Cells]) -> dict[str, Cells]:
    """The rows of patients who may be used; how many others there are is for the local log."""
    if spec.consent is None and spec.opt_out is None:
        return table
    patients = _texts(spec, spec.patient, table[spec.patient], frozenset())
    without_consent = refused(spec, patients, table)
    opted_out = opted_out_of(spec) & {one for one in patients if one is not None}
    log.info(
        "patients_excluded",
        data_set=spec.name,
        without_consent=len(without_consent),
        opted_out=len(opted_out),
    )
    excluded = without_consent | opted_out
    kept = [row for row, patient in enumerate(patients) if patient not in excluded]
    if not kept:
        raise DataProblem(f"{spec.source} has no row of a patient who may be used")
    return {name: [cells[row] for row in kept] for name, cells in table.items()}


def feature_matrix(
    features: Sequence[Feature], columns: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """Scale columns as the job's configuration says.

    Args:
        features: F features.
        columns: (rows,) numbers, or texts for a feature with a category; complete.

    Returns:
        (rows, F) float32: clip((x - center) / scale, -3, 3).
    """
    scaled = []
    for feature in features:
        x = columns[feature.column]
        if feature.category is not None:
            x = x == feature.category
        x = (x.astype(np.float64) - feature.center) / feature.scale
        scaled.append(np.clip(x, -FEATURE_LIMIT, FEATURE_LIMIT).astype(np.float32))
    return np.ascontiguousarray(np.stack(scaled, axis=1))


def _numbered(patients: Sequence[str | None]) -> NDArray[np.int64]:
    index: dict[str | None, int] = {}
    return np.array([index.setdefault(name, len(index)) for name in patients], dtype=np.int64)


def _ranks(patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """(rows,) how many rows of the same patient stand before each row."""
    order = np.argsort(patients, kind="stable")
    counts = np.bincount(patients)
    ranks = np.empty_like(patients)
    ranks[order] = np.arange(len(patients)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _read(spec: DataSetSpec, wanted: list[str]) -> dict[str, Cells]:
    """Cells of the wanted columns: texts from CSV, typed values or None from elsewhere."""
    table = source_of(spec).read(wanted, spec.declared_columns)
    if not table[spec.patient]:
        raise DataProblem(f"{spec.source} holds no rows")
    return table


def _texts(
    spec: DataSetSpec, column: str, cells: Cells, never_missing: frozenset[str]
) -> list[str | None]:
    """Trimmed texts, None where missing. Whole numbers of a Parquet file read as their digits."""
    missing = MISSING - never_missing
    texts: list[str | None] = []
    for row, cell in enumerate(cells, start=1):
        if cell is None:
            texts.append(None)
        elif isinstance(cell, str):
            text = cell.strip()
            texts.append(None if text in missing else text)
        elif isinstance(cell, int) and not isinstance(cell, bool):
            texts.append(str(cell))
        else:
            raise _bad(spec, column, row, "is neither text nor a whole number")
    return texts


def _categories(
    spec: DataSetSpec, column: str, cells: Cells, declared: CategoryColumn
) -> list[str | None]:
    known = frozenset(declared.category)
    texts = _texts(spec, column, cells, known)
    for row, text in enumerate(texts, start=1):
        if text is not None and text not in known:
            raise _bad(spec, column, row, "is none of the declared categories")
    return texts


def _numbers(spec: DataSetSpec, column: str, cells: Cells) -> NDArray[np.float64]:
    """(rows,) finite numbers, NaN where missing."""
    return np.array([_number(spec, column, row, cell) for row, cell in enumerate(cells, start=1)])


def _number(spec: DataSetSpec, column: str, row: int, cell: Any) -> float:
    # An underscore is legal in a Python number, in a hospital's table it is a slip.
    text = cell.strip() if isinstance(cell, str) else cell
    if text is None or text in MISSING or (isinstance(text, float) and math.isnan(text)):
        return math.nan
    try:
        number = math.nan if isinstance(text, str) and "_" in text else float(text)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _bad(spec, column, row, "is not a number")
    return number


def _labels(spec: DataSetSpec, cells: Cells) -> NDArray[np.float64]:
    labels = _numbers(spec, spec.label, cells)
    wrong = np.flatnonzero(~np.isnan(labels) & (labels != 0) & (labels != 1))
    if wrong.size:
        raise _bad(spec, spec.label, int(wrong[0]) + 1, "is a label other than 0 and 1")
    return labels


def _bad(spec: DataSetSpec, column: str, row: int, what: str) -> DataProblem:
    """Rows count from 1 after the header."""
    return DataProblem(f"column {column!r}, row {row} of {spec.source} {what}")


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over a whole source, for the hospital's own eyes: each is a patient's data.

    Attributes:
        missing: column -> rows that lack it.
        complete: rows that lack nothing.
        patients: different patients in complete rows.
        labels: complete rows with the label 0, and with 1.
    """

    rows: int
    missing: dict[str, int]
    complete: int
    patients: int
    labels: tuple[int, int]


def tally(spec: DataSetSpec) -> Tally:
    """Read every declared column and count, but of patients who may not be used.

    Raises:
        DataProblem: as `read_records`.
    """
    columns = [name for name in spec.columns if name not in (spec.patient, spec.label)]
    consent = [spec.consent.column] if spec.consent is not None else []
    wanted = list(dict.fromkeys([spec.patient, spec.label, *columns, *consent]))
    table = _without_excluded(spec, _read(spec, wanted))
    patients = _texts(spec, spec.patient, table[spec.patient], frozenset())
    labels = _labels(spec, table[spec.label])
    absent: dict[str, NDArray[np.bool_]] = {
        spec.patient: np.array([patient is None for patient in patients], dtype=bool),
        spec.label: np.isnan(labels),
    }
    for column in columns:
        declared = spec.columns[column]
        if isinstance(declared, CategoryColumn):
            texts = _categories(spec, column, table[column], declared)
            absent[column] = np.array([text is None for text in texts], dtype=bool)
        else:
            absent[column] = np.isnan(_numbers(spec, column, table[column]))
    complete = ~np.logical_or.reduce(list(absent.values()))
    kept = labels[complete]
    return Tally(
        rows=len(labels),
        missing={name: int(lacking.sum()) for name, lacking in absent.items()},
        complete=int(complete.sum()),
        patients=len({patients[row] for row in np.flatnonzero(complete)}),
        labels=(int((kept == 0).sum()), int((kept == 1).sum())),
    )
