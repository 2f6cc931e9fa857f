"""An update is handed in while its round closes."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.blobs import BlobStore
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rpc.federation import FederationService
from privacy.ledger import Statement
from protos.content import digest_of
from protos.errors import FeddpError, TooLate
from protos.feddp.v1 import federation_pb2 as pb
from tests.coordinator.rounds.test_turns import World

UPDATE = b"an update"


class Trusting(FederationService):
    """Signatures are not what is looked at here."""

    async def _check(self, node: str, statement: Statement, signature: bytes) -> None:
        pass


class Closing(BlobStore):
    """Something happens to the round between the look at an update's file and its check."""

    meanwhile: Callable[[], object]

    def update(self, attempt_id: str, digest: str) -> Path:
        path = super().update(attempt_id, digest)
        self.meanwhile()
        self.drop_attempt(attempt_id)
        return path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(f"sqlite:///{tmp_path / 'c.db'}")
    made.turn(c.Survey())
    yield made
    made.database.close()


def submit(world: World, tmp_path: Path, meanwhile: Callable[[str], object]) -> str:
    """The reason with which a submission is refused; empty if it is taken."""
    blobs = Closing(tmp_path / "blobs")
    attempt_id = world.attempts()[0]
    blobs.meanwhile = lambda: meanwhile(attempt_id)
    blobs.model = lambda _digest: tmp_path / "model"  # type: ignore[method-assign]
    blobs.check_models = lambda _digests: None  # type: ignore[method-assign]
    (tmp_path / "model").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    unused = cast(Any, None)
    service = Trusting(world.database, blobs, world.sessions, unused, unused, 5)
    request = pb.SubmitUpdateRequest(attempt_id=attempt_id, digest=digest_of(UPDATE), data=UPDATE)
    found = world.live.attempt(attempt_id)
    assert found is not None
    try:
        asyncio.run(service._submitted(world.live, *found, request))
    except FeddpError as error:
        return error.reason
    return ""


def test_an_update_whose_round_closes_while_it_is_looked_at_is_late(
    world: World, tmp_path: Path
) -> None:
    """Its file is gone with the round: that is no failure of ours, nor a lost upload."""

    def cancelled(_attempt_id: str) -> None:
        world.turn(e.CancelRequested("me"))

    assert submit(world, tmp_path, cancelled) == "ATTEMPT_CLOSED"


def test_a_retry_that_meets_the_call_before_it_is_answered_as_that_one(
    world: World, tmp_path: Path
) -> None:
    """The first has been taken, folded and forgotten by then."""

    def taken(attempt_id: str) -> None:
        world.turn(e.UpdateReceived(attempt_id, digest_of(UPDATE), len(UPDATE), b"post"))

    assert submit(world, tmp_path, taken) == ""


def test_an_open_attempts_missing_bytes_are_asked_for_again(world: World, tmp_path: Path) -> None:
    """As before."""
    assert submit(world, tmp_path, lambda _attempt_id: None) == "BLOB_MISSING"


def test_an_update_that_is_kept_after_its_round_has_closed_is_dropped_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever closed the round had dropped what was there; this file came later, and nobody else
    would look for it before the next start."""
    monkeypatch.setattr("coordinator.rpc.federation.check_update", lambda *_: None)
    blobs = BlobStore(tmp_path / "blobs")
    attempt_id = world.attempts()[0]
    found = world.live.attempt(attempt_id)
    assert found is not None

    async def late(*_: object) -> None:
        assert blobs.attempts_kept() == [attempt_id]
        raise TooLate("ATTEMPT_CLOSED", "the round has closed")

    unused = cast(Any, None)
    rounds = cast(Any, SimpleNamespace(hand_in=late))
    service = Trusting(world.database, blobs, world.sessions, rounds, unused, 5)
    request = pb.SubmitUpdateRequest(attempt_id=attempt_id, digest=digest_of(UPDATE), data=UPDATE)
    with pytest.raises(TooLate):
        asyncio.run(service._submitted(world.live, *found, request))
    assert blobs.attempts_kept() == []
