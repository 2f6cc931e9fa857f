"""Patients without consent, or on the opt-out list: not one of their cells is looked at."""

import csv
import sqlite3
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from structlog.testing import capture_logs

from node_agent.data.consent import opted_out_of, spelling
from node_agent.data.datasets import DataSetSpec, load_data_sets
from node_agent.data.headers import WrongHeader, check_header
from node_agent.data.overlaps import overlaps
from node_agent.data.records import DataProblem, Records, read_records
from node_agent.doctor.rows import check_rows
from node_agent.tasks.tabular_config import Feature
from tests.node_agent.test_worker import Bench

NOTHING = "has no row that can be used: what is released is noise alone"
AGE = Feature(column="age", center=50.0, scale=10.0)
CONSENT = {"column": "agreed", "values": ["yes", "1", "true"]}


def spec_of(source: Path, **change: Any) -> DataSetSpec:
    """A declaration of a file with an age."""
    return DataSetSpec.model_validate(
        {
            "name": "d",
            "source": str(source),
            "patient": "id",
            "label": "ill",
            "declared_n": 10,
            "version": 1,
            "columns": {"age": "number"},
            **change,
        }
    )


def csv_spec(folder: Path, rows: str, **change: Any) -> DataSetSpec:
    """A declaration beside a CSV file of `rows`."""
    path = folder / "train.csv"
    path.write_text(f"id,age,ill,agreed\n{rows}", encoding="utf-8")
    return spec_of(path, **change)


def ages(records: Records) -> list[int]:
    """Whose records were read, ascending."""
    return sorted(round(float(x) * 10 + 50) for x in records.features[:, 0])


def test_patients_without_consent_are_left_out_whole(tmp_path: Path) -> None:
    """One row without it leaves out all of a patient's; spaces do not count, letters do."""
    rows = "a,51,1,yes\nb,52,1,no\nc,53,1, yes \nc,54,1,no\nd,55,0,1\ne,56,0,YES\nf,57,0,\n"
    assert ages(read_records(csv_spec(tmp_path, rows, consent=CONSENT), [AGE])) == [51, 55]


@pytest.mark.parametrize(
    "row",
    ["c,54,1,no,moved away", "c,54,1,yes,moved away", "C,54,1", "c", " c ", "c,5,4,1,no", "3.0,"],
)
def test_who_is_named_in_a_row_of_another_shape_is_left_out(tmp_path: Path, row: str) -> None:
    """Where consent stands in it nobody knows, so that it may be the one that withdraws it."""
    rows = f"a,51,1,yes\nc,53,1,yes\n3,53,1,yes\n{row}\nc,55,0,yes\nd,56,0,yes\n"
    one = "3" if row == "3.0," else "c"
    spec = csv_spec(tmp_path, rows, consent=CONSENT)
    records = read_records(spec, [AGE])
    assert sorted(ages(records)) == ([51, 53, 55, 56] if one == "3" else [51, 53, 56])
    assert records.remark == "more or fewer cells than the header in 1 row, first in row 4"
    # Where nobody declares consent it is no more than a row that is left out.
    assert sorted(ages(read_records(csv_spec(tmp_path, rows), [AGE]))) == [51, 53, 53, 55, 56]


def test_a_row_leaves_out_no_more_than_one_patient(tmp_path: Path) -> None:
    """Ids that stand at other places are not asked: else one patient's records would decide whether
    others are used, which no clipping bounds."""
    rows = "51,61,1,yes\n52,62,1,yes\n53,63,0,yes\n54,51,1,no,52,53\n"
    assert ages(read_records(csv_spec(tmp_path, rows, consent=CONSENT), [AGE])) == [61, 62, 63]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (",54,1,no", "whose consent is withdrawn cannot be told in 1 row, first in row 2"),
        ("NA,54,1,no", "whose consent is withdrawn cannot be told in 1 row, first in row 2"),
        (",54,1,", ""),
        (",,,", ""),
        (",54,1,yes", ""),
        (
            ",54,1,no,x",
            "more or fewer cells than the header in 1 row, first in row 2; "
            "whose consent is withdrawn cannot be told in 1 row, first in row 2",
        ),
        (
            "moved,a,54,1,no",
            "more or fewer cells than the header in 1 row, first in row 2; "
            "whose consent is withdrawn cannot be told in 1 row, first in row 2",
        ),
    ],
)
def test_a_withdrawal_of_nobody_known_is_told_to_the_hospital(
    tmp_path: Path, row: str, said: str
) -> None:
    """Nobody is left out for it, as it cannot be everybody; an empty cell withdraws nothing."""
    spec = csv_spec(tmp_path, f"a,51,1,yes\n{row}\nb,52,0,yes\n", consent=CONSENT)
    records = read_records(spec, [AGE])
    assert ages(records) == [51, 52]
    assert records.remark == said


