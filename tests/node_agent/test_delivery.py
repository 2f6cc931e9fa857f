"""What becomes of a spooled update when its attempt is closed."""

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from node_agent.session import commands as c
from node_agent.session import delivery as delivery_module
from node_agent.session import events as e
from node_agent.session.delivery import Delivery
from node_agent.state.spool import Spool
from node_agent.state.state import State
from privacy.filters import make_filter
from protos.content import digest_of
from tests.node_agent.samples import LEDGER_KEY, NODE, order

FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
UPDATE = b"without noise two updates may be the same"
DIGEST = digest_of(UPDATE)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    yield made
    made.close()


def spool_update(state: State, spool: Spool, attempt_id: str, job_id: str) -> None:
    """An attempt that has trained, and whose update waits to go out."""
    state.reserve(order(attempt_id, job_id=job_id), FILTER)
    state.open(attempt_id, 100.0, 0.5)
    spool.out(attempt_id).write_bytes(UPDATE)
    assert spool.keep_update(attempt_id, DIGEST, len(UPDATE))
    assert state.spool(attempt_id, DIGEST)


def test_an_update_stays_until_the_last_attempt_that_has_it_is_closed(
    state: State, tmp_path: Path
) -> None:
    """Two jobs got the same bytes, which are in the spool once: the end of one costs the other
    nothing."""
    spool = Spool(tmp_path / "spool")
    unused = cast(Any, None)
    delivery = Delivery(
        unused, state, unused, unused, spool, dispatch=lambda _: None, find=lambda _: None
    )
    spool_update(state, spool, "a1", "job-1")
    spool_update(state, spool, "a2", "job-2")
    delivery._close_now("a1", "post")
    assert spool.update(DIGEST).read_bytes() == UPDATE
    delivery._close_now("a1", "post")  # the coordinator says it again
    assert spool.update(DIGEST).read_bytes() == UPDATE
    delivery._close_now("a2", "post")
    assert not spool.update(DIGEST).exists()


def test_an_update_that_the_disk_does_not_give_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An input/output error ends neither the agent nor the update: what else it works at goes on,
    and a disk that comes back gives what was trained."""
    faults = [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "no")]
    tries: list[str] = []
    waited: list[float] = []

    async def hand_in(attempt_id: str, *_: object) -> None:
        tries.append(attempt_id)
        if faults:
            raise faults.pop()

    async def sleep(delay_s: float) -> None:
        waited.append(delay_s)

    monkeypatch.setattr(delivery_module.asyncio, "sleep", sleep)
    told: list[e.Event] = []
    unused = cast(Any, None)
    delivery = Delivery(
        cast(Any, SimpleNamespace(hand_in=hand_in)),
        *(unused, unused, unused, unused),
        dispatch=told.append,
        find=lambda _: None,
    )
    assert delivery.begins("a1")
    assert not delivery.begins("a1")  # while it is on its way
    asyncio.run(delivery.hand_in(c.UploadAndSubmit("a1", DIGEST, b"post", b"res")))
    assert (tries, told) == (["a1"] * 3, [e.UpdateAcknowledged("a1")])
    assert waited == [delivery_module.READ_AGAIN_S] * 2
    assert delivery.begins("a1")  # the coordinator may ask once more
