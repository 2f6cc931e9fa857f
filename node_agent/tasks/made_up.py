"""Made-up records of a data set's form, by which an attempt is rehearsed before data is opened."""

import contextlib
import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node_agent.data.consent import opted_out_of, perhaps_listed
from node_agent.data.datasets import DataSetSpec

LIST_BYTES_MIN: Final = 1 << 16
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
    which it reads. Everybody consents; what the opt-out list takes is `listed_s`.

    Ids have a letter that is composed, which takes longest to compare.
    """
    cells = {data_set.patient: "", data_set.label: "0"}
    for name, kind in data_set.columns.items():
        cells.setdefault(name, "0" if kind == "number" else kind.category[0])
    if data_set.consent is not None:
        cells[data_set.consent.column] = data_set.consent.values[0]
    _, *others = cells.values()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(cells)
        for number in (*range(size.patients), *[0] * (size.of_one - 1)):
            writer.writerow([f"u\u0308-{number}", *others])
    # The local log tells which records were read.
    own = {"name": f"{data_set.name} (made up)", "source": path}
    return data_set.model_copy(update={**own, "database": None, "opt_out": None})


def listed_s(path: Path, data_set: DataSetSpec) -> float:
    """Seconds that an opt-out list takes to read, by a made-up one: of the real one's length, but
    for the next power of two, so that one id more on it does not show in the time."""
    if data_set.opt_out is None:
        return 0.0
    with contextlib.suppress(OSError):  # what is wrong with it is told where it is read
        length = max(data_set.opt_out.stat().st_size, LIST_BYTES_MIN)
        lines = (1 << (length - 1).bit_length()) // len(_line(0))
        with path.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, range(lines)))
        began_s = time.perf_counter()
        perhaps_listed(opted_out_of(data_set.model_copy(update={"opt_out": path})))
        return time.perf_counter() - began_s
    return 0.0


def _line(number: int) -> str:
    return f"-{number:09d}\n"


def query_s(data_set: DataSetSpec) -> float:
    """Seconds that asking a database adds, as the steward declares them: no row is read to know."""
    return data_set.database.read_s if data_set.database is not None else 0.0
