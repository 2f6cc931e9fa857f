"""One coordinator at a time, and one that was replaced can write nothing more."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog
from sqlalchemy import Connection

from coordinator.replicas import leadership
from coordinator.replicas.leadership import NAME, Leadership
from coordinator.store import engines, jobs, leases
from coordinator.store.database import Database
from coordinator.store.schema import leases as schema_leases
from protos.errors import Unavailable


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


def test_a_lease_that_has_changed_hands_is_neither_renewed_nor_given_back(url: str) -> None:
    """Of a job's lease, too, which no fence of the whole process looks at."""
    database = Database(url)
    mine = database.write_now(lambda c: leases.take(c, "job", "me", 0.0))
    other = database.write_now(lambda c: leases.take(c, "job", "other", 1e12))
    assert mine is not None
    assert other is not None
    for change in (lambda c: leases.renew(c, mine, 2e12), lambda c: leases.release(c, mine)):
        with pytest.raises(Unavailable) as refused:
            database.write_now(change)
        assert refused.value.reason == "LEASE_LOST"
    held = database.read_now(lambda c: leases.look(c, "job"))
    assert held is not None
    assert (held.holder, held.expires_at) == ("other", 1e12 + leases.LEASE_S)
    database.close()


def test_a_lease_of_a_clock_that_was_ahead_is_not_waited_for_until_its_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine was pulled from the wall, and the clock set right since: it is held for years by
    its own word. Nobody renews it, and so it is free after as long as a lease lasts."""
    monkeypatch.setattr(leases, "LEASE_S", 0.05)
    monkeypatch.setattr(leadership, "LOOK_AGAIN_S", 0.01)

    async def scene() -> None:
        database = Database(url)
        database.write_now(lambda c: leases.take(c, NAME, "pulled from the wall", 1e12))
        one = Leadership(database)
        async with asyncio.timeout(10):
            await one.take()
        held = database.read_now(lambda c: leases.look(c, NAME))
        assert held is not None
        assert held.holder == leadership.this_process()
        await one.give_back()
        database.close()

    asyncio.run(scene())


def test_a_holder_that_renews_is_waited_for_whatever_its_clock_says(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renews between any two looks of the other: for as long as that goes on, it holds."""
    monkeypatch.setattr(leases, "LEASE_S", 0.0)
    monkeypatch.setattr(leadership, "LOOK_AGAIN_S", 0.0)

    async def scene() -> None:
        first, second = Database(url), Database(url)
        lease = first.write_now(lambda c: leases.take(c, NAME, "alive", 1e12, address="a"))
        assert lease is not None
        looks = 0

        def renew(_: str) -> None:
            nonlocal looks
            looks += 1
            if looks < 20:
                first.write_now(lambda c: leases.renew(c, lease, 1e12 + looks))

        await Leadership(second, led_from=renew).take()
        assert looks == 20
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


