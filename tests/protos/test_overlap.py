"""Batches of what arrived while the batch before was worked at."""

import asyncio

import pytest

from protos.overlap import Overlap


class Bench:
    """Work that ends when the test says so; an item below 0 fails."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = asyncio.Event()

    async def work(self, batch: list[int]) -> None:
        self.batches.append(batch)
        await self.go_on.wait()
        if min(batch) < 0:
            raise ValueError("below 0")


def test_what_arrives_meanwhile_is_the_next_batch() -> None:
    """In order, and all of it."""

    async def scene() -> None:
        bench = Bench()
        overlap = Overlap(bench.work, most=4)
        await overlap.put(0)
        await asyncio.sleep(0)
        for item in (1, 2, 3):
            await overlap.put(item)
        bench.go_on.set()
        await overlap.drain()
        assert bench.batches == [[0], [1, 2, 3]]

    asyncio.run(scene())


def test_what_waits_is_worked_at_when_the_batch_before_is_done() -> None:
    """Also where the sender pauses, and puts nothing more for a long time."""

    async def scene() -> None:
        bench = Bench()
        overlap = Overlap(bench.work, most=4)
        await overlap.put(0)
        await asyncio.sleep(0)
        await overlap.put(1)
        bench.go_on.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert bench.batches == [[0], [1]]
        await overlap.stop()

    asyncio.run(scene())


def test_no_more_wait_than_may() -> None:
    """The sender is held until the batch before is done."""

    async def scene() -> None:
        bench = Bench()
        overlap = Overlap(bench.work, most=2)
        await overlap.put(0)
        await overlap.put(1)
        third = asyncio.create_task(overlap.put(2))
        done, _ = await asyncio.wait({third}, timeout=0.05)
        assert not done
        bench.go_on.set()
        await third
        await overlap.drain()
        assert bench.batches == [[0], [1, 2]]

    asyncio.run(scene())


def test_after_a_failure_nothing_more_is_worked_at() -> None:
    """Bytes behind a damaged chunk would be written where it should be."""

    async def scene() -> None:
        bench = Bench()
        bench.go_on.set()
        overlap = Overlap(bench.work, most=4)
        await overlap.put(-1)
        await overlap.put(1)
        for _ in range(2):
            with pytest.raises(ValueError, match="below 0"):
                await overlap.drain()
        await overlap.stop()
        assert bench.batches == [[-1]]

    asyncio.run(scene())
