"""A query as a data set, on a real PostgreSQL server and on SQLite: read, and only read."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from structlog.testing import capture_logs

from benchmarks.postgresql import PostgreSql
from node_agent.data.datasets import DataSetSpec, load_data_sets, schema_json
from node_agent.data.headers import WrongHeader, check_header
from node_agent.data.overlaps import overlaps
from node_agent.data.records import DataProblem, read_records
from node_agent.sources.choice import source_of
from node_agent.sources.database import Database
from node_agent.tasks.tabular_config import Feature
from protos.errors import Malformed

AGE = Feature(column="age", center=50.0, scale=10.0)
MALE = Feature(column="sex", category="Male", center=0.5, scale=0.5)
SECRET = "s3cret-p4ss"
VARIABLE = "FEDDP_SOURCE_TEST"
TABLE = """
CREATE TABLE records (pid {numeric}, age {numeric}, sex text, disease {bool}, note text);
INSERT INTO records VALUES (7, 60, 'Male', {true}, '100%'), (8, NULL, 'Male', {true}, 'a:b');
INSERT INTO records VALUES (7, 45.5, 'Female', {false}, ':x'), (NULL, 50, 'Male', {true}, 'c');
"""
QUERY = "SELECT pid AS patient_id, age, sex, disease FROM records ORDER BY note DESC -- ends here;"
IN_ORDER = "SELECT pid AS patient_id, age, sex, disease FROM records ORDER BY ctid"


@pytest.fixture(scope="module")
def reader(postgresql_server: PostgreSql) -> str:
    """URL, without a password, of a database whose table the account `reader` may read."""
    name = postgresql_server.new_database().rpartition("/")[2]
    table = TABLE.format(numeric="numeric", bool="boolean", true="true", false="false")
    postgresql_server.superuser(
        f"{table}"
        f"DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD '{SECRET}';"
        # More than a reader should have: what is refused is refused by the transaction.
        "GRANT ALL ON records TO reader; CREATE TABLE closed (patient_id int);",
        name,
    )
    return f"postgresql+psycopg://reader@127.0.0.1:{postgresql_server.port}/{name}"


@pytest.fixture
def database(reader: str, tmp_path: Path) -> dict[str, Any]:
    """As `datasets.yaml` says it, the password in a file."""
    (tmp_path / "password").write_text(f"{SECRET}\n")
    return {"url": reader, "password_file": "password"}


def spec_of(folder: Path, database: dict[str, Any], query: str = QUERY, **change: Any) -> Any:
    """A declaration of a query, as the agent loads it."""
    (folder / "q.sql").write_text(query)
    one = {
        "name": "d",
        "source": "q.sql",
        "database": database,
        "patient": "patient_id",
        "label": "disease",
        "declared_n": 10,
        "version": 1,
        "columns": {"age": "number", "sex": {"category": ["Male", "Female"]}},
        **change,
    }
    (folder / "datasets.yaml").write_text(json.dumps({"data_sets": [one]}))
    [spec] = load_data_sets(folder)
    return spec


def wrong(spec: DataSetSpec) -> tuple[str, str]:
    """Why its header is refused."""
    with pytest.raises(WrongHeader) as caught:
        check_header(spec)
    assert caught.value.__cause__ is None
    return caught.value.reason, str(caught.value)


def rows(url: str) -> int:
    """How many records stand in the table."""
    address = make_url(url).set(drivername="postgresql", password=SECRET)
    with psycopg.connect(address.render_as_string(hide_password=False)) as connection:
        [found] = connection.execute("SELECT count(*) FROM records").fetchall()
    return int(found[0])


def test_a_query_reads_like_a_file(tmp_path: Path, database: dict[str, Any]) -> None:
    """Exact numbers, nulls and true/false labels; whole numbers are ids; rows in its ORDER BY."""
    spec = spec_of(tmp_path, database, IN_ORDER)
    check_header(spec)
    records = read_records(spec, [AGE, MALE])
    assert records.features[:, 1].tolist() == [1, -1]
    assert records.features[:, 0] == pytest.approx([1.0, -0.45])
    assert records.labels.tolist() == [1, 0]
    assert records.patients.tolist() == [0, 0]
    assert set(source_of(spec).read(["patient_id"], []).columns["patient_id"]) == {7, 8, None}
    assert next(source_of(spec).pieces("patient_id")).count(7) == 2


def test_the_queries_own_characters_reach_the_database(
    tmp_path: Path, database: dict[str, Any]
) -> None:
    """Percent signs, casts and colons are no parameters of ours."""
    query = (
        "SELECT pid::int AS patient_id, age, sex, disease FROM records\n"
        "WHERE note IN ('100%', ':x') AND note LIKE '%' ;  \n"
    )
    assert read_records(spec_of(tmp_path, database, query), [AGE]).features.shape == (2, 1)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM records",
        "SELECT 1 AS x; DELETE FROM records",
        "WITH gone AS (DELETE FROM records RETURNING *) SELECT * FROM gone",
        "SELECT 1) AS x; DELETE FROM records; SELECT * FROM (SELECT 1",
        "SELECT 1) AS x; COMMIT; DELETE FROM records; SELECT * FROM (SELECT 1",
    ],
)
def test_a_query_that_writes_is_refused_and_writes_nothing(
    tmp_path: Path, database: dict[str, Any], reader: str, query: str
) -> None:
    """As a statement, beside one or inside one, though the account may write."""
    spec = spec_of(tmp_path, database, query)
    with pytest.raises(DataProblem):
        read_records(spec, [AGE])
    with pytest.raises(WrongHeader):
        check_header(spec)
    assert rows(reader) == 4


def test_a_function_that_writes_is_stopped_by_the_transaction(
    tmp_path: Path, database: dict[str, Any], postgresql_server: PostgreSql, reader: str
) -> None:
    """A SELECT that calls one is a query as any other: the transaction can only read."""
    name = reader.rpartition("/")[2]
    postgresql_server.superuser(
        "CREATE OR REPLACE FUNCTION wipe_all() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$ BEGIN DELETE FROM records; RETURN true; END $$",
        name,
    )
    query = "SELECT pid AS patient_id, age, sex, wipe_all() AS disease FROM records"
    spec = spec_of(tmp_path, database, query)
    check_header(spec)
    with pytest.raises(DataProblem, match="only reading is allowed"):
        read_records(spec, [AGE])
    assert rows(reader) == 4


def test_the_header_is_found_without_a_row(tmp_path: Path, database: dict[str, Any]) -> None:
    """Rows that would be an error do not matter to it, and the error does not quote a cell."""
    query = "SELECT pid AS patient_id, note::int AS age, sex, disease FROM records"
    spec = spec_of(tmp_path, database, query)
    check_header(spec)
    with pytest.raises(DataProblem, match="SQLSTATE 22P02") as caught:
        read_records(spec, [AGE])
    assert "100%" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("date", "column 'age' holds dates, times or something else"),
        ("jsonb", "column 'age' holds dates, times or something else"),
        ("text", ""),
        ("numeric", ""),
        ("bigint", ""),
    ],
)
def test_a_type_that_is_no_number_is_told_before_the_data_is_open(
    tmp_path: Path, database: dict[str, Any], kind: str, said: str
) -> None:
    """As the database describes its answer without a row."""
    query = "SELECT pid AS patient_id, NULL::KIND AS age, sex, disease FROM records"
    query = query.replace("KIND", kind)
    spec = spec_of(tmp_path, database, query)
    if not said:
        check_header(spec)
    else:
        assert said in wrong(spec)[1]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("reader@", "nobody@", "nobody"),
        ("/feddp_", "/nowhere_", "nowhere_"),
        ("?", "?sslmode=verify-full&", "SSL"),
        ("?", "?sslmod=require&", "sslmod"),
    ],
)
def test_what_keeps_from_reaching_the_database_is_told(
    tmp_path: Path, database: dict[str, Any], old: str, new: str, said: str
) -> None:
    """By the driver's own words, in which no password stands."""
    url = f"{database['url']}?connect_timeout=5".replace(old, new)
    reason, text = wrong(spec_of(tmp_path, {**database, "url": url}))
    assert reason == "SOURCE_UNREADABLE"
    assert "the database was not reached" in text
    assert said in text
    assert SECRET not in text


