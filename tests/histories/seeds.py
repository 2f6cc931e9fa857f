"""One seed, played: what happened, and what is wrong with it."""

import random
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.histories.lying import lie
from tests.histories.strides import Strides, deep, short
from tests.histories.world import World

HONEST = {
    "deep": Strides(deep),
    "deep-plain": Strides(deep, with_copies=False),
    "short": Strides(short),
    "short-plain": Strides(short, with_copies=False),
    "again": Strides(short, orders_again=True),
}
DISHONEST = "dishonest"
MODES = (*HONEST, DISHONEST)


@dataclass(frozen=True, slots=True)
class Played:
    """One history.

    Attributes:
        ending: who found the coordinator's lie; empty for an honest one.
        wrong: what should not be; empty for nothing.
        log: its steps.
    """

    seed: int
    ending: str
    wrong: list[str]
    log: list[str]

    def told(self) -> str:
        """What is wrong, and how it came to it."""
        return "\n".join([f"seed {self.seed}:", *self.wrong, "its steps:", *self.log])


def play(mode: str, seed: int) -> Played:
    """Play one seed in a folder of its own."""
    rng = random.Random(f"{mode} {seed}" if mode == DISHONEST else seed)
    ending, wrong = "", list[str]()
    with tempfile.TemporaryDirectory() as folder, World(Path(folder), rng) as world:
        try:
            if mode == DISHONEST:
                ending = lie(world)
                wrong = ["nobody finds it"] if ending == "missed" else []
            else:
                strides = HONEST[mode]
                wrong = strides.stride(world, strides)
        except Exception:  # noqa: BLE001 - whatever it is, its steps are needed to see it again
            wrong = [traceback.format_exc()]
        return Played(seed, ending, wrong, world.log)


def play_all(mode: str, seeds: Iterable[int]) -> Iterator[Played]:
    """One after the other."""
    for seed in seeds:
        yield play(mode, seed)
