"""Reading records: what becomes of them, and problems that name a place but never a value."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from structlog.testing import capture_logs

from node_agent.data.datasets import DataSetSpec
from node_agent.data.headers import check_header
from node_agent.data.records import DataProblem, Records, read_records
from node_agent.sources.choice import source_of
from node_agent.tasks.tabular_config import Feature

AGE = Feature(column="age", center=50.0, scale=10.0)
MALE = Feature(column="sex", category="Male", center=0.5, scale=0.5)
HEADER = "patient_id,age,sex,unused,disease\n"


def spec_of(source: Path, **change: Any) -> DataSetSpec:
    """A declaration of a file with an age and a sex."""
    return DataSetSpec.model_validate(
        {
            "name": "d",
            "source": str(source),
            "patient": "patient_id",
            "label": "disease",
            "declared_n": 10,
            "version": 1,
            "columns": {"age": "number", "sex": {"category": ["Male", "Female"]}},
            **change,
        }
    )


def csv_spec(folder: Path, rows: str, header: str = HEADER) -> DataSetSpec:
    """A declaration beside a CSV file of `rows`."""
    path = folder / "train.csv"
    path.write_text(header + rows, encoding="utf-8")
    return spec_of(path)


def problem(spec: DataSetSpec, *features: Feature) -> str:
    """What the hospital is told of a source that cannot be read."""
    with pytest.raises(DataProblem) as caught:
        read_records(spec, features or (AGE, MALE))
    assert caught.value.__cause__ is None
    return str(caught.value)


def remark(spec: DataSetSpec, rows: int) -> str:
    """What it is told of a row that is left out beside `rows` that are not."""
    records = read_records(spec, (AGE, MALE))
    assert len(records.labels) == len(records.features) == len(records.patients) == rows
    return records.remark


def test_csv_becomes_scaled_features(tmp_path: Path) -> None:
    """Numbers and categories are scaled, clipped at 3 and ordered as the job's features."""
    spec = csv_spec(tmp_path, "a,60,Male,,1\nb, 5 ,Female,x,0\nc,1e3,Male,,1.0\n")
    records = read_records(spec, [MALE, AGE])
    assert records.features.dtype == records.labels.dtype == np.float32
    assert records.features.tolist() == [[1, 1], [-1, -3], [1, 3]]
    assert records.labels.tolist() == [1, 0, 1]
    assert records.patients.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("end", "cell"),
    [("\n", '"x\ny"'), ("\n", "x\ry"), ("\r\n", '"x\r\ny"'), ("\r", '"x\ry"'), ("\r", "x\ny")],
)
@pytest.mark.parametrize("before", ["", "\ufeff", "END", "ENDEND"])
def test_lines_end_as_the_header_does(tmp_path: Path, end: str, cell: str, before: str) -> None:
    """The other mark is in no cell's way, quoted or not, and ends no row."""
    lines = ["patient_id,age,sex,unused,disease", f"a,60,Male,{cell},1", "b,50,Female,,0"]
    path = tmp_path / "train.csv"
    path.write_bytes((before.replace("END", end) + "".join(line + end for line in lines)).encode())
    spec = spec_of(path)
    check_header(spec)
    records = read_records(spec, (AGE, MALE))
    assert records.features.tolist() == [[1, 1], [0, -1]]
    assert records.remark == ""
    assert set(next(source_of(spec).pieces("patient_id"))) == {"a", "b"}


def test_rows_of_one_patient_share_an_index(tmp_path: Path) -> None:
    """The unit is the patient, whatever the order of rows and the spaces around an id."""
    spec = csv_spec(tmp_path, "p,60,Male,,1\nq,50,Male,,1\n p ,40,Male,,0\n")
    records = read_records(spec, [AGE])
    assert records.patients.dtype == np.int64
    assert records.patients.tolist() == [0, 0, 1]


