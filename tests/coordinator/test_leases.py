"""One coordinator at a time, and one that was replaced can write nothing more."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator import leadership
from coordinator.leadership import NAME, Leadership, is_gone, this_process
from coordinator.store import jobs, leases
from coordinator.store.database import Database
from coordinator.store.schema import leases as schema_leases
from protos.errors import Unavailable


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A migrated database that several processes may open."""
    url = f"sqlite:///{tmp_path / 'c.db'}"
    opened = Database(url)
    opened.migrate()
    opened.close()
    return url


def test_a_holder_that_was_replaced_can_write_nothing(url: str) -> None:
    """The first is paused, the second takes over; each later write of the first is refused."""

    async def scene() -> None:
        first, second = Database(url), Database(url)
        one, two = Leadership(first), Leadership(second)
        await one.take()
        first.write_now(lambda c: jobs.set_status(c, "j", "failed"))
        # It is as if the first had not renewed for so long.
        first.write_now(lambda c: c.execute(schema_leases.update().values(expires_at=0.0)))
        await two.take()
        with pytest.raises(Unavailable) as caught:
            first.write_now(lambda c: jobs.set_status(c, "j", "failed"))
        assert caught.value.reason == "LEASE_LOST"
        second.write_now(lambda c: jobs.set_status(c, "j", "failed"))
        with pytest.raises(Unavailable):  # nor can it give away what is not its own
            await one.give_back()
        await two.give_back()
        first.close()
        second.close()

    asyncio.run(scene())


def test_losing_the_lease_is_noticed_at_the_next_renewal(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is told, so that it can end instead of refusing everything."""
    monkeypatch.setattr(leadership, "RENEW_S", 0.01)

    async def scene() -> None:
        database = Database(url)
        one = Leadership(database)
        await one.take()
        other = Database(url)
        other.write_now(lambda c: leases.take(c, NAME, "somebody else", 1e12))
        async with asyncio.timeout(10):
            await one.lost.wait()
        await one.give_back()  # nothing is written
        held = other.read_now(lambda c: leases.look(c, NAME))
        assert held is not None
        assert held.holder == "somebody else"
        database.close()
        other.close()

    asyncio.run(scene())


def test_a_lease_that_was_given_back_is_taken_at_once_with_a_higher_epoch(url: str) -> None:
    """Nobody waits after an orderly stop; the epoch never goes back."""
    database = Database(url)
    first = database.write_now(lambda c: leases.take(c, NAME, "a", 0.0))
    database.write_now(lambda c: leases.release(c, first))
    assert database.read_now(lambda c: leases.look(c, NAME)) is None
    second = database.write_now(lambda c: leases.take(c, NAME, "b", 0.0))
    assert second.epoch > first.epoch
    database.close()


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for() -> None:
    """After kill -9 the next coordinator begins at once; one that lives, or is elsewhere, is."""
    me = this_process()
    assert not is_gone(me)
    host, boot, pid, started = me.split(" ")
    assert is_gone(f"{host} {boot} {pid} 1")  # the number went to another process since
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    assert is_gone(f"{host} {boot} {ended.pid} {started}")
    assert not is_gone(f"{host} another-boot {ended.pid} {started}")
    assert not is_gone("nonsense")
    assert os.getpid() == int(pid)