TORN = "quotation marks do not pair, so that lines after it may be missing, in 1 row, first in row"


@pytest.mark.parametrize(
    ("rows", "used", "remark"),
    [
        ('c,54,1,"no\na,51,1,no\nb,55,1,yes\n', [], f"{TORN} 4"),
        (
            'c,54,"1,no\nA,51,1,no\n',
            [52],
            f"more or fewer cells than the header in 1 row, first in row 4; {TORN} 4",
        ),
        ('c,54,1,"no\na,51,1,no\nd,56,1,"yes"\ne,57,0,yes\n', [52, 57], f"{TORN} 4"),
        ('c,54,1,"no\n\n  \n', [51, 52], ""),
        # A note whose marks were not doubled: ids that begin its lines are nobody's rows.
        ('d,56,1,"yes, asked about:\na\nb\nthe study "HEART""\n', [51, 52], ""),
        # Quotation marks that pair: lines of one cell, whatever stands in them.
        ('c,54,1,"no\na,51,1,no\n"\n', [51, 52], ""),
        # None that pairs in one line swallows nothing.
        ('"c" ,54,1,"yes" \n', [51, 52, 54], ""),
        ('\n"c" ,54,1,yes\n', [51, 52, 54], ""),
    ],
)
def test_a_line_that_an_open_quotation_mark_swallows_leaves_out_whom_it_names(
    tmp_path: Path, rows: str, used: list[int], remark: str
) -> None:
    """It may be the one that withdraws consent; a mark that is well closed takes nobody away."""
    before = "a,51,1,yes\nb,52,0,yes\nc,53,0,no\n"
    if '"c"' in rows:
        before = before.replace("no", "yes").replace("53", "54")
    records = read_records(csv_spec(tmp_path, before + rows, consent=CONSENT), [AGE])
    assert sorted(set(ages(records))) == used
    assert records.remark.removeprefix(f"{tmp_path / 'train.csv'} {NOTHING}; ") == remark


def test_an_attempt_gives_an_update_whatever_shape_a_withdrawal_has(tmp_path: Path) -> None:
    """Also where nobody is left: what is released then is noise."""
    bench = Bench(tmp_path)
    declared = {**bench.declared(), "consent": {"column": "ok", "values": ["yes"]}}
    assert bench.prepare(data_set=declared) == {"op": "prepared"}
    for row in ("a,60,1,no,x", "a", '"a', ",,,,,,", 'a,60,1,"no'):
        bench.source.write_text(f"patient_id,age,disease,ok\na,50,1,yes\n{row}\n")
        assert bench.train()["op"] == "trained"


def test_a_whole_number_withdraws_as_it_reads(tmp_path: Path) -> None:
    """SQLite keeps each cell's own type: 7.0 is no id to training, and withdraws 7's consent."""
    path = tmp_path / "r.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE records (id, age, ill, agreed)")
        rows = [(7, 51, 1, "yes"), (7.0, 52, 1, "no"), (8, 53, 1, "yes"), (8.5, 54, 1, "no")]
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", rows)
    query = tmp_path / "q.sql"
    query.write_text("SELECT * FROM records")
    change = {"database": {"url": f"sqlite:///{path}"}, "consent": CONSENT}
    records = read_records(spec_of(query, **change), [AGE])
    assert ages(records) == [53]
    assert "whose consent is withdrawn cannot be told in 1 row, first in row 4" in records.remark


def test_the_doctor_counts_nobody_who_may_not_be_used(tmp_path: Path) -> None:
    """What is shown to the hospital is of the patients that training reads."""
    rows = "a,51,1,yes\nb,,1,no\nc,53,0,yes\nd,,0,yes\n"
    spec = csv_spec(tmp_path, rows, consent=CONSENT)
    folder = {**spec.model_dump(mode="json", exclude_none=True), "opt_out": "out.txt"}
    (tmp_path / "out.txt").write_text("d\n")
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump({"data_sets": [folder]}))
    (declared,) = load_data_sets(tmp_path)
    found = check_rows(declared, tmp_path)
    assert "2 of 2 rows complete, of 2 patients" in found.found
    assert "label 0: 1, 1: 1; missing: nothing" in found.found


