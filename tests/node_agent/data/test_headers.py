"""Column names of a source, read without its rows, and as the reader of the rows finds them."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from node_agent.data.datasets import DataSetSpec
from node_agent.data.headers import HEADER_BYTES, WrongHeader, check_header
from tests.node_agent.samples import data_set


def spec_of(path: Path) -> DataSetSpec:
    """The sample's declaration: patient_id, age and disease."""
    return data_set(source=str(path))


@pytest.mark.parametrize(
    "header",
    [
        b"patient_id,age,disease",
        b"\xef\xbb\xbfpatient_id,age,disease",
        b"\n\r\npatient_id,age,disease\r",
        b'disease,"age","patient_id","a ""quoted""\nname"',
        "größe,age,disease,patient_id".encode(),
    ],
)
def test_a_header_that_the_reader_takes_passes(tmp_path: Path, header: bytes) -> None:
    """Byte order mark, empty lines, quotes and line ends are read as pyarrow reads them."""
    path = tmp_path / "train.csv"
    path.write_bytes(header + b"\n")
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
        assert {"patient_id", "age", "disease"} <= set(reader.schema.names)
    check_header(spec_of(path))


def test_a_parquet_file_is_looked_at_by_its_schema(tmp_path: Path) -> None:
    """As a CSV file; another file under that name is refused too."""
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"patient_id": [1], "age": [2.0], "disease": [1]}), path)
    check_header(spec_of(path))
    pq.write_table(pa.table({"id": [1], "age": [2.0], "disease": [1]}), path)
    with pytest.raises(WrongHeader, match="column 'patient_id' is missing"):
        check_header(spec_of(path))
    path.write_bytes(b"patient_id,age,disease\n")
    with pytest.raises(WrongHeader, match="not a Parquet file"):
        check_header(spec_of(path))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("age", pa.array([19000], pa.date32()), "'age' holds dates, times or something else"),
        ("disease", pa.array([b"1"]), "'disease' holds dates, times or something else"),
        (
            "patient_id",
            pa.array([1.0]),
            "'patient_id' holds numbers with fractions",
        ),
        ("patient_id", pa.array([[1]]), "'patient_id' holds dates, times or something else"),
    ],
)
def test_a_type_of_which_no_cell_can_be_read_is_told_before_the_data_is_open(
    tmp_path: Path, column: str, values: pa.Array, said: str
) -> None:
    """Found later, each attempt on it would be charged."""
    path = tmp_path / "train.parquet"
    good = {"patient_id": pa.array([1]), "age": pa.array([2.0]), "disease": pa.array([True])}
    pq.write_table(pa.table({**good, column: values}), path)
    with pytest.raises(WrongHeader, match=said) as caught:
        check_header(spec_of(path))
    assert caught.value.reason == "SCHEMA_MISMATCH"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"patient_id;age;disease", "separated by semicolons: save the file with commas"),
        (b"patient_id\tage\tdisease", "separated by tabs"),
        ("patient_id,größe,disease".encode("latin-1"), "is not UTF-8: save the file as UTF-8"),
    ],
)
def test_what_a_spreadsheet_made_of_the_file_is_said(
    tmp_path: Path, header: bytes, said: str
) -> None:
    """Beside the columns that are missing for it."""
    path = tmp_path / "train.csv"
    path.write_bytes(header + b"\n1;2;1\n")
    with pytest.raises(WrongHeader, match=said):
        check_header(spec_of(path))


@pytest.mark.parametrize("width", [10, HEADER_BYTES - 40, HEADER_BYTES, HEADER_BYTES + 1])
@pytest.mark.parametrize("rows", [b"", b"\n1,2,3,4\n", b"\n" + b"1,2,3,4\n" * 20_000])
def test_a_header_of_any_length_is_read_whole(tmp_path: Path, width: int, rows: bytes) -> None:
    """Also where it ends at the end of what is read at first, or within a quoted name."""
    path = tmp_path / "train.csv"
    for name in (b"x" * width, b'"' + b"x\n" * (width // 2) + b'"'):
        path.write_bytes(b"patient_id,age," + name + b",disease" + rows)
        check_header(spec_of(path))
        path.write_bytes(b"patient_id,age," + name + rows)
        with pytest.raises(WrongHeader, match="column 'disease' is missing"):
            check_header(spec_of(path))


def test_all_that_is_wrong_with_a_source_is_told_at_once(tmp_path: Path) -> None:
    """Each missing column, and the opt-out list beside a source that is missing itself."""
    path = tmp_path / "train.csv"
    path.write_text("age,id,id\n")
    spec = data_set(source=str(path), opt_out=str(tmp_path / "gone.txt"))
    with pytest.raises(WrongHeader) as caught:
        check_header(spec)
    assert caught.value.reason == "SCHEMA_MISMATCH"
    said = str(caught.value)
    assert "column 'disease' is missing, column 'patient_id' is missing in" in said
    assert "gone.txt" in said
    path.unlink()
    with pytest.raises(WrongHeader) as caught:
        check_header(spec)
    assert caught.value.reason == "SOURCE_MISSING"
    assert "gone.txt" in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write to it, and the agent looks often; neither as source nor as list."""
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(WrongHeader, match="is no plain file") as refused:
        check_header(spec_of(tmp_path / "pipe.csv"))
    assert refused.value.reason == "SOURCE_UNREADABLE"
    source = tmp_path / "s.csv"
    source.write_text("patient_id,age,disease\n")
    listed = data_set(source=str(source), opt_out=str(tmp_path / "pipe.csv"))
    with pytest.raises(WrongHeader, match="the opt-out list, is no plain file") as refused:
        check_header(listed)
    assert refused.value.reason == "OPT_OUT_UNREADABLE"
