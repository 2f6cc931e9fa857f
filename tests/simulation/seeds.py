"""Plays many seeds, over the cores if asked, and adds up what they met."""

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.sql_store import SqlStore
from tests.simulation.world import World

SQL_EVERY = 50
"""So many seeds to one that plays on the real tables; the others on a double that equals them."""

TAIL_LINES = 40


@dataclass
class Played:
    """What one seed came to; `fault` says what is broken, or nothing."""

    seed: int
    events: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    endings: list[str] = field(default_factory=list)
    fault: str = ""
    tail: list[str] = field(default_factory=list)


def play(seed: int) -> Played:
    """One seed."""
    world = World(seed, store=SqlStore() if seed % SQL_EVERY == 0 else None)
    played = Played(seed)
    try:
        played.endings = world.run()
    except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
        played.fault = f"{type(error).__name__}: {error}"
        played.tail = world.transcript[-TAIL_LINES:]
    played.events, played.faults = world.events, world.faults.counts
    return played


def play_all(first: int, count: int, processes: int = 1) -> Iterator[Played]:
    """Seeds from `first` in their order, with as many processes."""
    seeds = range(first, first + count)
    if processes == 1:
        yield from map(play, seeds)
        return
    # A fresh interpreter each: what pytest and gRPC have started must not be forked.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(play, seeds, chunksize=10)


@dataclass
class Summary:
    """Adds up seeds."""

    seeds: int = 0
    events: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    broken: list[Played] = field(default_factory=list)

    def add(self, played: Played) -> None:
        """Count one."""
        self.seeds += 1
        self.events += played.events
        self.faults += played.faults
        self.endings.update(played.endings)
        if played.fault:
            self.broken.append(played)


def until_broken(played: Iterator[Played]) -> Iterator[Played]:
    """Seeds up to the first that breaks an invariant, and that one."""
    for one in played:
        yield one
        if one.fault:
            return


def fingerprint(seed: int) -> str:
    """The whole transcript of a seed, for comparison."""
    world = World(seed)
    world.run()
    return "\n".join(itertools.chain(world.transcript, [str(world.events)]))
