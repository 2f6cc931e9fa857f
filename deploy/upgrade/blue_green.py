"""Replace a coordinator's version by a stop: the new one begins on a copy, the old one is kept.

    python deploy/upgrade/blue_green.py --help

All work is paused first, and nothing is under way when blue is stopped. Green begins on a copy,
paused as well; until it is resumed it has booked nothing, and blue can be started again as it was.
Prints its plan; with --run, does it and stops at the first step that fails.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import helm
import plain
from steps import (
    Command,
    Ledger,
    Step,
    carry_out,
    is_ready,
    no_job_runs,
    nobody_serves,
    script,
)

REASON = "an upgrade"
ANEW = "give another --backup, and remove what green never worked with:"


@dataclass(frozen=True, slots=True)
class Copying:
    """What is paused, and how the copy is made.

    Attributes:
        pauses: whether blue knows how to pause; 0.1.0 does not.
        commands: that copy what blue leaves to where green begins.
        drain_s: how long the hospitals have for what they accepted.
        environment_file: what green's own processes have in their environment; "" for none.
        also: blue's other processes.
        then: green's other processes -> where their /ready is.
    """

    pauses: bool
    commands: tuple[Command, ...]
    drain_s: float
    environment_file: str = ""
    also: tuple[str, ...] = ()
    then: tuple[tuple[str, str], ...] = ()

    def of_green(self, command: Command) -> Command:
        """A command with green's environment, which may name another database: a file that is
        read where the command runs, so that no password is printed here."""
        if not self.environment_file:
            return command
        return ("sh", "-c", 'set -a; . "$0"; exec "$@"', self.environment_file, *command)


def of_processes(found: plain.Plain, green: str, copying: Copying) -> Iterator[Step]:
    """From the first of the processes to the second."""
    ledger = Ledger()
    blue_name, green_name = found.replicas
    at, there = ("--dir", found.folder), ("--dir", green)
    feddp = found.feddp

    def green_feddp(*words: str) -> Command:
        return copying.of_green(feddp(found.new, *words))

    resume_blue = (feddp(found.old, "coordinator", "resume", *at),) if copying.pauses else ()
    yield from found.before(ledger)
    if copying.pauses:
        pause = ("coordinator", "pause", "--all", "--reason", REASON)
        yield Step("no order goes out", (feddp(found.old, *pause, *at),), back=resume_blue)
    else:
        yield Step(
            "no job is under way", (feddp(found.old, "job", "list", *at, "--json"),), no_job_runs
        )
    yield Step(
        "wait for what the hospitals accepted",
        (feddp(found.old, "budget", "ledger", *at, "--json"),),
        ledger.nothing_open,
        copying.drain_s,
        resume_blue,
    )
    # A process that runs still is none the worse for being started.
    starts = tuple(found.filled(found.start, name) for name in (*copying.also, blue_name))
    back = (*starts, found.waited(blue_name), *resume_blue)
    for name in (*copying.also, blue_name):
        yield Step(f"{name}: stop", (found.filled(found.stop, name),), back=back)
    yield Step("a copy for green", copying.commands, back=back)
    back = (found.filled(found.stop, green_name), *back)
    yield from _served(found, green_name, found.page(green_name, "ready"), back)
    yield Step(
        "the new version finds no error", (green_feddp("coordinator", "check", *there),), back=back
    )
    yield Step(
        "the ledger verifies, and green has booked nothing",
        (green_feddp("budget", "verify", *there, "--json"),),
        ledger.unchanged,
        back=back,
    )
    yield Step(
        "blue is as it was, and could be started again",
        (
            feddp(found.old, "coordinator", "check", *at),
            feddp(found.old, "budget", "verify", *at, "--json"),
        ),
        lambda printed: ledger.unchanged(printed[1:]),
        back=back,
    )
    yield Step(
        "green serves from a database of its own",
        (feddp(found.new, "coordinator", "upgrade", "--plan", *at, "--json"),),
        nobody_serves,
        back=back,
    )
    for name, url in copying.then:
        back = (found.filled(found.stop, name), *back)
        yield from _served(found, name, ("curl", "-fsS", f"{url}/ready"), back)
    if copying.pauses:
        resume = green_feddp("coordinator", "resume", *there)
        # Green may have booked something by the time that this fails or is interrupted.
        yield Step("work goes on; from here, green alone", (resume,), back=None)


def _served(
    found: plain.Plain, name: str, page: Command, back: tuple[Command, ...]
) -> Iterator[Step]:
    """A process of green is started, and ready."""
    yield Step(f"{name}: start {found.new}", found.put(name, found.new), back=back)
    yield Step(f"{name}: wait until it is ready", (page,), is_ready, found.wait_s, back)


def of_release(found: helm.Helm, profile: str, sets: list[str], copying: Copying) -> Iterator[Step]:
    """The pods of blue go, and those of green come with another database.

    The chart itself stops them: pods that `kubectl scale` took away come back by nobody where a
    HorizontalPodAutoscaler says how many there are, as it leaves alone what has none.
    """
    ledger = Ledger()
    feddp = f"{found.here}/bin/feddp"
    resume = (feddp, "coordinator", "resume", "--profile", profile)
    yield from found.before(ledger)
    pause = ("coordinator", "pause", "--all", "--reason", REASON, "--profile", profile)
    yield Step("no order goes out", ((feddp, *pause),), back=(resume,))
    yield Step(
        "wait for what the hospitals accepted",
        (found.inside("budget", "ledger", "--json"),),
        ledger.nothing_open,
        copying.drain_s,
        (resume,),
    )
    back = (*found.back_to_now(), resume)
    yield Step(
        "blue: every pod ends",
        (found.upgraded("--set", "coordinator.stopped=true"), found.all_ended()),
        back=back,
    )
    yield Step("a copy for green", copying.commands, back=back)
    more = [word for one in sets for word in ("--set", one)]
    for step in (*found.replaced(*more), *found.after(ledger.unchanged)):
        yield Step(step.says, step.commands, step.expect, step.within_s, back)
    yield Step("work goes on; from here, green alone", (resume,), back=None)


def in_the_way(green: Path, *, made: bool) -> str:
    """Why green could not begin there; "" for nothing. `cp -a` copies into a folder that is there,
    and green would begin on what an earlier try has left: who was shut out since would be let in.

    Args:
        made: whether the copy makes the folder; else it may be there, empty, a disk of its own say.
    """
    if not green.exists() or (not made and green.is_dir() and not any(green.iterdir())):
        return ""
    return (
        f"{green} is there already, perhaps from a try before: look at it, and remove it or "
        "name another --green-dir"
    )


def main() -> int:
    """The exit code: 0 done, 1 stopped at a step, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    plain.add_options(parser)
    helm.add_options(parser)
    plain.add_common_options(parser)
    parser.add_argument("--green-dir", default="", help="a new folder, which the copy makes")
    parser.add_argument(
        "--copy",
        action="append",
        default=[],
        metavar="COMMAND",
        help="copies what blue leaves; default: cp -a DIR GREEN_DIR. Repeatable",
    )
    parser.add_argument("--no-pause", action="store_true", help="blue is 0.1.0, and no job runs")
    parser.add_argument("--drain-s", type=float, default=900.0, help="for what was accepted")
    parser.add_argument(
        "--also", action="append", default=[], metavar="NAME", help="another process of blue"
    )
    parser.add_argument(
        "--then", action="append", default=[], metavar="NAME=URL", help="another process of green"
    )
    parser.add_argument(
        "--green-env",
        default="",
        metavar="FILE",
        help="NAME=VALUE lines: what the environment of green's processes has and blue's has not",
    )
    parser.add_argument("--profile", default="", help="with --helm: an operator's profile")
    parser.add_argument("--set", action="append", default=[], help="with --helm: green's database")
    given = parser.parse_args()
    if given.helm:
        release = helm.helm_of(parser, given, ("new", "digest", "profile", "copy", "set"))
        if given.run:
            release = release.released_now()
        copying = Copying(True, tuple(tuple(shlex.split(c)) for c in given.copy), given.drain_s)
        steps = [*of_release(release, given.profile, given.set, copying)]
        title, anew = f"blue-green upgrade of {given.helm}", f"{ANEW} the copy for green"
        return carry_out(title, steps, run=given.run, backup=given.backup, anew=anew)
    if not given.green_dir:
        parser.error("--green-dir is needed")
    found = plain.plain_of(parser, given)
    blue, green = Path(given.dir).resolve(), Path(given.green_dir).resolve()
    if blue == green or blue in green.parents or green in blue.parents:
        parser.error("--green-dir is a folder of its own, not blue's, nor in it, nor around it")
    if given.run and (wrong := in_the_way(green, made=not given.copy)):
        print(f"nothing was done: {wrong}")
        return 2
    if len(found.replicas) != 2:
        parser.error("--replica is given twice: blue, then green")
    commands = given.copy or [shlex.join(["cp", "-a", given.dir, given.green_dir])]
    then = tuple(one.partition("=")[::2] for one in given.then)
    if not all(url for _, url in then):
        parser.error("--then is NAME=URL")
    copying = Copying(
        pauses=not given.no_pause,
        commands=tuple(tuple(shlex.split(one)) for one in commands),
        drain_s=given.drain_s,
        environment_file=os.path.abspath(given.green_env) if given.green_env else "",
        also=tuple(given.also),
        then=then,
    )
    title = f"blue-green upgrade to {found.new}; work waits until its end"
    steps = [*of_processes(found, given.green_dir, copying)]
    anew = f"{ANEW} {given.green_dir}"
    return carry_out(title, steps, run=given.run, backup=given.backup, anew=anew)


if __name__ == "__main__":
    sys.exit(script(main))
