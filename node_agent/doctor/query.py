"""Whether a query may let one patient decide about rows of others.

What is released is bounded for one patient's rows. After a LIMIT, or a rank over all, a row of the
answer follows from other patients too, and nothing can tell that from the answer. It is looked for
in the text alone: what is found may be sound, and what is not found may not be.
"""

import re
from collections.abc import Iterator
from typing import Final

from node_agent.data.datasets import DataSetSpec
from node_agent.doctor.report import Check

QUERY_BYTES_MAX: Final = 1 << 20
ARGUMENTS_CHARS_MAX: Final = 10_000
"""Of one call: more of it is not looked at."""


_NO_CODE: Final = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?\*/ )
    | \$(?P<tag>\w*)\$ .*? \$(?P=tag)\$
    | (?<!\w)[eE]'(?: [^'\\] | \\. | '' )*'
    | '(?: [^'] | '' )*'
    | "(?: [^"] | "" )*"
    """,
    re.DOTALL | re.VERBOSE,
)
"""Comments, texts and quoted names, as PostgreSQL reads them. A comment within a comment, which
SQLite does not know, ends both: what follows is looked at."""

_SIGNS: Final = {
    "LIMIT": re.compile(r"\b(limit|offset|fetch\s+(first|next))\b", re.IGNORECASE),
    "TABLESAMPLE": re.compile(r"\btablesample\b", re.IGNORECASE),
    "OVER": re.compile(r"\bover(\s*\(|\s+\w)", re.IGNORECASE),
    "DISTINCT ON": re.compile(r"\bdistinct\s+on\b", re.IGNORECASE),
    "a percentile": re.compile(r"\b(percentile_\w+|mode)\s*\(|\bwithin\s+group\b", re.IGNORECASE),
    "random numbers": re.compile(r"\brandom\s*\(", re.IGNORECASE),
}
_TEXT: Final = re.compile(r"\b(string_agg|array_agg|group_concat|jsonb?_agg)\s*\(", re.IGNORECASE)
_SUM: Final = re.compile(r"\b(avg|sum|total|stddev\w*|var\w*|corr|regr_\w+)\s*\(", re.IGNORECASE)
_ORDERED: Final = re.compile(r"\border\s+by\b", re.IGNORECASE)
_EXACT: Final = re.compile(r"\border\s+by\b|\b(numeric|decimal)\b", re.IGNORECASE)
_SUBQUERY: Final = re.compile(r"(\w+|[^\s(]|^)[\s(]*\(\s*(select|with)\b", re.IGNORECASE)
_OF_TABLES: Final = frozenset(
    ("", "from", "join", "as", "materialized", "lateral", "union", "all", "except", "intersect")
)
"""What stands before a subquery whose rows are joined, and not compared."""


def signs_in(query: str, patient: str) -> list[str]:
    """What of the kind a query has.

    Args:
        patient: the column of patients; that one is among some is no comparison with others.
    """
    text = _NO_CODE.sub(lambda one: " " if one["comment"] else " q ", query)
    found = [what for what, pattern in _SIGNS.items() if pattern.search(text)]
    if any(not _ORDERED.search(inner) for inner in _arguments(_TEXT, text)):
        found.append("text put together")
    if any(not _EXACT.search(inner) for inner in _arguments(_SUM, text)):
        found.append("a sum or mean that may be of doubles")
    if any(_compares(text, one, patient) for one in _SUBQUERY.finditer(text)):
        found.append("a subquery within an expression")
    return found


def _arguments(functions: re.Pattern[str], text: str) -> Iterator[str]:
    """What stands in the parentheses of each call."""
    for one in functions.finditer(text):
        depth, at = 1, one.end()
        while depth and at < min(len(text), one.end() + ARGUMENTS_CHARS_MAX):
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        yield text[one.end() : at]


def _compares(text: str, one: re.Match[str], patient: str) -> bool:
    """Whether a row is compared with what a subquery finds, or takes a value from it."""
    before = one[1].lower()
    if before in _OF_TABLES:
        return False
    if before != "in":
        return True
    left = text[: one.start()].lower().removesuffix("not ").rstrip()
    return re.search(rf"\b{re.escape(patient.lower())}$", left.removesuffix(" not")) is None


def check_query(spec: DataSetSpec) -> Iterator[Check]:
    """A line for a data set whose source is a query that can be read; what else is wrong with it
    is told by the line on its schema."""
    if spec.database is None:
        return
    try:
        with spec.source.open(encoding="utf-8-sig") as file:
            text = file.read(QUERY_BYTES_MAX)
    except (OSError, UnicodeDecodeError):
        return
    name = f"query of {spec.name}"
    signs = signs_in(text, spec.patient)
    if not signs:
        yield Check(
            name,
            "ok",
            "no word in it by which one patient often decides about rows of others; only the words "
            "were looked at: that each row follows from rows of its own patient alone, its author "
            "sees to",
        )
        return
    yield Check(
        name,
        "warning",
        f"it has {', '.join(signs)}",
        "see that each row follows from rows of its own patient alone, else one patient decides "
        "about others' rows, by more than is booked: no LIMIT, windows within one patient, "
        "sums and means of numeric (docs/hospital-it.md, Where records come from)",
    )
