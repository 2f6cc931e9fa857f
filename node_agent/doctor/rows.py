"""What the records of a data set look like: missing values and the balance of labels.

These are counts of patients' data. They are shown at this machine's terminal, and go nowhere else:
not into JSON, which programs pass on, not into a log, not to the coordinator. A process of its own
reads the records, so that neither they nor what reads them stays in this one.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from node_agent.data.datasets import DataSetSpec, load_data_sets
from node_agent.doctor.report import Check

READ_S_MAX: Final = 300.0
INCOMPLETE_WARNED: Final = 0.2
DECLARED_OFF_WARNED: Final = 0.2
COLUMNS_SHOWN_MAX: Final = 8


def check_rows(spec: DataSetSpec, folder: Path) -> Check:
    """Read every declared column of a data set in a child, and say what it counted."""
    name = f"records of {spec.name}"
    words = [sys.executable, "-P", "-m", __name__, str(folder), spec.name]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=READ_S_MAX, check=False)
    except subprocess.TimeoutExpired:
        return Check(name, "warning", f"not read within {READ_S_MAX:.0f} s", "training may be slow")
    if ran.returncode != 0:
        do = "pip install 'feddp[agent]', and look for room in memory"
        return Check(name, "failed", "the process that reads them ended with an error", do)
    counted = json.loads(ran.stdout)
    if "problem" in counted:
        do = "mend the source or datasets.yaml: an attempt on it is charged and gives no update"
        return Check(name, "failed", counted["problem"], do)
    return _judged(spec, name, counted)


def _judged(spec: DataSetSpec, name: str, counted: dict[str, Any]) -> Check:
    zeros, ones = counted["labels"]
    rows, complete, patients = counted["rows"], counted["complete"], counted["patients"]
    lacking = sorted(
        ((count, column) for column, count in counted["missing"].items() if count), reverse=True
    )
    shown = ", ".join(f"{column} {count}" for count, column in lacking[:COLUMNS_SHOWN_MAX])
    more = len(lacking) - COLUMNS_SHOWN_MAX
    found = (
        f"{complete} of {rows} rows complete, of {patients} patients ({spec.declared_n} declared); "
        f"label 0: {zeros}, 1: {ones}; missing: {shown or 'nothing'}"
        + (f" and {more} more columns" if more > 0 else "")
    )
    listed, opted_out = counted["listed"], counted["opted_out"]
    if listed:
        found += f"; {opted_out} of {listed} ids on the opt-out list are patients here"
    faults = []
    if perhaps := counted["perhaps_listed"]:
        faults.append(
            f"{perhaps} more are left out, as a line of the opt-out list has their id and more: "
            "write one id a line and nothing else"
        )
    elif listed and not opted_out:
        faults.append("nobody on the opt-out list is among the records: are its ids of this kind?")
    if counted["unread"]:
        faults.append(
            f"left out of training, as it does not read as declared: {counted['unread']}; mend the "
            "records or datasets.yaml"
        )
    if not complete:
        faults.append(
            "no row can be used: an attempt is charged all the same, and gives noise alone"
        )
    elif not zeros or not ones:
        faults.append("only one label is there, so that nothing can be told apart")
    if 0 < complete < rows * (1 - INCOMPLETE_WARNED):
        faults.append("rows that lack a used column are left out of training")
    if abs(patients - spec.declared_n) > DECLARED_OFF_WARNED * spec.declared_n:
        faults.append(
            "declared_n is far from what is there: noise and weights follow the declared number"
        )
    if faults:
        return Check(name, "warning", found, "; ".join(faults))
    return Check(name, "ok", found)


def main() -> None:
    """`python -m node_agent.doctor.rows DIR DATA_SET`: counts as JSON, to the parent process."""
    import structlog

    from node_agent.data.records import DataProblem, tally

    # Nobody reads what is logged here; stdout is for the answer alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    folder, name = Path(sys.argv[1]), sys.argv[2]
    (spec,) = (one for one in load_data_sets(folder) if one.name == name)
    try:
        answer: dict[str, Any] = asdict(tally(spec))
    except DataProblem as problem:
        answer = {"problem": str(problem)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
