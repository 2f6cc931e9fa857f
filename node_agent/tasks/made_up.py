"""Made-up records of a data set's form, by which an attempt is rehearsed before data is opened."""

import csv
from pathlib import Path
from typing import Final

from node_agent.datasets import DataSetSpec

REHEARSED_ROWS_MAX: Final = 20_000
"""Beyond it the time is taken in proportion."""


def made_up(path: Path, data_set: DataSetSpec, rows: int) -> DataSetSpec:
    """Write a file of the declared columns, one record a patient, with nothing of the real one in
    it; the declaration by which it reads."""
    columns: list[str] = [data_set.patient, data_set.label]
    values: list[str] = ["", "0"]
    for name, kind in data_set.columns.items():
        if name not in columns:
            columns.append(name)
            values.append("0" if kind == "number" else kind.category[0])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number in range(rows):
            writer.writerow([f"p{number}", *values[1:]])
    return data_set.model_copy(
        update={"source": path, "database": None, "consent": None, "opt_out": None}
    )


def query_s(data_set: DataSetSpec) -> float:
    """Seconds that asking a database adds, as the steward declares them: no row is read to know."""
    return data_set.database.read_s if data_set.database is not None else 0.0