def test_rows_of_a_patient_beyond_the_maximum_are_left_out(tmp_path: Path) -> None:
    """Complete ones alone count; other patients lose nothing."""
    rows = "p,51,Male,,1\nq,52,Male,,1\np,,Male,,1\np,53,Male,,0\nq,54,Male,,0\np,55,Male,,1\n"
    spec = csv_spec(tmp_path, rows + "r,56,Male,,1\n")
    with capture_logs() as logs:
        records = read_records(spec_of(spec.source, rows_per_patient_max=2), [AGE])
    ages = [round(float(x) * 10 + 50) for x in records.features[:, 0]]
    assert records.patients.tolist() == [0, 0, 1, 1, 2]
    assert set(ages[:2]) < {51, 53, 55}
    assert (set(ages[2:4]), ages[4]) == ({52, 54}, 56)
    assert all(
        label == (age not in (53, 54)) for age, label in zip(ages, records.labels, strict=True)
    )
    assert logs == [
        {
            "event": "records_read",
            "log_level": "info",
            "data_set": "d",
            "rows_left_out": 1,
            "rows_beyond_patient_max": 1,
        }
    ]


@pytest.mark.parametrize("rows_max", [1, 2, 50, 1000])
def test_the_order_of_the_source_decides_nothing(tmp_path: Path, rows_max: int) -> None:
    """Bit for bit: which rows of a patient count and in which order they are added. A database's
    order follows from all rows, so that one patient more would change others' parts of a sum."""
    lines = [f"p{n % 7},{20 + n % 60},Male,,{n % 2}\n" for n in range(2000)]
    lines += [f"q,50,Male,,{label}\n" for label in (0, 1)]  # which differ in the label alone

    def read(order: list[str]) -> list[bytes]:
        spec = csv_spec(tmp_path, "".join(order))
        records = read_records(spec_of(spec.source, rows_per_patient_max=rows_max), [AGE, MALE])
        return [x.tobytes() for x in (records.features, records.labels, records.patients)]

    shuffled = Random(1)
    expected = read(lines)
    for _ in range(5):
        shuffled.shuffle(lines)
        assert read(lines) == expected


def test_rows_with_the_same_part_of_a_digest_have_an_order_of_their_own(tmp_path: Path) -> None:
    """These two were searched for: the first 8 bytes of the digests of what training sees of them
    are the same, so that an order by those would leave it to the source which of them counts."""
    one = "p,1.351729393005371,1.760091781616211,1.2776598930358887,0\n"
    other = "p,1.0958070755004883,1.199819564819336,1.8915972709655762,1\n"
    features = [Feature(column=name, center=0.0, scale=1.0) for name in "abc"]

    def read(rows: str) -> Records:
        path = tmp_path / "d.csv"
        path.write_text(f"patient_id,a,b,c,disease\n{rows}")
        columns = dict.fromkeys("abc", "number")
        return read_records(spec_of(path, columns=columns, rows_per_patient_max=1), features)

    both = read(one + other)
    assert both.features.tobytes() == read(other + one).features.tobytes()
    digests = {
        blake3(np.append(found.features[0], found.labels[0]).tobytes()).digest(8)
        for found in (read(one), read(other))
    }
    assert len(digests) == 1, "they are the rows that were searched for"
    assert read(one).features.tobytes() != read(other).features.tobytes()


def test_which_rows_count_follows_no_value(tmp_path: Path) -> None:
    """Neither the smallest nor the largest are kept: what is learned of a patient is not bent."""
    ages = [(n, 21 + (7 * n + k) % 59 + n / 1000) for n in range(100) for k in range(59)]
    spec = csv_spec(tmp_path, "".join(f"p{n},{age},Male,,1\n" for n, age in ages))
    records = read_records(spec_of(spec.source, rows_per_patient_max=5), [AGE])
    assert len(records.features) == 500
    # Ages have mean 50 and deviation 17, so that the mean of 500 is within 0.8 of it as a rule.
    assert abs(10 * float(records.features.mean())) < 4


def test_a_patient_may_have_1000_rows_unless_the_steward_says_otherwise(tmp_path: Path) -> None:
    """The default of `rows_per_patient_max`; no row of another patient is touched."""
    spec = csv_spec(tmp_path, "p,60,Male,,1\n" * 1200 + "q,60,Male,,0\n" * 3)
    patients = read_records(spec, [AGE]).patients
    assert np.bincount(patients).tolist() == [1000, 3]


