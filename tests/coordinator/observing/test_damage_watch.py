"""A damaged account is told of once, and a broken job does not cost a node its session."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

from coordinator.blobs import BlobStore
from coordinator.observing.damage_watch import DamageWatch
from coordinator.observing.metrics import Metrics
from coordinator.pausing import Pausing
from coordinator.rounds import events as e
from coordinator.rounds.driver import Rounds
from coordinator.rounds.effects import Effects
from coordinator.sessions import Sessions
from coordinator.store.database import Database
from protos.errors import invariant


def test_each_damaged_account_is_told_of_once_and_again_when_it_is_sound() -> None:
    """However often it is looked; the gauge shows how many there are now."""
    metrics = Metrics()
    watch = DamageWatch(metrics)
    with structlog.testing.capture_logs() as said:
        for found in ({"a/p"}, {"a/p"}, {"a/p", "b/p"}, {"b/p"}, {"b/p"}):
            watch.found(found)
    assert [(one["event"], one["account"]) for one in said] == [
        ("account_damaged", "a/p"),
        ("account_damaged", "b/p"),
        ("account_sound_again", "a/p"),
    ]
    assert "feddp budget verify" in said[0]["detail"]
    assert metrics.registry.get_sample_value("feddp_ledger_damaged_accounts") == 1.0


def test_a_job_whose_state_contradicts_itself_does_not_cost_a_node_its_session(
    tmp_path: Path,
) -> None:
    """The other jobs are told of the node."""

    class OneIsBroken(Rounds):
        def running(self) -> list[Any]:
            return [SimpleNamespace(job_id=one) for one in ("first", "broken", "last")]

        async def apply(self, live: Any, given: Any) -> None:
            invariant(live.job_id != "broken", "it contradicts itself")
            told.append((live.job_id, given))

    told: list[Any] = []
    database, sessions = Database(f"sqlite:///{tmp_path / 'c.db'}"), Sessions(30.0, 10.0)
    pausing = Pausing(database)
    effects = Effects(BlobStore(tmp_path), sessions, pausing)
    rounds = OneIsBroken(database, sessions, effects, Metrics(), pausing)
    with structlog.testing.capture_logs() as said:
        asyncio.run(rounds.node_arrived("a"))
    database.close()
    assert told == [(one, e.NodeReturned("a")) for one in ("first", "last")]
    assert [(one["event"], one["job_id"]) for one in said] == [("event_not_taken", "broken")]