def test_a_wrong_password_is_told(tmp_path: Path, database: dict[str, Any]) -> None:
    """And not repeated. What is on the file's second line is no part of it."""
    (tmp_path / "password").write_text("wr0ng\nsecond line\n")
    text = wrong(spec_of(tmp_path, database))[1]
    assert "password authentication failed" in text
    assert "wr0ng" not in text
    (tmp_path / "password").write_text(f"\ufeff{SECRET}\r\n# of the reader\n", encoding="utf-8")
    check_header(spec_of(tmp_path, database))


@pytest.mark.parametrize(
    "query",
    [
        "\ufeffSELECT pid AS patient_id, age, sex, disease FROM records",
        "SELECT pid AS patient_id, age, sex, disease FROM records; -- of today\n-- and ever",
        "SELECT pid AS patient_id, age, sex, disease FROM records WHERE note <> ';--' ; ;\n",
    ],
)
def test_what_editors_and_people_leave_around_a_query_does_not_matter(
    tmp_path: Path, database: dict[str, Any], query: str
) -> None:
    """A byte order mark, a semicolon with a comment after it."""
    assert read_records(spec_of(tmp_path, database, query), [AGE]).labels.tolist() == [1, 0]


def test_a_cell_that_python_cannot_hold_does_not_end_the_reading(
    tmp_path: Path, database: dict[str, Any]
) -> None:
    """A date of no calendar, among numbers that may be none."""
    query = (
        "SELECT pid AS patient_id, CASE WHEN note = ':x' THEN 'NaN'::numeric ELSE age END AS age,"
        " CASE WHEN age = 60 THEN 'infinity'::date ELSE '2020-02-02'::date END AS sex, disease"
        " FROM records WHERE pid IS NOT NULL AND age IS NOT NULL ORDER BY ctid"
    )
    spec = spec_of(tmp_path, database, query, columns={"age": "number", "sex": "number"})
    assert read_records(spec, [AGE]).labels.tolist() == [1]
    remark = read_records(spec, [Feature(column="sex", center=0.0, scale=1.0)]).remark
    assert "column 'sex' is not a number in 2 rows, first in row 1" in remark


