"""Replace a coordinator's version one process at a time, while the others serve.

    python deploy/upgrade/rolling.py --help

Prints its plan; with --run, does it, checks each step before the next, and stops at the first that
fails with the commands that go back. Only where the new version's migrations let the old one serve.
"""

import argparse
import sys
from collections.abc import Iterator

import helm
import plain
from steps import Ledger, Step, carry_out, script

ANEW = "give another --backup; what runs the new version already is replaced by the same"


def of_processes(found: plain.Plain) -> Iterator[Step]:
    """Every process in its turn."""
    ledger = Ledger()
    yield from found.may_roll(found.old, found.new)
    yield from found.before(ledger)
    yield from found.rolled(found.old, found.new)
    yield from found.after(ledger, found.old, found.new)


def of_release(found: helm.Helm) -> Iterator[Step]:
    """As the StatefulSet does it."""
    ledger = Ledger()
    yield from found.may_roll()
    yield from found.before(ledger)
    yield from found.replaced()
    yield from found.after(ledger.after)


def main() -> int:
    """The exit code: 0 done, 1 stopped at a step, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    plain.add_options(parser)
    helm.add_options(parser)
    plain.add_common_options(parser)
    given = parser.parse_args()
    if given.helm:
        release = helm.helm_of(parser, given, ("new", "digest"))
        if given.run:
            release = release.released_now()
        title = f"rolling upgrade of {given.helm}"
        steps = [*of_release(release)]
        return carry_out(title, steps, run=given.run, backup=given.backup, anew=ANEW)
    processes = plain.plain_of(parser, given)
    if given.run:
        processes = processes.leader_last()
    title = f"rolling upgrade to {processes.new}; the process that leads comes last"
    steps = [*of_processes(processes)]
    return carry_out(title, steps, run=given.run, backup=given.backup, anew=ANEW)


if __name__ == "__main__":
    sys.exit(script(main))