def test_consent_of_a_typed_column(tmp_path: Path) -> None:
    """True and 1 of a Parquet file read as they are written; null is no consent."""
    for agreed in ([True, False, None], [1, 0, None]):
        path = tmp_path / "train.parquet"
        columns = {"id": [1, 2, 3], "age": [51, 52, 53], "ill": [1, 0, 1], "agreed": agreed}
        pq.write_table(pa.table(columns), path)
        assert ages(read_records(spec_of(path, consent=CONSENT), [AGE])) == [51]


def test_patients_on_the_list_are_left_out(tmp_path: Path) -> None:
    """An id a line, spaces and empty lines do not count."""
    (tmp_path / "out.txt").write_text("\ufeffb\n\n  c \nunknown\n", encoding="utf-8")
    spec = csv_spec(tmp_path, "a,51,1,x\n b,52,1,x\nc,53,0,x\n", opt_out=str(tmp_path / "out.txt"))
    assert ages(read_records(spec, [AGE])) == [51]


SPELLINGS = pytest.mark.parametrize(
    ("listed", "recorded"),
    [
        ("2", "002"),
        ("002", "2"),
        ("2.0", "2"),
        ("\u200b002", "002"),
        ("Mu\u0308ller", "M\u00fcller"),
        ("ABC-7", "abc-7"),
        ("-7.0", "-7"),
        ("-7", "-07"),
        ("\u22127", "-7"),
        ("p\u20111", "p-1"),
        ("O\u2019Neill", "o'neill"),
        ("\x002", "2"),
        ("p1", "p1\x00"),
        ("ward  7", "ward 7"),
    ],
)


@SPELLINGS
def test_another_spelling_of_an_id_leaves_out_as_well(
    tmp_path: Path, listed: str, recorded: str
) -> None:
    """Programs change it on the way; every doubt leaves out."""
    (tmp_path / "out.txt").write_text(f"{listed}\n", encoding="utf-8")
    spec = csv_spec(tmp_path, f"{recorded},51,1,x\n3,52,1,x\n", opt_out=str(tmp_path / "out.txt"))
    assert ages(read_records(spec, [AGE])) == [52]


@SPELLINGS
def test_who_refuses_by_another_spelling_of_an_id_is_left_out_as_well(
    tmp_path: Path, listed: str, recorded: str
) -> None:
    """The records and the list know a patient by the same rule."""
    rows = f"{recorded},51,1,yes\n{listed},51,1,no\n3,52,1,yes\n"
    assert ages(read_records(csv_spec(tmp_path, rows, consent=CONSENT), [AGE])) == [52]


@SPELLINGS
def test_two_spellings_of_an_id_are_one_patient(tmp_path: Path, listed: str, recorded: str) -> None:
    """To clipping as to consent: else one row that says no would take several units' parts away."""
    rows = f"{recorded},51,1,yes\n3,52,1,yes\n{listed},53,1,yes\n\u200b,54,1,yes\n"
    records = read_records(csv_spec(tmp_path, rows), [AGE])
    assert ages(records) == [51, 52, 53]
    assert sorted(np.bincount(records.patients)) == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        '"002"',
        "002;2024-01-01",
        "001,002",
        "002\tx",
        "002  # by phone",
        "# of today",
        "#",
        "002|withdrawn",
        "'002'",
        "'002",
        "002'",
        "002 // by phone",
        "// 002",
        "002=no",
        "002\u2014by phone",
        "002 \u2013 by phone",
        "002\uff0cx",
        "002\uff1bx",
        "1.00235E+11",
        "002e+15",
    ],
)
def test_a_line_that_holds_more_than_an_id_stops_the_work(tmp_path: Path, line: str) -> None:
    """Before the data is open; the line's number is told and nothing of it."""
    (tmp_path / "out.txt").write_text(f"001\n{line}\n")
    spec = csv_spec(tmp_path, "002,51,1,x\n", opt_out=str(tmp_path / "out.txt"))
    with pytest.raises(WrongHeader, match=r"line 2 of .*holds more than an id") as caught:
        check_header(spec)
    assert caught.value.reason == "OPT_OUT_UNREADABLE"
    assert "002" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    "line",
    [
        *("002 2024-01-01", "\u00a02 withdrawn", "#002", "##2 x", "2  2", "- 2", "* 2", "\u2022 2"),
        *("7. 002", "7) 2", "ID: 2", "patient 2", "2: asked", "2.)", "(2)", "[2]", "`2`"),
        *("\u20182\u2019", "\u201c2\u201d", "\u201e2\u201c", "\xab2\xbb"),
    ],
)
def test_a_line_of_which_a_word_is_an_id_leaves_it_out(tmp_path: Path, line: str) -> None:
    """The rest may be none of it; the doctor says that there is such a line."""
    (tmp_path / "out.txt").write_text(f"{line}\n", encoding="utf-8")
    spec = csv_spec(
        tmp_path, "2,51,1,x\n2024,52,1,x\n3,53,0,x\n", opt_out=str(tmp_path / "out.txt")
    )
    check_header(spec)
    assert ages(read_records(spec, [AGE])) == [52, 53]
    entry = spec.model_dump(mode="json", exclude_none=True)
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump({"data_sets": [entry]}))
    found = check_rows(spec, tmp_path)
    assert found.result == "warning"
    assert "1 more are left out, as a line of the opt-out list has their id and more" in found.do


