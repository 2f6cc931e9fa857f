"""The doctor warns of queries by which one patient may decide about rows of others."""

from pathlib import Path

import pytest

from node_agent.data.datasets import DataSetSpec
from node_agent.doctor.query import check_query
from node_agent.doctor.report import Check

EXAMPLE = Path(__file__).parents[3] / "config/sources/omop-cdm.sql"


def looked_at(path: Path) -> list[Check]:
    """Of a data set with that query."""
    spec = DataSetSpec.model_validate(
        {
            "name": "d",
            "source": str(path),
            "database": {"url": "sqlite:////records.db"},
            "patient": "pid",
            "label": "ill",
            "declared_n": 10,
            "version": 1,
            "columns": {"age": "number"},
        }
    )
    return list(check_query(spec))


@pytest.mark.parametrize(
    ("query", "signs"),
    [
        ("SELECT pid, age, ill FROM t LIMIT 5000", ["LIMIT"]),
        ("SELECT pid, age, ill FROM t ORDER BY pid OFFSET 5", ["LIMIT"]),
        ("SELECT pid, age, ill FROM t FETCH FIRST 5 ROWS ONLY", ["LIMIT"]),
        ("SELECT pid, age, ill FROM t TABLESAMPLE SYSTEM (5)", ["TABLESAMPLE"]),
        ("SELECT pid, age - avg(age::numeric) over (), ill FROM t", ["OVER"]),
        ("SELECT DISTINCT ON (pid) pid, age, ill FROM t", ["DISTINCT ON"]),
        ("SELECT pid, Percentile_Cont(0.5) WITHIN GROUP (ORDER BY age), ill", ["a percentile"]),
        ("SELECT pid, string_agg(drug, ',') FROM t GROUP BY pid", ["text put together"]),
        ("SELECT pid, AVG(age), max(ill) FROM t GROUP BY pid", ["a sum or mean"]),
        ("SELECT pid, sum(a), max(ill) FROM t GROUP BY pid LIMIT 3", ["LIMIT", "a sum or mean"]),
        ("SELECT pid, age - (SELECT min(age) FROM t), ill FROM t", ["a subquery"]),
        ("SELECT pid, age, ill FROM t WHERE EXISTS (SELECT 1 FROM t u)", ["a subquery"]),
        ("SELECT pid, age, ill FROM t WHERE ward IN (SELECT ward FROM u)", ["a subquery"]),
        ("SELECT pid, rank(5) WITHIN GROUP (ORDER BY age), ill FROM t", ["a percentile"]),
        ("SELECT pid, total(age), max(ill) FROM t GROUP BY pid", ["a sum or mean"]),
        ("SELECT pid, sum(numeric_age), max(ill) FROM t GROUP BY pid", ["a sum or mean"]),
        ("SELECT pid, age, ill FROM t WHERE random() < 0.5", ["random numbers"]),
        (r"SELECT pid, E'\'' AS a, ill FROM t LIMIT 5 -- '", ["LIMIT"]),
        ("SELECT pid, $$it's$$ AS a, ill FROM t LIMIT 5; -- '", ["LIMIT"]),
        ("SELECT pid, avg(a_numeric), max(ill) FROM t GROUP BY pid", ["a sum or mean"]),
        ("SELECT pid, age, ill FROM t WHERE (( select count(*) FROM t)) > 9", ["a subquery"]),
        ("SELECT pid, $a$ ' $a$, age, ill FROM t LIMIT 5 -- '", ["LIMIT"]),
        ('SELECT pid, "o\'x", ill FROM t LIMIT 5 OFFSET "o\'y"', ["LIMIT"]),
    ],
)
def test_a_query_by_which_rows_may_hang_on_others_is_warned_of(
    tmp_path: Path, query: str, signs: list[str]
) -> None:
    """Each sign is named, and what to do."""
    path = tmp_path / "q.sql"
    path.write_text(query)
    (check,) = looked_at(path)
    assert (check.name, check.result) == ("query of d", "warning")
    assert all(sign in check.found for sign in signs)
    assert check.found.count(",") == len(signs) - 1
    assert "of its own patient alone" in check.do


@pytest.mark.parametrize(
    "query",
    [
        EXAMPLE.read_text(),
        "SELECT pid, age, 'no limit' AS note, ill FROM t -- LIMIT 5\n/* avg(x) over () */",
        "SELECT pid, avg(age::numeric), sum(x ORDER BY x), max(ill) FROM t GROUP BY pid",
        "SELECT pid, string_agg(drug, ',' ORDER BY drug), max(ill) FROM t GROUP BY pid",
        "SELECT pid, overtime, limits, summary, ill FROM t",
        "SELECT pid, avg(cast(age AS numeric)), avg(round(b::numeric, 2)), max(ill) FROM t",
        "SELECT pid, string_agg(upper(drug), ',' ORDER BY drug), max(ill) FROM t GROUP BY pid",
        'SELECT pid, "limit", "a--b", ill FROM t',
        "SELECT pid, age, ill FROM (SELECT * FROM t) a JOIN (SELECT * FROM u) b USING (pid)",
        "SELECT pid, age, ill FROM t WHERE t.pid NOT IN (SELECT pid FROM gone)",
        "SELECT pid, avg(CAST(age AS numeric)), sum(x::decimal), max(ill) FROM t GROUP BY pid",
        "WITH a AS (SELECT pid FROM t), b AS MATERIALIZED ((SELECT 1)) SELECT * FROM a "
        "JOIN (SELECT pid FROM u) USING (pid) UNION ALL (SELECT pid FROM v)",
        "(SELECT pid, age, ill FROM t)",
        "WITH a AS (SELECT 1), b AS MATERIALIZED (SELECT 2) SELECT pid, age, ill FROM t",
    ],
)
def test_a_query_without_such_signs_is_in_order(tmp_path: Path, query: str) -> None:
    """Comments and texts are no code, and a part of a name is no word; the example is sound."""
    path = tmp_path / "q.sql"
    path.write_text(query)
    (check,) = looked_at(path)
    assert check.result == "ok", check.found
    assert "only the words were looked at" in check.found


def test_what_is_no_query_is_not_looked_at(tmp_path: Path) -> None:
    """Nor one that cannot be read: the line on the schema says so."""
    assert looked_at(tmp_path / "absent.sql") == []