def test_a_holder_that_was_paused_inside_a_write_is_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants to take over says once that a lock is in the way, passes connections on to whoever
    has it meanwhile, and takes over when it is gone."""
    first = Database(url)
    lease = first.write_now(lambda c: leases.take(c, NAME, "a", 0.0, address="10.0.0.1:8443"))
    assert lease is not None
    monkeypatch.setattr(engines, "WAIT_S", 0)
    monkeypatch.setattr(engines, "POSTGRES_SETTINGS", ["SET lock_timeout = '50ms'"])
    second = Database(url)
    awake, led_from = threading.Event(), list[str]()
    monkeypatch.setattr(leadership, "LOOK_AGAIN_S", 0.01)

    def paused(connection: Connection) -> None:
        leases.check(connection, lease)
        assert awake.wait(30)

    async def scene() -> list[dict[str, object]]:
        with structlog.testing.capture_logs() as said:
            pausing = asyncio.create_task(first.write(paused))
            await asyncio.sleep(0.1)
            taking = asyncio.create_task(Leadership(second, led_from=led_from.append).take())
            while len(led_from) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert not taking.done()
            awake.set()
            await pausing
            async with asyncio.timeout(30):
                await taking
        return list(said)

    said = asyncio.run(scene())
    assert [(one["event"], one["holder"]) for one in said] == [("waiting_for_lock", "a")]
    assert set(led_from[:3]) == {"10.0.0.1:8443"}
    first.close()
    second.close()


def test_a_lease_that_had_to_be_waited_for_lasts_from_when_it_was_taken(url: str) -> None:
    """Not from when it was asked for: the next one that waits would take it at once, and whoever
    has just begun to lead would end."""
    first, second = Database(url), Database(url)
    lease = first.write_now(lambda c: leases.take(c, NAME, "a", 0.0))
    assert lease is not None
    awake, waited_s = threading.Event(), 1.5

    def paused(connection: Connection) -> None:
        leases.check(connection, lease)
        assert awake.wait(30)

    async def scene() -> None:
        pausing = asyncio.create_task(first.write(paused))
        await asyncio.sleep(0.1)
        leader = Leadership(second)
        taking = asyncio.create_task(leader.take())
        await asyncio.sleep(waited_s)
        assert not taking.done()
        awake.set()
        await pausing
        async with asyncio.timeout(30):
            await taking
        held = second.read_now(lambda c: leases.look(c, NAME))
        assert held is not None
        assert held.expires_at - second.read_now(engines.now_s) > leases.LEASE_S - waited_s / 2
        await leader.give_back()

    asyncio.run(scene())
    first.close()
    second.close()


def test_a_lease_that_was_given_back_is_taken_at_once_with_a_higher_epoch(url: str) -> None:
    """Nobody waits after an orderly stop; the epoch never goes back."""
    database = Database(url)
    first = database.write_now(lambda c: leases.take(c, NAME, "a", 0.0))
    assert first is not None
    database.write_now(lambda c: leases.release(c, first))
    assert database.read_now(lambda c: leases.look(c, NAME)) is None
    second = database.write_now(lambda c: leases.take(c, NAME, "b", 0.0))
    assert second is not None
    assert second.epoch > first.epoch
    database.close()


def test_of_many_that_find_the_lease_free_one_gets_it(url: str) -> None:
    """Never held, given back or run out: each time a single new epoch, and a single holder."""
    openers = [Database(url) for _ in range(8)]
    for turn, now_s in enumerate((0.0, 100.0, 200.0), start=1):
        begin = threading.Barrier(len(openers))

        def attempt(number: int, begin: threading.Barrier = begin, now_s: float = now_s) -> bool:
            begin.wait(30)
            name = f"holder {number}"
            took = openers[number].write_now(lambda c: leases.take(c, NAME, name, now_s))
            return took is not None

        with ThreadPoolExecutor(len(openers)) as pool:
            assert sum(pool.map(attempt, range(len(openers)))) == 1
        held = openers[0].read_now(lambda c: leases.look(c, NAME))
        assert held is not None
        assert held.epoch == turn
    for opened in openers:
        opened.close()


def test_a_holder_that_is_gone_is_replaced_once(url: str) -> None:
    """It is named by its epoch: whoever took over from it meanwhile is not replaced in its turn."""
    database = Database(url)
    database.write_now(lambda c: leases.take(c, NAME, "a", 0.0))
    gone = database.read_now(lambda c: leases.look(c, NAME))
    assert database.write_now(lambda c: leases.take(c, NAME, "b", 1.0)) is None
    assert database.write_now(lambda c: leases.take(c, NAME, "b", 1.0, gone=gone)) is not None
    assert database.write_now(lambda c: leases.take(c, NAME, "c", 1.0, gone=gone)) is None
    database.close()


def test_the_lease_cannot_change_hands_within_a_fenced_transaction(url: str) -> None:
    """Who takes over waits for what the holder has begun, and finds it written."""
    first, second = Database(url), Database(url)
    lease = first.write_now(lambda c: leases.take(c, NAME, "a", 0.0))
    assert lease is not None
    first.fence = lambda inside: leases.check(inside, lease)
    order: list[str] = []
    taker = ThreadPoolExecutor(1)

    def take() -> None:
        second.write_now(lambda c: leases.take(c, NAME, "b", 1000.0))
        order.append("taken")

    def work(connection: Connection) -> None:
        taking.append(taker.submit(take))
        with pytest.raises(TimeoutError):
            taking[0].result(0.3)
        order.append("written")

    taking: list = []  # type: ignore[type-arg]
    first.write_now(work)
    taking[0].result(30)
    assert order == ["written", "taken"]
    with pytest.raises(Unavailable):
        first.write_now(lambda c: leases.renew(c, lease, 0.0))
    taker.shutdown()
    first.close()
    second.close()


@pytest.mark.parametrize("ours", [True, False])
def test_a_write_that_nobody_waits_for_any_more_tells_a_fault_and_no_refusal(
    url: str, ours: bool
) -> None:
    """Whoever lost the lease ends, with every write that was under way refused."""
    database, begun, awake = Database(url), threading.Event(), threading.Event()

    def work(_connection: Connection) -> None:
        begun.set()
        assert awake.wait(30)
        raise Unavailable(leases.LOST, "lost") if ours else ValueError("a fault")

    async def scene() -> list[object]:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
        writing = asyncio.create_task(database.write(work))
        await asyncio.to_thread(begun.wait, 30)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        awake.set()
        await database.write(lambda _: None)
        gc.collect()
        return told

    with structlog.testing.capture_logs() as said:
        assert asyncio.run(scene()) == []
    assert [one["event"] for one in said] == ([] if ours else ["write_failed"])
    database.close()


def test_a_holder_that_lives_is_waited_for_until_it_gives_back(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the next one looks; and whoever has given back, or never led, writes nothing
    more to the lease."""
    monkeypatch.setattr(leadership, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(leadership, "RENEW_S", 0.01)

    async def scene() -> None:
        first, second = Database(url), Database(url)
        looks = list[str]()
        one, two = Leadership(first), Leadership(second, led_from=looks.append)
        await two.give_back()
        await one.take()
        taking = asyncio.create_task(two.take())
        while len(looks) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not taking.done()
        await one.give_back()
        async with asyncio.timeout(30):
            await taking
        assert one._renewing is not None
        assert one._renewing.cancelled()
        assert not one.lost.is_set()
        await two.give_back()
        first.close()
        second.close()

    asyncio.run(scene())


def test_each_renewal_makes_sure_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever could not renew for two leases says that it does not serve, until it can."""
    monkeypatch.setattr(leadership, "RENEW_S", 0.01)

    async def scene() -> None:
        database = Database(url)
        one = Leadership(database)
        assert not one.is_sure()
        await one.take()
        assert one.is_sure()
        one._held_s -= 2 * leases.LEASE_S
        assert not one.is_sure()
        async with asyncio.timeout(10):
            while not one.is_sure():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await one.give_back()
        database.close()

    asyncio.run(scene())
