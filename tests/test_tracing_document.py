"""docs/tracing.md: its tables are the code's, its settings load, its program checks our posts."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.alerts.body import signature
from coordinator.alerts.conditions import Facts, Limits, NodeFact, WaitingJob, conditions
from coordinator.config.surroundings import Monitoring
from node_agent.folder.tracing_config import TracingConfig
from protos.tracing import ATTRIBUTES, NAMES

TEXT = (Path(__file__).parent.parent / "docs/tracing.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Cells of the table that begins with a heading."""
    lines = TEXT.partition(f"| {heading} |")[2].splitlines()[2:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_every_span_is_in_the_table_and_no_other() -> None:
    """With the same words as in the code."""
    assert {name.strip("`"): text for name, text in rows("Span")} == NAMES


def test_the_attributes_are_named() -> None:
    """All of them, and none that a span cannot have."""
    assert set(re.findall(r"`feddp\.(\w+)`", TEXT)) == ATTRIBUTES


def test_every_alert_is_in_the_table_with_its_labels() -> None:
    """Made to happen all at once."""
    node = NodeFact("a", False, 0.0, refuses=(("p", "LEDGER_DISPUTED"),), certificate_ends_s=1.0)
    shut_out = NodeFact("b", False, 0.0, quarantine="a copy")
    facts = Facts(
        *(1e6, (node, shut_out), {"a/p": 0.0}, frozenset({"a/p"})),
        jobs=(WaitingJob("j", 0.0, ()),),
        certificates={"server": 1.0},
    )
    found: dict[str, set[str]] = {}
    for one in conditions(facts, Limits(1, 1, 0.1, 1, 1)):
        found.setdefault(one.name, set()).update(name for name, _ in one.labels)
    table = {
        name.strip("`"): set(re.findall(r"`(\w+)`", labels))
        for name, _, labels in rows("`alertname`")
    }
    assert table == found


@pytest.mark.parametrize("block", re.findall(r"```yaml\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))
def test_settings_load_as_they_stand(block: tuple[str, str]) -> None:
    """Keys and forms are the code's."""
    file, text = block
    ((section, values),) = yaml.safe_load(text).items()
    model: Any = {"coordinator.yaml": Monitoring, "agent.yaml": TracingConfig}[file]
    assert section == {"coordinator.yaml": "monitoring", "agent.yaml": "tracing"}[file]
    assert set(values) == model.model_validate(values).model_fields_set


def test_the_program_checks_what_the_coordinator_posts() -> None:
    """And refuses a changed body and another secret."""
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    made: dict[str, Any] = {}
    exec(program, made)  # noqa: S102 - the document's own
    header = signature(b"secret", b"{}", 1_700_000_000.9)
    assert made["is_ours"](b"secret", header, b"{}")
    assert not made["is_ours"](b"secret", header, b"{ }")
    assert not made["is_ours"](b"other", header, b"{}")
