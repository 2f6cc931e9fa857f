"""What becomes of a spooled update when its attempt is closed."""

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from node_agent.session import commands as c
from node_agent.session import delivery as delivery_module
from node_agent.session import events as e
from node_agent.session.delivery import Delivery
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.spool import Spool
from node_agent.state.state import State
from privacy.filters import make_filter
from protos.content import digest_of
from protos.errors import Conflict, Malformed
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


class Handing:
    """One spooled update on its way, the database and the spool real, the coordinator played."""

    def __init__(self, state: State, folder: Path, answer: Exception | None) -> None:
        self.state, self.spool = state, Spool(folder)
        self.withdrawn = False
        self.told: list[e.Event] = []
        self._answer = answer
        spool_update(state, self.spool, "a1", "job-1")

    def play(self) -> str:
        """Hand in, and have the coordinator close the attempt; what its row says then."""
        asyncio.run(self._play())
        row = self.state.attempts.find("a1")
        assert row is not None
        assert row.state == "closed"
        return row.reason

    async def _play(self) -> None:
        ledger = LedgerThread()
        delivery = Delivery(
            cast(Any, SimpleNamespace(hand_in=self._hand_in)),
            self.state,
            ledger,
            cast(Any, SimpleNamespace(is_withdrawn=lambda _: self.withdrawn)),
            self.spool,
            dispatch=self.told.append,
            find=lambda _: cast(Any, SimpleNamespace(order=order("a1", job_id="job-1"))),
        )
        assert delivery.begins("a1")
        await delivery.hand_in(c.UploadAndSubmit("a1", DIGEST, b"post", b"res"))
        await delivery.close("a1", "post")
        ledger.close()

    async def _hand_in(self, *_: object) -> None:
        if not self.spool.update(DIGEST).exists():
            raise FileNotFoundError
        if self._answer is not None:
            raise self._answer


@pytest.mark.parametrize(
    ("answer", "event", "fate"),
    [
        (None, e.UpdateAcknowledged("a1"), "UPDATE_ACKNOWLEDGED"),
        (Malformed("UPDATE_INVALID", "no"), e.UpdateRejected("a1"), "UPDATE_REJECTED"),
        # Nothing is booked there yet: the coordinator has to hear that there is no update.
        (Malformed("DIGEST_MISMATCH", "no"), e.UpdateVanished("a1"), "UPDATE_REJECTED"),
        (Conflict("UPDATE_CONFLICT", "no"), e.UpdateVanished("a1"), "UPDATE_REJECTED"),
    ],
)
def test_what_became_of_an_update_is_kept_with_its_attempt(
    state: State, tmp_path: Path, answer: Exception | None, event: e.Event, fate: str
) -> None:
    """`feddp agent outbox` says of each whether it left: taken, or refused for good."""
    handing = Handing(state, tmp_path / "spool", answer)
    assert handing.play() == fate
    assert handing.told == [event]
    assert not handing.spool.update(DIGEST).exists()


def test_an_update_that_is_gone_is_told_as_no_update_and_kept_as_vanished(
    state: State, tmp_path: Path
) -> None:
    """It was charged; nobody at the hospital took it away."""
    handing = Handing(state, tmp_path / "spool", None)
    handing.spool.drop_update(DIGEST)
    assert handing.play() == "UPDATE_VANISHED"
    assert handing.told == [e.UpdateVanished("a1")]


def test_an_update_whose_data_set_was_withdrawn_does_not_leave(
    state: State, tmp_path: Path
) -> None:
    """It is removed before anything of it is sent, and that it was the policy is kept."""
    handing = Handing(state, tmp_path / "spool", None)
    handing.withdrawn = True
    assert handing.play() == "UPDATE_WITHDRAWN"
    assert handing.told == [e.UpdateVanished("a1")]


@pytest.mark.parametrize(
    ("attempt_id", "outcome", "said"),
    [
        ("never", "post", ["closed_attempt_unknown"]),
        ("a1", "void", ["void_of_opened_attempt"]),
        ("a1", "post", []),
        ("reserved", "void", []),
    ],
)
def test_a_close_that_contradicts_this_hospital_is_in_its_log(
    state: State, tmp_path: Path, attempt_id: str, outcome: Any, said: list[str]
) -> None:
    """An attempt that it never had, or one whose data was opened and is to have cost nothing."""
    state.reserve(order("a1", job_id="job-1"), FILTER)
    state.open("a1", 100.0, 0.5)
    state.reserve(order("reserved", job_id="job-1"), FILTER)

    async def scene() -> None:
        ledger, unused = LedgerThread(), cast(Any, None)
        spool = Spool(tmp_path / "spool")
        delivery = Delivery(
            *(unused, state, ledger, unused, spool), dispatch=lambda _: None, find=lambda _: None
        )
        await delivery.close(attempt_id, outcome)
        ledger.close()

    with capture_logs() as logs:
        asyncio.run(scene())
    assert [one["event"] for one in logs] == said
    row = state.attempts.find("a1")
    assert row is not None
    if attempt_id == "a1":
        assert (row.state, row.outcome) == ("closed", "post")  # whatever the coordinator says