def test_an_id_of_several_words_or_with_a_mark_before_it_is_one(tmp_path: Path) -> None:
    """The whole line is an id as well; a mark inside an id is no separator."""
    (tmp_path / "out.txt").write_text("Ward 7\n#17\nO'Neill\nA/12//3\n12e5\n")
    rows = "ward 7,51,1,x\n#17,52,1,x\nO'NEILL,53,1,x\na/12//3,54,1,x\n12E5,54,1,x\nWard 8,55,0,x\n"
    spec = csv_spec(tmp_path, rows, opt_out=str(tmp_path / "out.txt"))
    assert ages(read_records(spec, [AGE])) == [55]


def test_a_number_that_was_cut_to_powers_of_ten_is_no_id(tmp_path: Path) -> None:
    """A spreadsheet writes several patients' long ids so: nobody knows whose row it is, nor whether
    they opted out."""
    rows = "1.00235E+11,51,1,yes\n1.00235E+11,52,1,no\n12E5,53,1,yes\n"
    records = read_records(csv_spec(tmp_path, rows, consent=CONSENT), [AGE])
    assert ages(records) == [53]
    assert (
        "column 'id' is blank or means none, or a number cut to powers of ten, and no id"
        in records.remark
    )
    assert "whose consent is withdrawn cannot be told in 1 row, first in row 2" in records.remark


@pytest.mark.parametrize(
    "long", ["0" * 10**6 + "x", "a" + "\u0301" * 10**5 + "\u0323" * 10**5, "7" * 1001]
)
def test_a_text_that_is_longer_than_an_id_is_none(tmp_path: Path, long: str) -> None:
    """At once: to compare its spellings would take so long that one patient's id ended an attempt.
    On the list it stops the work, as nobody can say whom it means."""
    began_s = time.process_time()
    spec = csv_spec(tmp_path, f"a,51,1,yes\n{long},52,1,yes\n", consent=CONSENT)
    records = read_records(spec, [AGE])
    assert ages(records) == [51]
    assert "column 'id' is longer than an id in 1 row, first in row 2" in records.remark
    (tmp_path / "out.txt").write_text(f"b\n{long}\n", encoding="utf-8")
    with pytest.raises(WrongHeader, match="line 2"):
        check_header(csv_spec(tmp_path, "a,51,1,x\n", opt_out=str(tmp_path / "out.txt")))
    assert time.process_time() - began_s < 5, "it took minutes"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("jos\u00e9", "jose\u200d\u0301"),
        ("p1", "p\u034f1"),
        ("p1", "p1\ufe0f"),
        ("12", "\u0660\u0661\u0662"),
        ("p1", "p\u0661"),
        ("A2", "a\u00b2"),
        ("p1", "p\x7f1"),
        ("p1", "p\x1f1"),
        ("p 1", "p\x0b1"),
        ("p1", "p\u28001"),
        ("-12", "\u2010\u0660\u0661\u0662"),
        ("0", "-0.0"),
        ("1/2", "\u00bd"),
        ("\u0130I1", "i\u01311"),
        ("\u0390", "\u0390".upper()),
        ("a\u03b0", "A\u03ab\u0301"),
        ("\u1fb7", "\u1fb7".title()),
    ],
)
def test_what_looks_the_same_is_one_id(one: str, other: str) -> None:
    """Invisible characters wherever they stand, digits of other scripts, letters of other forms."""
    assert spelling(one) == spelling(other)


