"""Records of a data set as arrays, read in the worker only (numpy loads here).

A problem names the file, the column and the row, never what stands there, and never leaves the
hospital: `DataProblem` is no error of `protos.errors`, so nothing can send it by accident.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog
from blake3 import blake3
from numpy.typing import NDArray

from node_agent.data.consent import (
    ID_CHARACTERS_MAX,
    opted_out_of,
    perhaps_listed,
    refusals,
    spelling,
)
from node_agent.data.datasets import CategoryColumn, ColumnType, DataSetSpec
from node_agent.sources.choice import source_of
from node_agent.sources.problems import DataProblem
from node_agent.sources.source import MISSING, Table, text_of
from node_agent.tasks.tabular_config import FEATURE_LIMIT, Feature

__all__ = ["DataProblem", "Records", "feature_matrix", "read_records"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Records:
    """Complete rows, in an order that follows from what stands in them, patient after patient.

    Attributes:
        features: (rows, F) float32, scaled and clipped.
        labels: (rows,) float32 of 0 and 1.
        patients: (rows,) int64, 0 to P - 1, ascending; equal for rows of one patient, whose ids
            differ in no more than `node_agent.data.consent.spelling` passes over.
        remark: what was left out because it does not read as declared, for the hospital's eyes;
            names columns and rows and holds no value; empty where there is nothing to say.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.float32]
    patients: NDArray[np.int64]
    remark: str = ""


def read_records(spec: DataSetSpec, features: Sequence[Feature]) -> Records:
    """Read the columns that `features` use; rows that lack any of them are left out.

    So are rows with a cell that does not read as declared, or with too few or too many: whether an
    attempt gives an update must not hang on one patient's record, which no budget pays for. With
    no row left there are none, and training is noise alone. Patients who did not consent or opted
    out are left out before any other cell of theirs is looked at. A row without a patient is left
    out too: nobody's budget would pay for it. So are a patient's complete rows beyond
    `rows_per_patient_max`. How many were left out goes to this machine's log only.

    The source's order decides nothing: a database gives rows in an order that follows from all of
    them, so that one patient more would change which rows of others count, and in which order
    they are added up.

    Raises:
        DataProblem: the source as a whole cannot be read, or lacks a declared column; or the
            opt-out list cannot.
    """
    columns = list(dict.fromkeys(feature.column for feature in features))
    allowed = _allowed(spec, columns)
    table, unread = allowed.table, allowed.unread
    read = _Reading(table, unread)
    patients = read.patients(spec.patient)
    labels = read.labels(spec.label)
    values: dict[str, NDArray[Any]] = {}
    complete = _is_there(patients) & ~np.isnan(labels)
    for column in columns:
        values[column] = read.declared(column, spec.columns[column])
        complete &= ~_is_absent(values[column])
    matrix = feature_matrix(features, {name: v[complete] for name, v in values.items()})
    outcomes = labels[complete].astype(np.float32)
    numbered = _numbered([p or "" for p, used in zip(patients, complete, strict=True) if used])
    order = _own_order(numbered, matrix, outcomes)
    within = _ranks(numbered[order]) < spec.rows_per_patient_max
    kept = order[within]
    log.info(
        "records_read",
        data_set=spec.name,
        rows_left_out=int((~complete).sum()) + len(table.no_rows),
        rows_beyond_patient_max=int((~within).sum()),
    )
    remark = unread.said()
    if not len(kept):
        nothing = f"{spec.source} has no row that can be used: what is released is noise alone"
        remark = f"{nothing}; {remark}" if remark else nothing
    if remark:
        log.warning("rows_not_as_declared", data_set=spec.name, detail=remark)
    return Records(
        features=matrix[kept],
        labels=outcomes[kept],
        patients=numbered[kept],
        remark=remark,
    )


class _Unread:
    """What did not read as declared: for each kind how often, and where first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}

    def note(self, what: str, row: int, times: int = 1) -> None:
        """Count it once more."""
        count, first = self._found.get(what, (0, row))
        self._found[what] = count + times, first

    def said(self) -> str:
        """A sentence without any value; empty where all was read."""
        return "; ".join(
            f"{what} in {count} {'row' if count == 1 else 'rows'}, first in row {first}"
            for what, (count, first) in self._found.items()
        )


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Rows of patients who may be used.

    Attributes:
        unread: for what does not read as declared.
        listed: ids on the opt-out list.
        opted_out: patients among the records who are on it.
        perhaps_listed: further ones whom a word of it names.
    """

    table: Table
    unread: _Unread
    listed: int = 0
    opted_out: int = 0
    perhaps_listed: int = 0


