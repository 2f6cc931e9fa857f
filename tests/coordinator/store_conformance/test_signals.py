"""Replicas tell one another at once that it has changed who may call."""

import asyncio
from contextlib import closing

import pytest

from benchmarks.postgresql import PostgreSql
from coordinator.identities import Identities
from coordinator.store import signals
from coordinator.store.database import Database

SOON_S = 20.0

END_LISTENERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN feddp%'"
)


async def told(changed: asyncio.Event) -> None:
    """Until the next signal."""
    async with asyncio.timeout(SOON_S):
        await changed.wait()
    changed.clear()


def test_a_change_is_told_to_whoever_listens(database: Database, url: str) -> None:
    """Whoever leads reads the registry again after each change of it, and then says so. What came
    before somebody listened is told as well, as one signal; SQLite has nobody to tell."""

    async def play() -> None:
        changed = asyncio.Event()
        listening = asyncio.create_task(signals.listen(url, {signals.WHO_MAY_CALL: changed}))
        identities = Identities(database, "test.example")
        if url.startswith("sqlite"):
            await identities.reload()
            await listening
            assert not changed.is_set()
            return
        await told(changed)
        for _ in range(3):
            await identities.reload()
            await told(changed)
        listening.cancel()

    asyncio.run(play())


def test_listening_begins_again_when_the_server_has_ended_it(
    postgresql_server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And looks at once, since nobody knows what was missed."""
    url = postgresql_server.new_database()
    monkeypatch.setattr(signals, "AGAIN_S", 0.05)

    async def play() -> None:
        changed = asyncio.Event()
        listening = asyncio.create_task(signals.listen(url, {signals.WHO_MAY_CALL: changed}))
        await told(changed)
        await asyncio.to_thread(postgresql_server.superuser, END_LISTENERS, "postgres")
        await told(changed)
        with closing(Database(url)) as database:
            await database.read(signals.announce)
        await told(changed)
        listening.cancel()

    asyncio.run(play())
