"""A source's columns, read without its rows; the agent needs no pyarrow for a CSV.

Names and types of columns are no patient's data. What is wrong with them can therefore be told
before the data is opened, when the reservation is still void-able: later it would cost a release.
"""

from typing import Final

from node_agent.data.consent import check_opt_out
from node_agent.data.datasets import DataSetSpec
from node_agent.sources.choice import source_of
from node_agent.sources.csv_file import HEADER_BYTES
from node_agent.sources.problems import WrongHeader, is_plain
from node_agent.sources.source import Kind, column_fault

__all__ = ["HEADER_BYTES", "WrongHeader", "check_header"]


def check_header(spec: DataSetSpec) -> None:
    """Check that every declared column stands in the source once and is of a type that can be read
    as declared, and the opt-out list. No row is looked at.

    Raises:
        WrongHeader: SOURCE_MISSING, SOURCE_UNREADABLE, SCHEMA_MISMATCH or OPT_OUT_UNREADABLE; of
            several faults the first one's, with all of them in its sentence.
    """
    found: list[WrongHeader] = []
    for check in (_check_columns, check_opt_out):
        try:
            check(spec)
        except WrongHeader as error:
            found.append(error)
    if found:
        raise WrongHeader(found[0].reason, "; ".join(map(str, found)))


def _check_columns(spec: DataSetSpec) -> None:
    if not is_plain(spec.source):
        raise WrongHeader("SOURCE_UNREADABLE", f"{spec.source} is no plain file")
    header = source_of(spec).header()
    if fault := column_fault(spec.source, [one.name for one in header], spec.declared_columns):
        raise WrongHeader("SCHEMA_MISMATCH", fault)
    kinds = {one.name: one.kind for one in header}
    unfit = [
        f"column {name!r} {_HOLDS[kinds[name]]} and is declared as {what}"
        for name, what in _declared(spec).items()
        if kinds[name] in _UNFIT[what]
    ]
    if unfit:
        raise WrongHeader("SCHEMA_MISMATCH", f"{', '.join(unfit)} in {spec.source}")


def _declared(spec: DataSetSpec) -> dict[str, str]:
    """column -> as what it is declared, as a sentence says it."""
    columns = {
        name: "a number" if kind == "number" else "a category"
        for name, kind in spec.columns.items()
    }
    consent = {spec.consent.column: "consent"} if spec.consent is not None else {}
    return {**consent, **columns, spec.label: "the label", spec.patient: "the patient"}


_HOLDS: Final[dict[Kind, str]] = {
    "any": "",
    "text": "holds texts",
    "whole": "holds whole numbers",
    "number": "holds numbers with fractions",
    "truth": "holds true and false",
    "other": "holds dates, times or something else that is neither text nor number",
}

_UNFIT: Final[dict[str, frozenset[Kind]]] = {
    "the patient": frozenset({"number", "truth", "other"}),
    "the label": frozenset({"other"}),
    "a number": frozenset({"other"}),
    "a category": frozenset({"number", "truth", "other"}),
    "consent": frozenset({"other"}),
}
"""Kinds of which no cell reads as declared: each attempt would be charged and learn nothing."""