def _allowed(spec: DataSetSpec, columns: Sequence[str]) -> _Allowed:
    """The rows of patients who may be used, with patient, label and these columns; how many others
    there are is for the local log."""
    consent = [spec.consent.column] if spec.consent is not None else []
    wanted = list(dict.fromkeys([spec.patient, spec.label, *columns, *consent]))
    table = source_of(spec).read(wanted, spec.declared_columns)
    unread = _Unread()
    if table.no_rows:
        what = "more or fewer cells than the header"
        unread.note(what, table.no_rows[0], len(table.no_rows))
    if table.torn:
        what = "quotation marks do not pair, so that lines after it may be missing,"
        unread.note(what, table.torn[0], len(table.torn))
    if spec.consent is None and spec.opt_out is None:
        return _Allowed(table, unread)
    patients = _Reading(table, _Unread()).patients(spec.patient)
    refused = refusals(spec, table)
    for number in refused.unknown:
        unread.note("whose consent is withdrawn cannot be told", number)
    listed = opted_out_of(spec)
    ids = frozenset(one for one in patients if one is not None)
    opted_out, perhaps = ids & listed, ids & perhaps_listed(listed)
    log.info(
        "patients_excluded",
        data_set=spec.name,
        without_consent=len(refused.patients),
        opted_out=len(opted_out | perhaps),
    )
    excluded = refused.patients | opted_out | perhaps
    kept = [row for row, patient in enumerate(patients) if patient not in excluded]
    cells = {name: [of[row] for row in kept] for name, of in table.columns.items()}
    left = replace(table, columns=cells, numbers=[table.numbers[row] for row in kept])
    return _Allowed(left, unread, len(listed), len(opted_out), len(perhaps))


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


def _numbered(patients: Sequence[str]) -> NDArray[np.int64]:
    """(rows,) each patient's place among them by name."""
    index = {name: number for number, name in enumerate(sorted(set(patients)))}
    return np.array([index[name] for name in patients], dtype=np.int64)