@pytest.mark.parametrize("column", ["patient_id", "sex", "agreed"])
def test_a_number_of_more_digits_than_python_writes_does_not_end_the_reading(
    tmp_path: Path, database: dict[str, Any], column: str
) -> None:
    """Where it would become a text, as an id, a category or consent, its row is left out."""
    query = (
        "SELECT * FROM (VALUES (patient_id::numeric, sex::numeric, agreed::numeric, 60, 1),"
        " (1, 2, 2, 40, 0)) AS given (patient_id, sex, agreed, age, disease)"
    )
    query = query.replace(f"{column}::numeric", "10::numeric ^ 5000", 1)
    for name in ("patient_id", "sex", "agreed"):
        query = query.replace(f"{name}::numeric", "2::numeric", 1)
    change = {
        "consent": {"column": "agreed", "values": ["2"]},
        "columns": {"age": "number", "sex": {"category": ["2"]}},
    }
    spec = spec_of(tmp_path, database, query, **change)
    check_header(spec)
    two = Feature(column="sex", category="2", center=0.0, scale=1.0)
    assert read_records(spec, [AGE, two]).features.tolist() == [[-1, 1]]


def test_the_header_of_sqlite_is_found_without_a_row(tmp_path: Path) -> None:
    """Also of a query that joins what it has added up: asked for no row of that, SQLite adds up all
    the same, and one patient's cell could refuse an attempt that would else be charged."""
    path = tmp_path / "records.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE records (pid, visit, disease)")
        connection.execute("INSERT INTO records VALUES (1, '{\"age\": 50}', 1), (2, '{broken', 0)")
    query = (
        "WITH one AS (SELECT pid, max(disease) AS disease, max(visit ->> 'age') AS age FROM records"
        " GROUP BY pid) SELECT one.pid AS patient_id, one.disease, one.age, 'Male' AS sex"
        " FROM one JOIN one AS other ON one.pid = other.pid"
    )
    spec = spec_of(tmp_path, {"url": f"sqlite:///{path}"}, query)
    check_header(spec)
    names = [one.name for one in source_of(spec).header()]
    assert names == ["patient_id", "disease", "age", "sex"]
    # What no reader can bear ends the reading, once the data is open and charged.
    with pytest.raises(DataProblem):
        read_records(spec, [AGE])
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM records WHERE pid = 2")
    assert read_records(spec, [AGE]).labels.tolist() == [1.0]


