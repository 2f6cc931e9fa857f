"""Which of two agents with one identity is let in."""

import asyncio

import pytest

from coordinator import sessions
from coordinator.sessions import ALIVE_S, QUEUE_MESSAGES_MAX, NodeSession, Sessions
from protos.errors import WrongPhase
from protos.feddp.v1 import federation_pb2 as pb


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that moves when a test says so."""
    made = Clock()
    monkeypatch.setattr(sessions, "time", made)
    return made


@pytest.mark.parametrize("other", ["two", ""])
def test_another_agent_is_refused_while_the_first_is_alive(clock: Clock, other: str) -> None:
    """One that does not say who it is too: a thief would not. The first one's session stays."""
    made = Sessions(30, 10)
    first = made.open("alpha", "one")
    assert made.second_at_s("alpha") == 0
    clock.now_s += ALIVE_S - 1
    with pytest.raises(WrongPhase) as caught:
        made.open("alpha", other)
    assert (caught.value.reason, caught.value.retry_after_s) == ("SESSION_TAKEN", 5.0)
    assert made.connected("alpha")
    assert made.second_at_s("alpha") == clock.now_s
    first.heard()
    clock.now_s += ALIVE_S - 1
    with pytest.raises(WrongPhase):
        made.check("alpha", other)
    made.check("beta", other)


def test_it_is_let_in_once_the_first_is_silent_or_gone(clock: Clock) -> None:
    """A machine that lost its power said no goodbye: its successor waits 15 s at most."""
    made = Sessions(30, 10)
    made.open("alpha", "one")
    clock.now_s += ALIVE_S
    second = made.open("alpha", "two")
    made.close(second)
    made.open("alpha", "three")


def test_the_same_agent_and_one_of_an_older_version_replace_their_sessions(clock: Clock) -> None:
    """A reconnect, and a move to a newer certificate, are no second agent."""
    made = Sessions(30, 10)
    made.open("alpha", "one")
    made.open("alpha", "one")
    made.open("beta", "")
    made.open("beta", "")
    made.open("beta", "one")


def order(attempt_id: str) -> pb.CoordinatorMessage:
    """A message for a node."""
    return pb.CoordinatorMessage(work_order=pb.WorkOrder(attempt_id=attempt_id))


def heard_by(session: NodeSession) -> list[pb.CoordinatorMessage]:
    """All that a stream gives until its end."""

    async def read() -> list[pb.CoordinatorMessage]:
        return [message async for message in session.messages()]

    async def read_in_time() -> list[pb.CoordinatorMessage]:
        async with asyncio.timeout(5):
            return await read()

    return asyncio.run(read_in_time())


def test_a_silent_stream_counts_as_lost_after_its_time_and_a_broken_one_after_its_own(
    clock: Clock,
) -> None:
    """A quorum does not wait for either; whoever speaks again is there again."""
    made = Sessions(30, 10)
    session = made.open("alpha", "one")
    clock.now_s += 29
    assert (made.connected("alpha"), made.lost("alpha")) == (True, False)
    clock.now_s += 1
    assert (made.connected("alpha"), made.lost("alpha")) == (False, True)
    session.heard()
    assert (made.connected("alpha"), made.lost("alpha")) == (True, False)
    made.close(session)
    clock.now_s += 9
    assert (made.connected("alpha"), made.lost("alpha")) == (False, False)
    clock.now_s += 1
    assert made.lost("alpha")


def test_a_node_that_never_came_is_missed_from_the_moment_when_it_could_come(clock: Clock) -> None:
    """A coordinator that waited for the lease for an hour has missed nobody."""
    made = Sessions(30, 10)
    clock.now_s += 3600
    made.begin()
    assert not made.lost("alpha")
    clock.now_s += 10
    assert made.lost("alpha")


def test_a_session_that_is_cut_ends_after_what_was_queued(clock: Clock) -> None:
    """From then on nothing reaches the node, and it is missed as from a broken stream."""
    made = Sessions(30, 10)
    session = made.open("alpha", "one")
    assert made.send("alpha", order("a1"))
    clock.now_s += 100
    made.cut("alpha")
    assert not made.send("alpha", order("a2"))
    assert not made.connected("alpha")
    assert heard_by(session) == [order("a1")]
    clock.now_s += 9
    assert not made.lost("alpha")
    clock.now_s += 1
    assert made.lost("alpha")


def test_a_session_that_is_replaced_ends_and_its_end_costs_the_new_one_nothing(
    clock: Clock,
) -> None:
    """The old stream's handler is told of its end later than the new one began."""
    made = Sessions(30, 10)
    old = made.open("alpha", "one")
    new = made.open("alpha", "one")
    assert heard_by(old) == []
    made.close(old)
    assert made.connected("alpha")
    assert made.send("alpha", order("a1"))
    made.cut("alpha")
    assert heard_by(new) == [order("a1")]


def test_a_node_that_reads_nothing_is_cut_and_keeps_no_memory(clock: Clock) -> None:
    """Its stream ends when it reads again, and it gets its orders anew."""
    made = Sessions(30, 10)
    session = made.open("alpha", "one")
    for number in range(QUEUE_MESSAGES_MAX + 1):
        made.send("alpha", order(f"a{number}"))
    assert len(heard_by(session)) == QUEUE_MESSAGES_MAX - 1


def test_draining_asks_every_node_to_come_back_and_ends_its_stream(clock: Clock) -> None:
    """Nothing is left open that would keep the coordinator from ending."""
    made = Sessions(30, 10)
    opened = [made.open(name, "one") for name in ("alpha", "beta")]
    made.drain()
    assert made.nodes() == []
    for session in opened:
        assert [one.WhichOneof("message") for one in heard_by(session)] == ["drain"]
