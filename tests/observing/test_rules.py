"""The alerts as Prometheus reads them: each fires when it should, and not otherwise."""

import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.observing.alert_cases import CASES, Case
from tests.observing.prometheus import JOB, RULES, program

(GROUP,) = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: Final[dict[str, dict[str, Any]]] = {one["alert"]: one for one in GROUP["rules"]}


def _promtool(*words: str) -> str:
    done = subprocess.run(
        [program("promtool"), *words], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _with_job(series: str) -> str:
    name, _, labels = series.partition("{")
    return f'{name}{{job="{JOB}",{labels}' if labels else f'{name}{{job="{JOB}"}}'


def _as_promtool_reads(case: Case) -> dict[str, Any]:
    rule = ALERTS[case.alert]
    expected = [
        {
            "exp_labels": {
                name: value
                for name, value in {"job": JOB, **rule["labels"], **labels}.items()
                if value
            },
            "exp_annotations": rule["annotations"] | {"description": description},
        }
        for labels, description in case.fires
    ]
    return {
        "interval": "1m",
        "input_series": [
            {"series": _with_job(name), "values": values} for name, values in case.series.items()
        ],
        "alert_rule_test": [
            {"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected}
        ],
    }


def test_prometheus_takes_the_rules() -> None:
    """`promtool check rules` finds each of them and no fault."""
    said = _promtool("check", "rules", str(RULES))
    assert f"SUCCESS: {len(ALERTS)} rules found" in said


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_when_it_should_and_not_otherwise(name: str, tmp_path: Path) -> None:
    """`promtool test rules` with series of which the first are bad and the others are not."""
    cases = [one for one in CASES if one.alert == name]
    assert {bool(one.fires) for one in cases} == {True, False}, "one that fires, one that does not"
    file = tmp_path / "cases.yaml"
    tests = {"rule_files": [str(RULES)], "tests": [_as_promtool_reads(one) for one in cases]}
    file.write_text(yaml.safe_dump(tests))
    _promtool("test", "rules", str(file))


def test_each_case_is_of_an_alert() -> None:
    """None is left over from an alert that was renamed."""
    assert {one.alert for one in CASES} == ALERTS.keys()


def test_critical_alerts_are_those_that_wake_somebody() -> None:
    """What stops work or touches the guarantee; a rule has no other severity."""
    by_severity: dict[str, set[str]] = defaultdict(set)
    for name, rule in ALERTS.items():
        by_severity[rule["labels"]["severity"]].add(name)
    assert by_severity.keys() == {"critical", "warning"}
    assert by_severity["warning"] == {
        "AccountsNotHandedIn",
        "AuthorityExpiring",
        "BackupOld",
        "HighLatency",
        "JobWaiting",
        "NodeCertificateExpiring",
        "NodeLeftOut",
        "ReplicaDown",
    }
