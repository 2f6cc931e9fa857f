"""`make sim SEED=n`, or `make sim SEEDS=10000 FIRST_SEED=1`: many jobs, each with other faults."""

import argparse
import os
import sys
import time

from tests.simulation.seeds import Played, Summary, play_all, until_broken
from tests.simulation.world import World

PROGRESS_S = 10.0


def say(line: str) -> None:
    """One line for the person at the terminal."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the seeds; the first that fails is told with the end of its transcript."""
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="print the whole transcript")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    options = parser.parse_args()
    if options.trace:
        return trace(options.first_seed if options.seed is None else options.seed)
    if options.seed is not None:
        options.first_seed, options.seeds = options.seed, 1
    processes = options.processes if options.seeds > 1 else 1
    began_s = told_s = time.monotonic()
    summary = Summary()
    for played in until_broken(play_all(options.first_seed, options.seeds, processes)):
        summary.add(played)
        if time.monotonic() - told_s > PROGRESS_S:
            told_s = time.monotonic()
            say(f"{summary.seeds} of {options.seeds} seeds, {summary.events} events")
    return report(summary, time.monotonic() - began_s)


def report(summary: Summary, took_s: float) -> int:
    """What was played, and what broke."""
    faults = summary.faults.total()
    say(
        f"{summary.seeds} seeds, {summary.events} events, {faults} faults in {took_s:.1f} s "
        f"({summary.events / took_s:.0f} events/s, {faults / took_s:.0f} faults/s)"
    )
    say("faults: " + ", ".join(f"{kind} {n}" for kind, n in sorted(summary.faults.items())))
    say("jobs: " + ", ".join(f"{status} {n}" for status, n in sorted(summary.endings.items())))
    for played in summary.broken:
        tell_broken(played)
    return 1 if summary.broken else 0


def tell_broken(played: Played) -> None:
    """The end of the transcript, then what is wrong and how to see it again."""
    for line in played.tail:
        say(line)
    say(f"seed {played.seed}: {played.fault}")
    say(f"run it again with `make sim SEED={played.seed}`")


def trace(seed: int) -> int:
    """The whole transcript of one seed."""
    world = World(seed)
    fault = ""
    try:
        world.run()
    except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
        fault = f"{type(error).__name__}: {error}"
    for line in world.transcript:
        say(line)
    say(f"seed {seed}: {fault or 'every invariant holds'}")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