def test_every_letter_is_one_id_in_capitals_and_in_each_composed_form() -> None:
    """Of all that Unicode has, between others; a list of names is often in capitals."""
    letters = (chr(one) for one in range(0x250, 0x2100) if chr(one).isalpha())
    for letter in letters:
        word = f"a{letter}b"
        forms = [word, word.upper(), word.lower(), word.title(), word.casefold()]
        forms += [unicodedata.normalize(form, word) for form in ("NFC", "NFD", "NFKC", "NFKD")]
        assert len(set(map(spelling, forms))) == 1, ascii(letter)


NONE = ("NA", "na", "N/a", "NaN", "NULL", "Null", "None", "none", "<NA>", "#N/A", "\uff4e\uff41")


def test_rows_of_whom_nobody_names_are_not_one_patients(tmp_path: Path) -> None:
    """Whatever a program has written for no id: as one patient they would be clipped together, and
    each of them would move that sum by more than the bound. A list of nobody lists nobody."""
    rows = "".join(f"{one},5{at % 10},1,yes\n" for at, one in enumerate(NONE))
    out = tmp_path / "out.txt"
    out.write_text("none\n", encoding="utf-8")
    spec = csv_spec(tmp_path, f"{rows}nona,40,1,yes\n", opt_out=str(out))
    records = read_records(spec, [AGE])
    assert ages(records) == [40]
    assert "column 'id' is blank or means none" in records.remark
    assert overlaps([spec, spec.model_copy(update={"name": "other"})])[0].kind == "same_file"
    other = tmp_path / "other"
    other.mkdir()
    beside = csv_spec(other, "".join(f"{one},50,1,yes\n" for one in NONE))
    assert overlaps([spec, beside.model_copy(update={"name": "other"})]) == []


@pytest.mark.parametrize(
    ("one", "other"), [("7", "-7"), ("7", "7.5"), ("-", ""), ("p1", "p 1"), ("p-1", "p1")]
)
def test_what_looks_different_are_two_ids(one: str, other: str) -> None:
    """A sign, a blank or a hyphen is a part of an id."""
    assert spelling(one) != spelling(other)


def test_a_carriage_return_in_a_note_names_nobody(tmp_path: Path) -> None:
    """A program that ends lines by a line feed writes one without quotation marks: what stands
    after it is the patient's own, and no row that leaves out whom it names."""
    path = tmp_path / "d.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "age", "ill", "agreed", "note"])
        writer.writerow(["a", "51", "1", "yes", "seen\rb\rc\r"])
        writer.writerows([["b", "52", "1", "yes", "well"], ["c", "53", "0", "yes", "\r"]])
    assert b"yes,seen\rb\rc" in path.read_bytes(), "it is not quoted"
    records = read_records(spec_of(path, consent=CONSENT), [AGE])
    assert ages(records) == [51, 52, 53]
    assert records.remark == ""


def test_a_header_that_swallows_a_withdrawal_is_told(tmp_path: Path) -> None:
    """Its last name opens a quotation mark."""
    path = tmp_path / "d.csv"
    rows = 'a,50,1,no,\na,51,1,yes,"x"\nb,52,1,yes,\n'
    path.write_text(f'id,age,ill,agreed,"note\n{rows}')
    records = read_records(spec_of(path, consent=CONSENT), [AGE])
    assert ages(records) == [52]
    assert "quotation marks do not pair" in records.remark


def test_the_longest_ids_are_compared_quickly() -> None:
    """Those that are ids are, whatever stands in them."""
    began_s = time.process_time()
    for one in ("0" * 999 + "x", "0" * 998 + ".0x"[:2], "a" + "\u0301" * 499 + "\u0323" * 499):
        assert spelling(one)
    assert spelling("0" * 1000) == "0"
    assert time.process_time() - began_s < 1


def test_no_other_cell_of_theirs_is_looked_at(tmp_path: Path) -> None:
    """A cell that would be remarked on is not, in the row of one who is left out; rows keep their
    numbers."""
    (tmp_path / "out.txt").write_text("c\n")
    rows = "a,51,1,yes\nb,s3cret,7,no\nc,s3cret,7,yes\n"
    change = {"consent": CONSENT, "opt_out": str(tmp_path / "out.txt")}
    records = read_records(csv_spec(tmp_path, rows + "d,s3cret,0,yes\n", **change), [AGE])
    assert ages(records) == [51]
    assert records.remark == "column 'age' is not a number in 1 row, first in row 4"
    assert "in 2 rows, first in row 2" in read_records(csv_spec(tmp_path, rows), [AGE]).remark


