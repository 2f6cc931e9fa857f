"""docs/observing.md and the runbooks: what they say of metrics, alerts and dashboards is so."""

import json
import re
import subprocess
import sys
from typing import Any, Final

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from coordinator.observing.metrics import Metrics
from tests.charts.test_document import commands
from tests.observing.busy import busy
from tests.observing.prometheus import ROOT, RULES

TEXT: Final = (ROOT / "docs/observing.md").read_text()
PAGES: Final = {path.stem: path.read_text() for path in (ROOT / "docs/runbooks").glob("*.md")}
(GROUP,) = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: Final[dict[str, dict[str, Any]]] = {one["alert"]: one for one in GROUP["rules"]}
BOARDS: Final = [
    json.loads(path.read_text()) for path in (ROOT / "charts/feddp/dashboards").glob("*.json")
]


def _labels(metrics: Metrics) -> dict[str, tuple[str, ...]]:
    found = (one for one in vars(metrics).values() if isinstance(one, MetricWrapperBase))
    return {one._name: one._labelnames for one in found}


def rows() -> set[tuple[str, str, str, str]]:
    """(name, kind, labels, meaning) of each metric, as the table should hold it."""
    metrics = busy()
    labels = _labels(metrics)
    return {
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            ", ".join(labels.get(family.name, ())),
            family.documentation,
        )
        for family in metrics.registry.collect()
    }


def test_the_table_holds_every_metric_as_it_is_shown() -> None:
    """Name, kind, labels and help text are those of the registry, and no row is left over."""
    found = re.findall(
        r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \| ([a-z, ]*?) ?\| (.+) \|$",
        TEXT,
        re.MULTILINE,
    )
    assert len(found) == len(set(found))
    assert set(found) == rows()


def test_no_metric_says_anything_of_one_patient_person_or_job() -> None:
    """Labels are nodes and data sets that are enrolled, and words of the code."""
    labels = {label for names in _labels(busy()).values() for label in names}
    assert labels == {
        *("node", "dataset"),
        *("method", "code", "phase", "outcome", "direction", "kind", "status"),
        *("guarantee", "reason", "holder"),
    }
    private = ("loss", "norm", "accuracy", "auc", "gradient", "patient", "record", "drift")
    for name, *_ in rows():
        assert not any(word in name.split("_") for word in private), name


def test_a_node_that_is_disabled_is_shown_by_no_label() -> None:
    """Else an alert would fire for it for ever, and labels would only grow."""
    metrics = busy()
    metrics.forget_node("alpha")
    shown = [
        (family.name, sample.labels)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("node") == "alpha"
    ]
    assert shown == []


def test_each_alert_has_its_page_and_each_page_its_alert() -> None:
    """The annotation names a page that exists; the document lists them in the file's order."""
    assert PAGES.keys() == ALERTS.keys()
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/runbooks/{name}.md"
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    listed = re.findall(r"^\| \[([A-Za-z]+)\]\(runbooks/([A-Za-z]+)\.md\) \|", TEXT, re.MULTILINE)
    assert listed == [(name, name) for name in ALERTS]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_it_means_where_to_look_what_to_do_and_whom_to_call(name: str) -> None:
    """In this order, none of them empty, and with commands to look with."""
    title, *parts = re.split(r"^#+ (.+)\n", PAGES[name], flags=re.MULTILINE)
    assert title == ""
    headings, texts = parts[::2], parts[1::2]
    assert headings == [name, "Look", "Do", "Escalate"]
    assert all(len(one.split()) > 5 for one in texts)
    assert "```sh" in texts[1]
    for target in re.findall(r"\]\(([A-Za-z]+)\.md\)", PAGES[name]):
        assert target in PAGES


SHOWN: Final[dict[tuple[str, ...], set[str]]] = {}
"""Command -> the options that are shown with it."""

for _text in (TEXT, *PAGES.values()):
    for _shown in commands(_text):
        _words = tuple(word for word in _shown if not word.startswith("--"))
        SHOWN.setdefault(_words, set()).update(_shown[len(_words) :])


@pytest.mark.parametrize("words", sorted(SHOWN), ids=" ".join)
def test_each_command_that_a_page_shows_exists(words: tuple[str, ...]) -> None:
    """With the options that are shown, by the command's own help."""
    said = subprocess.run(
        [sys.executable, "-m", "feddp", *words, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert said.returncode == 0, words
    assert f"feddp {' '.join(words)} " in said.stdout
    for option in SHOWN[words]:
        assert option in said.stdout, option


def test_the_document_names_the_dashboards() -> None:
    """Each by its title."""
    titles = {one["title"].removeprefix("feddp / ") for one in BOARDS}
    assert titles == {"Operational", "Privacy", "Security", "Compliance", "Business"}
    listed = re.findall(r"^\| ([A-Z][a-z]+) \|", TEXT, re.MULTILINE)
    assert set(listed) - {"Alert", "Metric", "Dashboard"} == titles


@pytest.mark.parametrize("board", BOARDS, ids=lambda one: one["uid"])
def test_a_dashboard_can_be_read(board: dict[str, Any]) -> None:
    """Each panel has a title, a sentence, a unit, named lines and a place of its own; each
    expression asks for the chosen release alone."""
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] == "row":
            continue
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        legends = [one["legendFormat"] for one in panel["targets"]]
        assert all(legends)
        assert len(set(legends)) == len(legends)
        for target in panel["targets"]:
            assert re.findall(r"\{[^}]*\}", target["expr"])
            for selector in re.findall(r"\{([^}]*)\}", target["expr"]):
                assert 'namespace=~"$namespace"' in selector, target["expr"]
                assert "$job" in selector
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), panel["title"]
