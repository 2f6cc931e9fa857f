"""docs/capacity.md: its tables are the script's, and the script's numbers are those measured."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import capacity_constants as measured
from benchmarks.capacity import GB, KB, MEASURED, Fleet, markdown, size, span, tables
from benchmarks.cases import ALL

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/capacity.md").read_text()
BENCHMARKS = (ROOT / "docs/benchmarks.md").read_text()
SHARED = 2.0
"""Seconds vary by this factor from run to run on a shared machine (docs/benchmarks.md)."""

UNITS_S = {"ms": 1e-3, "s": 1.0}


def shown(case: str, metric: str) -> tuple[float, str] | None:
    """A row of docs/benchmarks.md: its value and unit; None where the case is only named."""
    found = re.search(rf"^\| {case} \| {metric} \| (\S+) \| ([^|]+) \|", BENCHMARKS, re.MULTILINE)
    return (float(found[1]), found[2].strip()) if found else None


@pytest.mark.parametrize("name", tables())
def test_each_table_is_what_the_script_prints(name: str) -> None:
    """`python -m benchmarks.capacity --document` writes them."""
    between = TEXT.partition(f"<!-- {name}: begin -->\n")[2].partition(f"\n<!-- {name}: end -->")[0]
    assert between == markdown(tables()[name])


def test_the_script_prints_the_tables_and_a_fleet_of_ones_own() -> None:
    """As the document shows it."""
    (block,) = re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].split() for line in block.splitlines()]
    assert [words[:3] for words in lines] == [["python", "-m", "benchmarks.capacity"]] * 2
    said = [
        subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for words in lines
    ]
    for made in tables().values():
        assert markdown(made) in said[0]
    assert "| coordinator's CPU, a round | 4.5 s |" in said[1]


@pytest.mark.parametrize("one", measured.CONSTANTS, ids=lambda one: one.what)
def test_each_number_follows_from_a_case_that_can_be_run(one: measured.Constant) -> None:
    """The case exists; where docs/benchmarks.md has its row, the two agree as far as seconds do."""
    assert one.case in ALL
    row = shown(one.case, one.metric)
    if row is None:
        assert one.case.startswith(("fleet-", "replicas-", "growth-"))
        return
    value, unit = row
    micro = 1e6 if one.unit == "us" else 1.0
    expected = value * micro / one.per / (1e6 if one is measured.ENTRY else 1.0)
    assert unit == ("s" if micro > 1 else one.unit)
    assert expected / SHARED <= one.value <= expected * SHARED


@pytest.mark.parametrize(("fleet", "case"), MEASURED.items(), ids=lambda one: str(one))
def test_a_fleet_that_was_run_took_what_the_formula_says(
    fleet: tuple[int, float], case: str
) -> None:
    """The coordinator's CPU for a round, at both ends of the straight line and between."""
    name = case.strip("`")
    reckoned_s = Fleet(*fleet).cpu_s
    row = shown(name, "coordinator_cpu")
    if row is None:  # the fleets stand in docs/scaling.md, with milliseconds a node
        text = (ROOT / "docs/scaling.md").read_text()
        milliseconds = {
            "fleet-100": r"took 0\.6 s, ([\d.]+) ms",
            "fleet-1000": r"([\d.]+) ms a node",
        }
        (per_node,) = re.findall(milliseconds[name], text)
        taken_s = fleet[0] * float(per_node) / 1000
    else:
        taken_s = row[0] * UNITS_S[row[1]]
    assert taken_s / SHARED <= reckoned_s <= taken_s * SHARED


def test_the_formulas_of_the_document_are_those_of_the_script() -> None:
    """The constants that a sentence repeats."""
    for text in (
        f"N × {measured.CONTROL.value:g} ms + 2 N M × {measured.BYTES.value:g} s per GB",
        f"{measured.MEMORY.value:g} MiB + N × {measured.SESSION.value:g} KiB"
        f" + {measured.WORK_MEMORY.value:g} MiB",
        f"on the leader of several {measured.REPLICAS.value:g} times as much",
        f"{measured.AGENT_CPU.value:g} % of a core while it waits",
        f"{measured.AGENT_MEMORY.value:g} MiB while it moves a model",
        f"at {measured.RESERVATION.value:g} ms each",
    ):
        assert text in TEXT
    assert Fleet(10, 1 * GB).cpu_s == pytest.approx(10 * 0.0047 + 20 * 1.8)
    assert Fleet(10, 1 * GB).under_way_bytes == 12 * GB


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999 B"), (40 * KB, "40 KB"), (1.26 * GB, "1.3 GB"), (2e12, "2 TB")]
)
def test_a_size_has_two_digits(number: float, text: str) -> None:
    """More nobody has measured."""
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0026, "2.6 ms"),
        (1.0, "1 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (7200, "2 h"),
        (2e5, "2.3 days"),
    ],
)
def test_a_time_is_told_in_a_unit_of_which_there_is_more_than_one(
    seconds: float, text: str
) -> None:
    """From milliseconds to days."""
    assert span(seconds) == text
