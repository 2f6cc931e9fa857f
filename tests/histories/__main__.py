"""`python -m tests.histories MODE FIRST LAST`: plays seeds FIRST to LAST, tells what is wrong."""

import argparse
import logging
import os
import sys
import time
from collections import Counter

import structlog

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported: calls do break here

from tests.histories.seeds import MODES, play_all


def say(line: str) -> None:
    """One line for the person at the terminal."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Play them all, the wrong ones with their steps; 1 if there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began_s, endings, wrong = time.monotonic(), Counter[str](), list[int]()
    for played in play_all(options.mode, range(options.first, options.last + 1)):
        endings[played.ending] += 1
        if played.wrong:
            wrong.append(played.seed)
            say(played.told())
    del endings[""]
    took_s = time.monotonic() - began_s
    found = "".join(f", {ending} {count}" for ending, count in sorted(endings.items()))
    say(
        f"{options.mode}: {options.last - options.first + 1} seeds in {took_s:.0f} s, "
        f"wrong {wrong}{found}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