def test_a_text_of_sqlite_that_is_none_does_not_end_the_reading(tmp_path: Path) -> None:
    """Its row is left out."""
    path = tmp_path / "r.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE records (patient_id, age, sex, disease)")
        rows = [("a", 60, "Male", 1), ("b", 60, "Male", 0)]
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", rows)
        connection.execute("UPDATE records SET sex = CAST(x'ff' AS TEXT) WHERE patient_id = 'b'")
    spec = spec_of(tmp_path, {"url": f"sqlite:///{path}"}, "SELECT * FROM records")
    records = read_records(spec, [AGE, MALE])
    assert records.labels.tolist() == [1]
    assert "column 'sex' is neither text nor a whole number in 1 row" in records.remark


@pytest.mark.parametrize(
    ("query", "reason", "said"),
    [
        ("SELECT pid AS patient_id, age, disease FROM records", "SCHEMA_MISMATCH", "'sex' is miss"),
        ("SELECT *, age FROM records", "SCHEMA_MISMATCH", "'age' stands 2 times"),
        ("SELECT * FROM nowhere", "SCHEMA_MISMATCH", "a table of the query does not exist"),
        ("SELECT nothing FROM records", "SCHEMA_MISMATCH", "a column of the query does not"),
        ("SELEC", "SCHEMA_MISMATCH", "syntax error"),
        ("SELECT * FROM closed", "SCHEMA_MISMATCH", "may not read a table"),
        (" ; \n", "SOURCE_UNREADABLE", "holds no query"),
    ],
)
def test_a_wrong_query_is_told_before_the_data_is_open(
    tmp_path: Path, database: dict[str, Any], query: str, reason: str, said: str
) -> None:
    """With the file's name and what is wrong, in a sentence of ours."""
    found, text = wrong(spec_of(tmp_path, database, query))
    assert found == reason
    assert said in text
    assert str(tmp_path / "q.sql") in text


def test_a_missing_query_is_a_missing_source(tmp_path: Path, database: dict[str, Any]) -> None:
    """As a missing file of records."""
    spec = spec_of(tmp_path, database)
    spec.source.unlink()
    assert wrong(spec)[0] == "SOURCE_MISSING"
    with pytest.raises(DataProblem, match="does not exist"):
        read_records(spec, [AGE])