def test_the_local_log_tells_how_many_and_not_who(tmp_path: Path) -> None:
    """Patients, not rows; an id on the list that has no record is not counted."""
    (tmp_path / "out.txt").write_text("patient-c\npatient-z\n")
    rows = "patient-a,51,1,yes\npatient-b,52,1,no\npatient-b,52,1,no\npatient-c,53,1,yes\n"
    spec = csv_spec(tmp_path, rows, consent=CONSENT, opt_out=str(tmp_path / "out.txt"))
    with capture_logs() as logs:
        read_records(spec, [AGE])
    assert logs[0] == {
        "event": "patients_excluded",
        "log_level": "info",
        "data_set": "d",
        "without_consent": 1,
        "opted_out": 1,
    }
    assert "patient-" not in str(logs)


def test_when_nobody_may_be_used_nothing_is_read(tmp_path: Path) -> None:
    """No record is no reason to use another's, and none to give no update."""
    records = read_records(csv_spec(tmp_path, "a,51,1,no\n", consent=CONSENT), [AGE])
    assert records.features.shape == (0, 1)
    assert "noise alone" in records.remark


def test_a_list_that_cannot_be_read_stops_the_work(tmp_path: Path) -> None:
    """Before the data is open, when the attempt is given back; and afterwards."""
    spec = csv_spec(tmp_path, "a,51,1,yes\n", opt_out=str(tmp_path / "out.txt"))
    with pytest.raises(WrongHeader) as caught:
        check_header(spec)
    assert caught.value.reason == "OPT_OUT_UNREADABLE"
    with pytest.raises(DataProblem, match=r"out\.txt, the opt-out list, cannot be read"):
        read_records(spec, [AGE])
    (tmp_path / "out.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WrongHeader):
        check_header(spec)
    (tmp_path / "out.txt").write_text("")
    check_header(spec)
    assert opted_out_of(spec) == frozenset()


def test_a_consent_column_that_is_missing_is_told_before_the_data_is_open(tmp_path: Path) -> None:
    """It is a declared column, used by the job or not."""
    spec = csv_spec(tmp_path, "a,51,1,yes\n", consent={"column": "absent", "values": ["yes"]})
    with pytest.raises(WrongHeader, match="column 'absent' is missing"):
        check_header(spec)
    with pytest.raises(DataProblem, match="column 'absent' is missing"):
        read_records(spec, [AGE])


def test_who_opts_out_between_two_rounds_is_not_in_the_second(tmp_path: Path) -> None:
    """The records that a worker keeps are read again when the list changed."""
    bench = Bench(tmp_path)
    listed = tmp_path / "out.txt"
    listed.write_text("")
    declared = {**bench.declared(), "opt_out": str(listed)}
    plain = {"mechanism": "none", "noise_multiplier": None, "sample_rate": 1.0, "steps": 3}
    assert bench.prepare(data_set=declared) == {"op": "prepared"}
    first = bench.train(release=plain)["digest"]
    assert bench.train(release=plain)["digest"] == first
    listed.write_text("b\n")
    assert bench.train(release=plain)["digest"] not in ("", first)
    listed.unlink()
    bench.out.unlink()
    assert "opt-out list" in bench.no_update(release=plain)


def test_who_withdraws_consent_between_two_rounds_is_not_in_the_second(tmp_path: Path) -> None:
    """In the records' own column; and who is taken out of the file is not either."""
    bench = Bench(tmp_path)
    bench.source.write_text("patient_id,age,disease,ok\na,60,1,yes\nb,40,0,yes\nc,70,1,yes\n")
    declared = {**bench.declared(), "consent": {"column": "ok", "values": ["yes"]}}
    plain = {"mechanism": "none", "noise_multiplier": None, "sample_rate": 1.0, "steps": 3}
    assert bench.prepare(data_set=declared) == {"op": "prepared"}
    first = bench.train(release=plain)["digest"]
    bench.source.write_text("patient_id,age,disease,ok\na,60,1,yes\nb,40,0,no\nc,70,1,yes\n")
    second = bench.train(release=plain)["digest"]
    assert second not in ("", first)
    bench.source.write_text("patient_id,age,disease,ok\na,60,1,yes\nc,70,1,yes\n")
    assert bench.train(release=plain)["digest"] == second
