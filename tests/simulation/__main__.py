"""`make sim SEED=n`, or `make sim SEEDS=500 FIRST_SEED=1`: many jobs, each with other faults."""

import argparse
import sys
import time
from collections import Counter

from protos.errors import FeddpError, InvariantBroken
from tests.simulation.world import Broken, World

TRANSCRIPT_LINES = 20


def say(line: str) -> None:
    """One line for the person at the terminal."""
    sys.stdout.write(line + "\n")


def main() -> int:
    """Run the seeds; a failing one is told with the end of its transcript."""
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=500)
    options = parser.parse_args()
    began_s, events, faults = time.monotonic(), 0, 0
    endings: Counter[str] = Counter()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        world = World(seed)
        try:
            endings[world.run()] += 1
        except (Broken, InvariantBroken, FeddpError) as error:
            for line in world.transcript[-TRANSCRIPT_LINES:]:
                say(line)
            say(f"seed {seed}: {type(error).__name__}: {error}")
            say(f"run it again with `make sim SEED={seed}`")
            return 1
        events, faults = events + world.events, faults + world.faults
    took_s = time.monotonic() - began_s
    say(f"{options.seeds} seeds, {events} events, {faults} faults in {took_s:.1f} s")
    for status, count in sorted(endings.items()):
        say(f"{status}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
