"""The names of a source's columns, read without its rows; the agent needs no pyarrow for a CSV.

Column names are no patient's data. A name that is missing can therefore be told before the data is
opened, when the reservation is still void-able: found later it would cost a release.
"""

from node_agent.consent import check_opt_out
from node_agent.datasets import DataSetSpec
from node_agent.sources.choice import source_of
from node_agent.sources.csv_file import HEADER_BYTES
from node_agent.sources.problems import WrongHeader
from node_agent.sources.source import column_fault

__all__ = ["HEADER_BYTES", "WrongHeader", "check_header"]


def check_header(spec: DataSetSpec) -> None:
    """Check that every declared column stands in the source once, and the opt-out list. No row is
    looked at.

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
    names = source_of(spec).names()
    if fault := column_fault(spec.source, names, spec.declared_columns):
        raise WrongHeader("SCHEMA_MISMATCH", fault)
