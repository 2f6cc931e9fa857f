"""What is told of a node that is shut out, and of a data set that cannot be used: as it is."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from node_agent.alert_watch import DAY_S, AlertWatch, digest_note
from node_agent.alerts import AlertsConfig
from node_agent.digest import digest
from node_agent.header_watch import HeaderWatch
from node_agent.notes import CONNECTED_NOTE, REFUSED_NOTE
from node_agent.session.ledger_thread import LedgerThread
from tests.node_agent.samples import DATA_SET, write_rules
from tests.node_agent.test_alerts import CONFIG, Agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """One in order."""
    made = Agent(tmp_path / "agent")
    yield made
    made.state.close()


@pytest.mark.parametrize(
    ("reason", "do"),
    [
        ("NODE_QUARANTINED", "a second machine"),
        ("SESSION_TAKEN", "stop one of the two"),
        ("NODE_DISABLED", "ask the coordinator's operator"),
    ],
)
def test_a_node_that_is_shut_out_is_told_so_soon_and_not_sent_to_its_network(
    agent: Agent, reason: str, do: str
) -> None:
    """A copy of the keys in use is the one thing that must not wait for an hour."""
    notes = agent.state.notes
    notes.keep(CONNECTED_NOTE, "")
    said = {"at": 1.0, "reason": reason, "message": "node alpha is shut out\n" + "x" * 9000}
    notes.keep(REFUSED_NOTE, json.dumps(said))
    start = datetime.now(UTC)
    assert agent.events(now=start) == []  # an agent that was just started may wait so
    (found,) = agent.found(now=start + timedelta(seconds=31))
    assert (found.event, reason in found.text, do in found.remedy) == ("REFUSED", True, True)
    assert "doctor" not in found.remedy
    assert len(found.text) <= 500
    notes.keep(REFUSED_NOTE, "")
    notes.keep(CONNECTED_NOTE, "2.0")
    assert agent.events(now=start) == []


def test_the_digest_tells_of_a_data_set_that_cannot_be_used(agent: Agent, tmp_path: Path) -> None:
    """Whatever is wrong with it, as the alerts do: the command's, and the one that is sent."""
    write_rules(agent.folder.root, data_sets=[{**DATA_SET, "opt_out": "opt-out.txt"}])
    (agent.folder.root / "opt-out.txt").write_text("p1, moved away\n")
    (found,) = digest(agent.folder.root, 7.0)["alerts"]
    assert found["event"] == "DATA_SET_UNAVAILABLE"
    assert "opt-out list" in found["text"]
    keys = {"file": {"path": str(tmp_path / "feddp.json")}, "digest_days": 7.0}
    config = AlertsConfig.model_validate({**CONFIG.model_dump(), **keys})
    headers, ledger = HeaderWatch(agent.folder, agent.steward), LedgerThread()
    asyncio.run(headers.look())
    now_s = 1000 * DAY_S
    agent.state.notes.keep(digest_note("file"), f"{now_s - 8 * DAY_S:.3f}")
    watch = AlertWatch(
        agent.folder,
        agent.identity,
        config,
        agent.state,
        ledger,
        agent.steward,
        headers.texts,
        clock=lambda: now_s,
    )
    try:
        asyncio.run(watch.look())
    finally:
        ledger.close()
    assert "opt-out list" in (tmp_path / "feddp.digest.txt").read_text()
