"""docs/production.md: nothing of the guide that it replaces is left out, and its files hold."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from coordinator.config.config import load_config
from coordinator.config.effects import effects
from coordinator.installation import init
from tests.charts.rendering import named, objects
from tests.document_facts import ROOT, commands, help_of, is_whole, links

TEXT = (ROOT / "docs/production.md").read_text()
UNIT = ROOT / "deploy/systemd/feddp-coordinator.service"

SECTIONS = (
    *("System Status", "Deployment Architecture", "Production Infrastructure"),
    *("Deployment Configurations", "Environment Configuration", "Docker Production Setup"),
    *("Kubernetes Deployment", "Security Hardening", "Network Security", "TLS/SSL Configuration"),
    *("Secrets Management", "Monitoring & Observability", "Metrics Collection"),
    *("Key Metrics to Monitor", "Compliance Monitoring", "Deployment Procedures"),
    *("Pre-Deployment Checklist", "Rolling Deployment", "Blue-Green Deployment"),
    *("Operational Procedures", "Health Checks", "Backup & Recovery", "Scaling Operations"),
    *("Maintenance & Updates", "Regular Maintenance Tasks", "Update Procedures"),
    *("Emergency Procedures", "Success Metrics", "Production KPIs", "Monitoring Dashboards"),
    *("Support & Escalation", "Support Tiers", "Contact Information", "Deployment Sign-Off"),
    *("Required Approvals", "Production Readiness Certification"),
)
"""Headings of the older guide, in its order."""


def test_each_section_of_the_older_guide_went_somewhere() -> None:
    """In its order, once, with a link to where."""
    table = TEXT.partition("## Where the sections went")[2]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|[^|]*\|$", table, re.MULTILINE)[1:]
    assert tuple(name for name, _ in rows) == SECTIONS
    assert all(links(where) for _, where in rows)


def test_the_ten_lines_of_values_make_a_coordinator_that_is_watched() -> None:
    """Rendered by Helm's own engine."""
    (shown,) = re.findall(r"^```yaml\n(coordinator:.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(shown.splitlines()) <= 10
    found = objects(yaml.safe_load(shown))
    kinds = [one["kind"] for one in found]
    assert kinds.count("StatefulSet") == 1
    for kind in ("Gateway", "ServiceMonitor", "PrometheusRule", "NetworkPolicy"):
        assert kind in kinds, kind
    name = named(found, "StatefulSet")["metadata"]["name"]
    stated = set(re.findall(r"statefulset/([a-z-]+)", TEXT))
    assert stated == {name}


def test_the_configuration_that_is_shown_loads_over_what_init_writes(tmp_path: Path) -> None:
    """Every key as it stands, and the check finds no fault in any."""
    (shown,) = re.findall(
        r"^```yaml\n# coordinator\.yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE
    )
    made = init(tmp_path / "c", "hospitals.example")
    (tmp_path / "c/webhook.secret").write_text("a secret of this test\n")
    made.config.write_text(made.config.read_text() + shown)
    config = load_config(made.config, {})
    for section, keys in yaml.safe_load(shown).items():
        for key, value in keys.items():
            loaded = getattr(getattr(config, section), key)
            expected = made.folder / value if key.endswith("_secret") else value
            assert loaded == expected, key
    about = {one.where for one in effects(config)}
    assert not {f"{s}.{key}" for s, keys in yaml.safe_load(shown).items() for key in keys} & about


def test_the_numbers_that_the_page_gives_are_those_of_the_code() -> None:
    """Keys of the older guide's file without effect, alerts, ports."""
    config = load_config(ROOT / "config/production.yaml", {})
    without = [one for one in effects(config) if one.text.startswith("no effect")]
    assert (len(without), "Seventeen keys of its file do nothing" in TEXT) == (17, True)
    (group,) = yaml.safe_load((ROOT / "charts/feddp/rules/feddp.yaml").read_text())["groups"]
    assert (len(group["rules"]), "and fifteen more" in TEXT) == (3 + 15, True)
    server = yaml.safe_load((ROOT / "config/full.yaml").read_text())["server"]
    ports = (server["port"], server["enrollment_port"], server["health_port"])
    table = TEXT.partition("## Names, ports, certificates")[2].partition("Open nothing")[0]
    shown = [
        int(one) for one in re.findall(r"^\|[^|]+\|[^|]+\| (80\d+|84\d+)\b", table, re.MULTILINE)
    ]
    assert tuple(dict.fromkeys([shown[0], shown[1], shown[2]])) == ports


def test_the_unit_is_what_systemd_understands(tmp_path: Path) -> None:
    """By `systemd-analyze verify`, without a word; exposed little by its own measure; and it runs
    commands that there are."""
    text = UNIT.read_text()
    for words, options in commands(text):
        assert is_whole(words)
        assert all(f"{one} " in help_of(words) for one in options)
    assert len(commands(text)) >= 2
    analyze = shutil.which("systemd-analyze")
    if analyze is None:  # said, so that nobody takes it for checked
        pytest.skip("this machine has no systemd-analyze")
    path = tmp_path / UNIT.name
    path.write_text(text.replace("/opt/feddp/bin/feddp", "/usr/bin/true"))
    done = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    measured = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=35", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert measured.returncode == 0, measured.stdout