def _own_order(
    patients: NDArray[np.int64], features: NDArray[np.float32], labels: NDArray[np.float32]
) -> NDArray[np.int64]:
    """(rows,) the rows by patient, and a patient's by a digest of what training sees of them: in
    no order that a value has, so that those that are left out are not the largest, say."""
    content = np.column_stack([features, labels])
    # Whole digests: of a part two rows with the same one can be made, which the source orders.
    keys = [
        (number, blake3(row.tobytes()).digest())
        for number, row in zip(patients.tolist(), content, strict=True)
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _ranks(patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """(rows,) how many rows of the same patient stand before each row; `patients` ascending."""
    counts = np.bincount(patients)
    return np.arange(len(patients)) - np.repeat(np.cumsum(counts) - counts, counts)


class _Reading:
    """A table's cells by their declared kinds. What does not read so is absent, and noted."""

    def __init__(self, table: Table, unread: _Unread) -> None:
        self._table = table
        self._unread = unread

    def declared(self, column: str, declared: ColumnType) -> NDArray[Any]:
        """(rows,) numbers, NaN where absent; of a category texts, None where absent."""
        if isinstance(declared, CategoryColumn):
            return np.array(self._categories(column, declared), dtype=object)
        return self.numbers(column)

    def texts(self, column: str, never_missing: frozenset[str] = frozenset()) -> list[str | None]:
        """(rows,) trimmed, None where absent. Whole numbers read as their digits."""
        missing = MISSING - never_missing
        texts: list[str | None] = []
        for number, cell in self._cells(column):
            text = text_of(cell)
            if text is None and cell is not None:
                self._unread.note(f"column {column!r} is neither text nor a whole number", number)
            texts.append(None if text in missing else text)
        return texts

    def patients(self, column: str) -> list[str | None]:
        """(rows,) ids by their `spelling`, None where absent: two spellings are one patient."""
        known: dict[str | None, str | None] = {None: None}
        ids = self.texts(column)
        for text in set(ids) - {None}:
            known[text] = spelling(text or "") or None
        none = [text is not None and known[text] is None for text in ids]
        long = [text is not None and len(text) > ID_CHARACTERS_MAX for text in ids]
        self._note(column, long, "is longer than an id")
        cut = [bad and not too_long for bad, too_long in zip(none, long, strict=True)]
        self._note(
            column, cut, "is blank or means none, or a number cut to powers of ten, and no id"
        )
        return [known[text] for text in ids]

    def numbers(self, column: str) -> NDArray[np.float64]:
        """(rows,) finite, NaN where absent."""
        found = [_number(cell) for _, cell in self._cells(column)]
        self._note(column, [one is None for one in found], "is not a number")
        return np.array([math.nan if one is None else one for one in found], dtype=np.float64)

    def labels(self, column: str) -> NDArray[np.float64]:
        """(rows,) 0 or 1, NaN where absent."""
        labels = self.numbers(column)
        wrong = ~np.isnan(labels) & (labels != 0) & (labels != 1)
        self._note(column, wrong, "is a label other than 0 and 1")
        return np.where(wrong, math.nan, labels)

    def _categories(self, column: str, declared: CategoryColumn) -> list[str | None]:
        known = frozenset(declared.category)
        texts = self.texts(column, known)
        wrong = [text is not None and text not in known for text in texts]
        self._note(column, wrong, "is none of the declared categories")
        return [None if bad else text for text, bad in zip(texts, wrong, strict=True)]

    def _cells(self, column: str) -> Iterator[tuple[int, Any]]:
        return zip(self._table.numbers, self._table.columns[column], strict=True)

    def _note(self, column: str, wrong: Iterable[bool | np.bool_], what: str) -> None:
        for number, bad in zip(self._table.numbers, wrong, strict=True):
            if bad:
                self._unread.note(f"column {column!r} {what}", number)


def _number(cell: Any) -> float | None:
    """NaN where the cell is empty, None where it is no finite number."""
    # An underscore is legal in a Python number, in a hospital's table it is a slip.
    text = cell.strip() if isinstance(cell, str) else cell
    if text is None or (isinstance(text, str) and text in MISSING):
        return math.nan
    if isinstance(text, float) and math.isnan(text):
        return math.nan
    try:
        number = math.nan if isinstance(text, bytes) or "_" in str(text) else float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_absent(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(rows,) of numbers or of texts."""
    if values.dtype == object:
        return ~_is_there(values)
    return np.asarray(np.isnan(values))


def _is_there(texts: Iterable[str | None]) -> NDArray[np.bool_]:
    return np.array([text is not None for text in texts], dtype=bool)


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over a whole source, for the hospital's own eyes: each is a patient's data.

    Attributes:
        missing: column -> rows that lack it.
        complete: rows that lack nothing.
        patients: different patients in complete rows.
        labels: complete rows with the label 0, and with 1.
        unread: what does not read as declared and is left out; empty for nothing.
        listed: ids on the opt-out list.
        opted_out: patients among the records who are on it.
        perhaps_listed: further ones whom a word of it names; they are left out, too.
    """

    rows: int
    missing: dict[str, int]
    complete: int
    patients: int
    labels: tuple[int, int]
    unread: str
    listed: int
    opted_out: int
    perhaps_listed: int


def tally(spec: DataSetSpec) -> Tally:
    """Read every declared column and count, but of patients who may not be used.

    Raises:
        DataProblem: as `read_records`.
    """
    columns = [name for name in spec.columns if name not in (spec.patient, spec.label)]
    allowed = _allowed(spec, columns)
    table, unread = allowed.table, allowed.unread
    read = _Reading(table, unread)
    patients = read.patients(spec.patient)
    labels = read.labels(spec.label)
    absent = {spec.patient: ~_is_there(patients), spec.label: np.isnan(labels)}
    for column in columns:
        absent[column] = _is_absent(read.declared(column, spec.columns[column]))
    complete = ~np.logical_or.reduce(list(absent.values()))
    kept = labels[complete]
    return Tally(
        rows=len(labels) + len(table.no_rows),
        missing={name: int(lacking.sum()) for name, lacking in absent.items()},
        complete=int(complete.sum()),
        patients=len({patients[row] for row in np.flatnonzero(complete)}),
        labels=(int((kept == 0).sum()), int((kept == 1).sum())),
        unread=unread.said(),
        listed=allowed.listed,
        opted_out=allowed.opted_out,
        perhaps_listed=allowed.perhaps_listed,
    )
