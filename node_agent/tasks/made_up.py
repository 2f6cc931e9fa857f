"""Made-up records of a data set's form, by which an attempt is rehearsed before data is opened."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node_agent.datasets import DataSetSpec

REHEARSED_ROWS_MAX: Final = 20_000
"""Beyond it the time is taken in proportion."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is made up: as many patients as are declared, with one record each but for one, who
    has as many as count. So the time that is taken from it holds whoever is in the data.

    Attributes:
        patients: how many.
        of_one: records of the one.
        share: the whole over what is made up; 1 where nothing is left out.
    """

    patients: int
    of_one: int
    share: float

    @classmethod
    def of(cls, data_set: DataSetSpec, declared_n: int) -> "Size":
        """For a data set of `declared_n` patients."""
        whole = declared_n - 1 + data_set.rows_per_patient_max
        rows = min(whole, REHEARSED_ROWS_MAX)
        of_one = max(1, data_set.rows_per_patient_max * rows // whole)
        return cls(rows - of_one + 1, of_one, whole / rows)


def made_up(path: Path, data_set: DataSetSpec, size: Size) -> DataSetSpec:
    """Write a file of the declared columns, with nothing of the real one in it; the declaration by
    which it reads."""
    columns: list[str] = [data_set.patient, data_set.label]
    values: list[str] = ["", "0"]
    for name, kind in data_set.columns.items():
        if name not in columns:
            columns.append(name)
            values.append("0" if kind == "number" else kind.category[0])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number in (*range(size.patients), *[0] * (size.of_one - 1)):
            writer.writerow([f"p{number}", *values[1:]])
    return data_set.model_copy(
        update={"source": path, "database": None, "consent": None, "opt_out": None}
    )


def query_s(data_set: DataSetSpec) -> float:
    """Seconds that asking a database adds, as the steward declares them: no row is read to know."""
    return data_set.database.read_s if data_set.database is not None else 0.0
