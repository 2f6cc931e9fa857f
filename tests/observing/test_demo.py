"""Every expression of every dashboard and alert, asked of a real Prometheus that scrapes a real
federation: each gives a sample that is a number, but for the exceptions."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
import yaml

from node_agent.joining.enrol import join
from protos.errors import FeddpError
from tests.integration.federation import NODES, Federation, job_file, null_job, wait_for
from tests.observing.prometheus import JOB, ROOT, RULES, Prometheus, running

BOARDS: Final = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "charts/feddp/dashboards").glob("*.json"))
}
VARIABLES: Final = {"$job": JOB, "$namespace": ".*", "$__rate_interval": "1m"}

EXCEPTIONS: Final = {
    "operational: Alerts that fire": "no alert fires in a federation that is well",
    "alert CoordinatorDown": "it asks for what is absent, and the coordinator is there",
}
"""Expressions that give no sample there, and why."""


def _expressions() -> Iterator[tuple[str, str]]:
    for board, made in BOARDS.items():
        for panel in made["panels"]:
            for target in panel.get("targets", ()):
                yield f"{board}: {panel['title']}", _filled_in(target["expr"])
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]:
        yield f"alert {rule['alert']}", _measured(rule["expr"])


def _filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def _measured(expression: str) -> str:
    """What an alert compares with its limit: the comparison itself drops what is well."""
    found = re.fullmatch(r"(.*) (?:<|>|==|>=) [0-9. *]+", expression.strip(), re.DOTALL)
    return found[1] if found else expression


EXPRESSIONS: Final = sorted(set(_expressions()))


@dataclass(frozen=True, slots=True)
class Watched:
    """A federation and the Prometheus that watches it."""

    federation: Federation
    prometheus: Prometheus

    def has(self, expression: str) -> bool:
        """Whether it gives a sample above 0."""
        return any(one > 0 for one in self.prometheus.values(expression))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A coordinator and three agents that have run two jobs, a node that publishes nothing, and
    somebody who was refused: its token came to another machine first."""
    folder = tmp_path_factory.mktemp("watched")
    federation = Federation(folder)
    names = NODES[:3]
    target = federation.health.removeprefix("http://")
    try:
        with running(folder / "prometheus", [target]) as prometheus:
            made = Watched(federation, prometheus)
            federation.start("coordinator")
            for name in names:
                federation.add_node(name)
                federation.start(name)
            federation.wait_for_nodes(*names)
            with federation.client() as client:
                token = client.create_token("late", "edge", 3600).token
            join(token, federation.agent("late"))
            with pytest.raises(FeddpError):
                join(token, federation.agent("thief"))
            federation.start("late")
            federation.wait_for_nodes("late")
            for spec in (null_job(20), job_file(federation={"rounds": 4})):
                job = federation.wait_for_end(federation.submit(spec))
                assert job.status == "completed", job.message
            with federation.client() as client:
                client.accounts("cohort")
            # The coordinator looks at its jobs every two seconds, Prometheus at the coordinator.
            wait_for("both jobs are shown", lambda: made.has(_ENDED), 60)
            # What is counted over time needs a second sample, what is counted seldom its turn.
            wait_for("the ledger's length is shown", lambda: made.has(_ENTRIES), 60)
            wait_for("calls were counted twice", lambda: made.has(_LOOKED), 60)
            yield made
    finally:
        federation.stop()


_ENDED: Final = 'feddp_jobs{status="completed"} == 2'
_ENTRIES: Final = "feddp_ledger_countersigned_entries > 0"
_LOOKED: Final = (
    'count_over_time(request_duration_seconds_count{method="Budgets/ListAccounts"}[5m]) > 1'
)


@pytest.mark.parametrize(
    ("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS]
)
def test_each_expression_gives_a_number(where: str, expression: str, watched: Watched) -> None:
    """Of a healthy federation, each panel and each alert; an exception must still be one."""
    found = watched.prometheus.values(expression)
    if where in EXCEPTIONS:
        assert found == [], f"{where} gives a sample now: take it off EXCEPTIONS"
        return
    assert found, f"{where}: no sample of {expression}"
    assert not any(math.isnan(one) or math.isinf(one) for one in found), (where, found)


def test_the_exceptions_are_expressions() -> None:
    """None is left over from a panel that was renamed."""
    assert EXCEPTIONS.keys() <= {where for where, _ in EXPRESSIONS}


def test_prometheus_evaluates_every_rule(watched: Watched) -> None:
    """None of them fails on what the coordinator shows, and none fires."""
    (group,) = watched.prometheus.get("rules")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    assert {one["health"] for one in rules} == {"ok"}, rules
    assert [one["name"] for one in rules if one["state"] == "firing"] == []


def test_what_is_shown_is_what_is_so(watched: Watched) -> None:
    """Nodes, jobs, people and certificates as the federation was built."""
    prometheus = watched.prometheus
    assert prometheus.values('feddp_nodes{status="enrolled"}') == [4.0]
    assert prometheus.values('feddp_jobs{status="completed"}') == [2.0]
    assert prometheus.values('feddp_jobs{status="running"}') == [0.0]
    assert prometheus.values("feddp_users") == [1.0]
    assert prometheus.values("feddp_ledger_open_reservations") == [0.0]
    assert len(prometheus.values("feddp_node_certificate_expiry_timestamp_seconds")) == 4
    entries = [float(len(watched.federation.entries()))]
    wait_for(
        "the ledger's whole length is shown",
        lambda: prometheus.values("feddp_ledger_chain_entries") == entries,
        90,
    )
    spent = prometheus.values("feddp_budget_limit_epsilon - privacy_budget_remaining")
    assert len(spent) == 3, "the fourth publishes nothing"
    assert all(0 < one <= 2.0 for one in spent)


def test_an_agent_that_is_killed_is_seen_and_a_job_that_waits_for_it(watched: Watched) -> None:
    """Last, as it ends the federation's health: NodeUnhealthy's and JobWaiting's figures move."""
    federation = watched.federation
    federation.kill(NODES[0])
    wait_for("the node is missed", lambda: watched.has("federated_node_health == bool 0"), 60)
    assert watched.prometheus.values("sum(1 - federated_node_health)") == [1.0]
    federation.submit(null_job(3, min_participants=3))
    wait_for("the job waits", lambda: watched.has("feddp_job_waiting_seconds"), 60)
    assert watched.prometheus.values("feddp_jobs_waiting") == [1.0]