def test_incomplete_rows_are_left_out(tmp_path: Path) -> None:
    """A row without patient, label or a used cell is dropped; an unused empty cell is no matter."""
    rows = ",60,Male,,1\nb,,Male,,1\nc,60,NA,,1\nd,60,Male,,\ne,nan,Male,,0\nf,60,Male,,0\n"
    records = read_records(csv_spec(tmp_path, rows), [AGE, MALE])
    assert records.patients.tolist() == [0]
    assert records.labels.tolist() == [0]


def test_cell_of_an_unused_column_does_not_matter(tmp_path: Path) -> None:
    """A declared column that the job does not use is not read."""
    records = read_records(csv_spec(tmp_path, "a,60,???,,1\n"), [AGE])
    assert records.features.tolist() == [[1]]


def test_a_declared_category_wins_over_a_missing_mark(tmp_path: Path) -> None:
    """Where the steward declares NA as a category, it is one."""
    spec = csv_spec(tmp_path, "a,60,NA,,1\nb,60,Male,,1\n")
    spec = spec_of(spec.source, columns={"age": "number", "sex": {"category": ["Male", "NA"]}})
    assert read_records(spec, [MALE]).features.tolist() == [[-1], [1]]


@pytest.mark.parametrize("cell", ["s3cret77", "6_777", "inf", "1e999", "0x77", "7,7"])
def test_a_row_with_no_number_is_left_out_and_its_value_not_repeated(
    tmp_path: Path, cell: str
) -> None:
    """Its column and its row are named, for the hospital; the other rows count."""
    text = remark(csv_spec(tmp_path, f'a,60,Male,,1\nb,"{cell}",Male,,0\n'), rows=1)
    assert text == "column 'age' is not a number in 1 row, first in row 2"


def test_a_row_with_an_undeclared_category_is_left_out(tmp_path: Path) -> None:
    """How many there are is said, and where the first one is."""
    rows = "a,60,s3cret,,1\nb,60,Male,,0\nc,60,male,,0\n"
    text = remark(csv_spec(tmp_path, rows), rows=1)
    assert text == "column 'sex' is none of the declared categories in 2 rows, first in row 1"


@pytest.mark.parametrize("label", ["77", "-77", "0.77", "yes77"])
def test_a_row_with_a_label_other_than_0_and_1_is_left_out(tmp_path: Path, label: str) -> None:
    """Labels are 0 or 1."""
    text = remark(csv_spec(tmp_path, f"a,60,Male,,1\nb,60,Male,,{label}\n"), rows=1)
    assert text.startswith("column 'disease' is ")
    assert "77" not in text


def test_missing_and_repeated_columns_are_named(tmp_path: Path) -> None:
    """Every declared column must stand in the header once, used or not."""
    text = problem(csv_spec(tmp_path, "a,60,1\n", "patient_id,age,disease\n"), AGE)
    assert "column 'sex' is missing" in text
    spec = csv_spec(tmp_path, "a,60,60,Male,1\n", "patient_id,age,age,sex,disease\n")
    assert "column 'age' stands 2 times" in problem(spec)


def test_a_row_of_more_or_fewer_cells_is_left_out(tmp_path: Path) -> None:
    """Wherever it stands; rows are counted with it."""
    rows = "a,60,Male,,1\nb,60,Male,s3cret,0,1\nc\nd,6_0,Male,,1\n"
    assert remark(csv_spec(tmp_path, rows), rows=1) == (
        "more or fewer cells than the header in 2 rows, first in row 2; "
        "column 'age' is not a number in 1 row, first in row 4"
    )


def test_a_long_text_in_a_row_costs_no_other_row(tmp_path: Path) -> None:
    """Longer than any buffer, with line breaks in it, in a column that nobody uses."""
    note = '"' + "a long note\n" * 200_000 + '"'
    assert remark(csv_spec(tmp_path, f"a,60,Male,{note},1\nb,60,Male,,0\n"), rows=2) == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER.encode(), ""),
        (HEADER.encode() + b"a,60,,,1\n", ""),
        (HEADER.encode() + b"a,60,\xff\xfe,,1\n", "; column 'sex' is neither text nor a whole"),
        (HEADER.encode() + b"\xff,60,Male,,1\n", "; column 'patient_id' is neither text"),
    ],
)
def test_a_file_without_usable_rows_gives_none(tmp_path: Path, content: bytes, said: str) -> None:
    """A bare header, no complete row, another encoding: the attempt releases noise."""
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    text = remark(spec_of(path), rows=0)
    assert f"has no row that can be used: what is released is noise alone{said}" in text


