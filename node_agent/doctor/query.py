"""Whether a query may let one patient decide about rows of others.

What is released is bounded for one patient's rows. After a LIMIT, or a rank over all, a row of the
answer follows from other patients too, and nothing can tell that from the answer. It is looked for
in the text alone: what is found may be sound, and what is not found may not be.
"""

import re
from collections.abc import Iterator
from typing import Final

from node_agent.datasets import DataSetSpec
from node_agent.doctor.report import Check

QUERY_BYTES_MAX: Final = 1 << 20

_NO_CODE: Final = re.compile(
    r"--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$"
    r"|\be'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'"
    r'|"(?:[^"]|"")*"',
    re.DOTALL | re.IGNORECASE,
)
"""Comments, texts, and names in quotes."""

_AS_TABLE: Final = re.compile(
    r"(?:\A|\b(?:as|materialized|from|join|lateral|union(?:\s+all)?|except|intersect))[\s(]*"
    r"\(\s*(?:select|with)\b",
    re.IGNORECASE,
)
"""A query whose answer is a table of the one around it."""

_SIGNS: Final = {
    "LIMIT": re.compile(r"\b(limit|offset|fetch\s+(first|next))\b", re.IGNORECASE),
    "TABLESAMPLE": re.compile(r"\btablesample\b", re.IGNORECASE),
    "OVER": re.compile(r"\bover(\s*\(|\s+\w)", re.IGNORECASE),
    "DISTINCT ON": re.compile(r"\bdistinct\s+on\b", re.IGNORECASE),
    "a percentile": re.compile(r"\b(percentile_\w+|mode)\s*\(", re.IGNORECASE),
    "text put together": re.compile(
        r"\b(string_agg|array_agg|group_concat|jsonb?_agg)\s*\((?![^()]*order\s+by)", re.IGNORECASE
    ),
    "a sum or mean that may be of doubles": re.compile(
        r"\b(avg|sum|stddev\w*|var\w*|corr|regr_\w+)\s*\("
        r"(?![^()]*(::\s*(numeric|decimal)|\border\s+by)\b"
        r"|\s*cast\s*\([^()]*\bas\s+(numeric|decimal)\b)",
        re.IGNORECASE,
    ),
    "a query as a value or a condition": re.compile(r"\(\s*(?:select|with)\b", re.IGNORECASE),
}


def check_query(spec: DataSetSpec) -> Iterator[Check]:
    """A line for a data set whose source is a query that can be read; what else is wrong with it
    is told by the line on its schema."""
    if spec.database is None:
        return
    try:
        with spec.source.open(encoding="utf-8-sig") as file:
            text = _AS_TABLE.sub(" ", _NO_CODE.sub(" ", file.read(QUERY_BYTES_MAX)))
    except (OSError, UnicodeDecodeError):
        return
    name = f"query of {spec.name}"
    signs = [what for what, pattern in _SIGNS.items() if pattern.search(text)]
    if not signs:
        found = (
            "it has none of the words that are looked for (LIMIT, OVER, a percentile, a sum of "
            "doubles, a query as a value); that each row follows from rows of its own patient "
            "alone, its author sees to"
        )
        yield Check(name, "ok", found)
        return
    yield Check(
        name,
        "warning",
        f"it has {', '.join(signs)}",
        "see that each row follows from rows of its own patient alone, else one patient decides "
        "about others' rows, by more than is booked: no LIMIT, windows within one patient, "
        "sums and means of numeric, no figure of the whole table (docs/hospital-it.md, Where "
        "records come from)",
    )
