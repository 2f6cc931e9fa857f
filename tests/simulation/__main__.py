"""`make sim SEED=n`, or `make sim SEEDS=500 FIRST_SEED=1`: many jobs, each with other faults."""

import argparse
import sys
import time
from collections import Counter

from tests.simulation.world import Broken, World

TRANSCRIPT_LINES = 20


def main() -> None:
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
        except Broken:
            sys.exit(f"run it again with `make sim SEED={seed}`")
        events, faults = events + world.events, faults + world.faults
    time.monotonic() - began_s
    for _status, _count in sorted(endings.items()):
        pass


if __name__ == "__main__":
    main()