def test_an_empty_file_is_a_problem(tmp_path: Path) -> None:
    """It has no column either."""
    (tmp_path / "train.csv").touch()
    assert "is empty" in problem(spec_of(tmp_path / "train.csv"))


def test_absent_file_is_a_problem(tmp_path: Path) -> None:
    """A source that is not there is named."""
    assert "does not exist" in problem(spec_of(tmp_path / "no.csv"))
    assert "does not exist" in problem(spec_of(tmp_path / "no.parquet"))


def parquet(folder: Path, **columns: Any) -> DataSetSpec:
    """A declaration beside a Parquet file; columns not given are good."""
    path = folder / "train.parquet"
    good = {
        "patient_id": pa.array([7, 8, 7, None]),
        "age": pa.array([60.0, None, 40.0, 50.0]),
        "sex": pa.array(["Male", "Male", "Female", "Male"]).dictionary_encode(),
        "disease": pa.array([True, False, False, True]),
    }
    pq.write_table(pa.table({**good, **columns}), path)
    return spec_of(path)


def test_parquet_reads_like_csv(tmp_path: Path) -> None:
    """Typed columns, dictionaries, nulls and true/false labels."""
    records = read_records(parquet(tmp_path), [AGE, MALE])
    assert records.features.tolist() == [[1, 1], [-1, -1]]
    assert records.labels.tolist() == [1, 0]
    assert records.patients.tolist() == [0, 0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_texts_of_a_parquet_file_are_texts_however_they_are_kept(
    tmp_path: Path, kind: pa.DataType
) -> None:
    """What is not UTF-8 among them is no cell, and ends no reading."""
    texts = pa.array([b"Male", None, b"\xff", "F\u00e9male".encode()]).cast(pa.binary_view())
    sex = texts.cast(kind, safe=False) if kind != pa.string_view() else texts.view(kind)
    ids = pa.array(["a", "b", "c", "d"]).cast(kind)
    spec = parquet(tmp_path, sex=sex, patient_id=ids, age=pa.array([1, 2, 3, 4]))
    check_header(spec)
    columns = {"age": "number", "sex": {"category": ["Male", "F\u00e9male"]}}
    records = read_records(spec_of(spec.source, columns=columns), [MALE])
    assert records.features.tolist() == [[1], [-1]]
    assert set(next(source_of(spec).pieces("patient_id"))) == {"a", "b", "c", "d"}


def test_rows_of_a_parquet_file_that_read_otherwise_are_left_out(tmp_path: Path) -> None:
    """A cell, or a whole column of another type; also one whose values Python cannot hold."""
    text = remark(parquet(tmp_path, age=pa.array([1.0, np.inf, 1.0, 1.0])), rows=2)
    assert text == "column 'age' is not a number in 1 row, first in row 2"
    for name in ("sex", "patient_id"):
        text = remark(parquet(tmp_path, **{name: pa.array([1.5, 2.5, 1.5, 1.5])}), rows=0)
        assert f"column {name!r} is neither text nor a whole number in 4 rows" in text
    cells = pa.array([b"Male", b"\xff", b"Male", b"Male"]).cast(pa.string(), safe=False)
    text = remark(parquet(tmp_path, sex=cells, age=pa.array([1, 2, 3, 4])), rows=2)
    assert text == "column 'sex' is neither text nor a whole number in 1 row, first in row 2"
    far = pa.array([1, 2**60, 3, 4], pa.timestamp("ms"))
    assert "column 'age' is not a number in 4 rows" in remark(parquet(tmp_path, age=far), rows=0)


def test_what_is_no_parquet_file_is_a_problem(tmp_path: Path) -> None:
    """As a whole."""
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 s3cret")
    assert "not a Parquet file" in problem(spec_of(path))