def test_the_password_comes_from_a_file_or_the_environment(
    tmp_path: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read when the database is asked; without a right one it is refused, and never repeated."""
    by_variable = spec_of(tmp_path, {"url": database["url"], "password_env": VARIABLE})
    assert wrong(by_variable)[0] == "SOURCE_UNREADABLE"
    assert f"{VARIABLE} is not set" in wrong(by_variable)[1]
    monkeypatch.setenv(VARIABLE, SECRET)
    check_header(by_variable)
    monkeypatch.setenv(VARIABLE, "wr0ng-p4ss")
    with capture_logs() as logs:
        reason, text = wrong(by_variable)
    assert reason == "SOURCE_UNREADABLE"
    assert "p4ss" not in text + str(logs)
    by_file = spec_of(tmp_path, database)
    check_header(by_file)
    (tmp_path / "password").unlink()
    assert "cannot be read" in wrong(by_file)[1]


def test_a_database_that_is_not_there_is_told_before_the_data_is_open(
    tmp_path: Path, database: dict[str, Any]
) -> None:
    """Nothing listens on the port: the attempt is given back."""
    url = make_url(database["url"]).set(port=1).render_as_string()
    reason, text = wrong(spec_of(tmp_path, {**database, "url": url}))
    assert (reason, SECRET in text) == ("SOURCE_UNREADABLE", False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"database": {"url": f"postgresql://u:{SECRET}@h/d"}}, "must hold no password"),
        ({"database": {"url": f"postgresql://u@h/d?password={SECRET}"}}, "must hold no password"),
        ({"database": {"url": "mysql://u@h/d"}}, "must begin with postgresql+psycopg://"),
        ({"database": {"url": "postgresql+asyncpg://u@h/d"}}, "must begin with postgresql+psycopg"),
        ({"database": {"url": "sqlite:///relative.db"}}, "absolute"),
        ({"database": {"url": "postgresql://h/d", "password_env": "HOME"}}, "password_env"),
        ({"database": None}, "needs a database"),
        ({"source": "q.csv"}, "no other source takes one"),
    ],
)
def test_a_credential_in_the_declaration_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """It would be published to whoever reads the file; the refusal does not repeat it."""
    with pytest.raises(Malformed) as caught:
        spec_of(tmp_path, **{"database": {"url": "postgresql://u@h/d"}, **change})
    assert said in caught.value.message
    assert SECRET not in caught.value.message


def test_nothing_of_the_database_is_published(tmp_path: Path, database: dict[str, Any]) -> None:
    """Columns and types only."""
    spec = spec_of(tmp_path, database, consent={"column": "age", "values": ["1"]})
    assert json.loads(schema_json(spec)) == {"columns": {"sex": {"category": ["Male", "Female"]}}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An SQLite file with the same table."""
    path = tmp_path / "records.db"
    with sqlite3.connect(path) as made:
        made.executescript(TABLE.format(numeric="numeric", bool="int", true="1", false="0"))
    made.close()
    return path


def test_an_sqlite_file_is_read_and_cannot_be_written(tmp_path: Path, file: Path) -> None:
    """The file is opened for reading alone; a query that writes is refused."""
    database = {"url": f"sqlite:///{file}"}
    spec = spec_of(tmp_path, database)
    check_header(spec)
    assert sorted(read_records(spec, [MALE]).features[:, 0].tolist()) == [-1, 1, 1]
    before = file.read_bytes()
    assert wrong(spec_of(tmp_path, database, "DELETE FROM records"))[0] == "SOURCE_UNREADABLE"
    assert file.read_bytes() == before
    file.unlink()
    assert wrong(spec_of(tmp_path, database))[0] == "SOURCE_UNREADABLE"
    assert not file.exists()


def test_patients_of_a_database_are_compared_with_those_of_a_file(
    tmp_path: Path, file: Path
) -> None:
    """By the text of the ids, as those of two files are."""
    one = spec_of(tmp_path, {"url": f"sqlite:///{file}"})
    other = DataSetSpec.model_validate(
        {**one.model_dump(), "name": "e", "database": None, "source": str(tmp_path / "e.csv")}
    )
    other.source.write_text("patient_id\n 8 \n")
    assert [found.kind for found in overlaps([one, other])] == ["patients"]
    other.source.write_text("patient_id\n9\n")
    assert overlaps([one, other]) == []


def test_one_query_of_two_databases_is_two_data_sets(tmp_path: Path, file: Path) -> None:
    """They are the same only where the database is the same too."""
    one = spec_of(tmp_path, {"url": f"sqlite:///{file}"})
    same = one.model_copy(update={"name": "e"})
    assert [found.kind for found in overlaps([one, same])] == ["same_file"]
    elsewhere = tmp_path / "elsewhere.db"
    with sqlite3.connect(elsewhere) as made:
        table = TABLE.format(numeric="numeric", bool="int", true="1", false="0")
        made.executescript(table)
        made.execute("UPDATE records SET pid = pid + 100")
    made.close()
    other = one.model_copy(update={"name": "e", "database": database_of(elsewhere)})
    assert overlaps([one, other]) == []


def database_of(file: Path) -> Database:
    """An SQLite file as it is declared."""
    return Database(url=f"sqlite:///{file}")
