"""Which of two agents with one identity is let in."""

import pytest

from coordinator import sessions
from coordinator.sessions import ALIVE_S, Sessions
from protos.errors import WrongPhase


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
