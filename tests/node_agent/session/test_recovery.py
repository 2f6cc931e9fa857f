"""What an agent goes on with after a restart."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.failures import Failures
from node_agent.session import events as e
from node_agent.session.recovery import recover
from node_agent.state.spool import Spool
from node_agent.state.state import State
from privacy.filters import make_filter
from protos.content import digest_of
from tests.node_agent.samples import LEDGER_KEY, NODE, order

FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
UPDATE = b"an update"
DIGEST = digest_of(UPDATE)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    yield made
    made.close()


def test_after_a_restart_what_is_needed_stays_and_what_was_lost_is_posted_and_told(
    state: State, tmp_path: Path
) -> None:
    """Reserved goes on, spooled is handed in again with the same bytes, and what had opened the
    data without an update is charged, no update, and in the hospital's list of failures."""
    (tmp_path / "logs").mkdir()
    spool, failures = Spool(tmp_path / "spool"), Failures(tmp_path / "logs")
    for attempt_id in ("reserved", "spooled", "opened"):
        state.reserve(order(attempt_id), FILTER)
    for attempt_id in ("spooled", "opened"):
        assert state.open(attempt_id, 100.0, 0.5)
    spool.out("spooled").write_bytes(UPDATE)
    assert spool.keep_update("spooled", DIGEST, len(UPDATE))
    assert state.spool("spooled", DIGEST)
    base = order("reserved").base_model_digest
    for path in (spool.update("0" * 64), spool.model("1" * 64), spool.model(base)):
        path.write_bytes(b"x")

    found = {one.order.attempt_id: one for one in recover(state, spool, failures)}

    reserved = state.signature(order("reserved"), "reserve")
    assert found["reserved"] == e.Resumed(order("reserved"), "reserved", accepted=reserved)
    assert found["spooled"] == e.Resumed(
        order("spooled"),
        "spooled",
        100.0,
        0.5,
        DIGEST,
        state.signature(order("spooled"), "reserve"),
        state.signature(order("spooled"), "post"),
    )
    assert found["opened"] == e.Resumed(
        order("opened"),
        "no_update",
        100.0,
        0.5,
        "",
        state.signature(order("opened"), "reserve"),
        state.signature(order("opened"), "post"),
    )
    assert spool.update(DIGEST).read_bytes() == UPDATE
    assert spool.model(base).exists()
    assert not spool.update("0" * 64).exists()
    assert not spool.model("1" * 64).exists()
    lines = (tmp_path / "logs/failures.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [(one["attempt_id"], one["reason"]) for one in told] == [("opened", "AGENT_RESTARTED")]
