"""Go back to the version of before: on the tables as they are, or to a backup.

    python deploy/upgrade/rollback.py --help

Without --restore, one process at a time, where the newer version's migrations let the older one
serve. With --restore FILE, to the state of that backup, by a stop: what was booked since is handed
in by the hospitals. Prints its plan; with --run, does it and stops at the first step that fails.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import helm
import plain
from steps import Ledger, Step, carry_out, is_ready, script

ANEW = "give another --backup"


@dataclass(frozen=True, slots=True)
class Restoring:
    """From where to where.

    Attributes:
        file: the backup, which the older version made.
        folder: a new one, which the older version restores to.
        revocations: what `storage.revocations_file` named; none says that there is no such file.
        stopped: processes of the newer version, all of them.
    """

    file: str
    folder: str
    revocations: tuple[str, ...]
    stopped: tuple[str, ...]


def of_processes(found: plain.Plain) -> Iterator[Step]:
    """Every process in its turn; `old` is what runs, the newer one."""
    ledger = Ledger()
    yield from found.may_roll(found.old, found.new)
    yield from found.before(ledger)
    yield from found.rolled(found.old, found.new)
    yield from found.after(ledger, found.old, found.new)


def to_backup(found: plain.Plain, restoring: Restoring) -> Iterator[Step]:
    """What runs is backed up and stopped, and the older version begins on what it restored."""
    sealed = ("--password-file", found.password_file) if found.password_file else ()
    kept = [word for one in restoring.revocations for word in ("--revocations", one)]
    restore = (
        *("coordinator", "restore", restoring.file, "--dir", restoring.folder, *sealed),
        *(kept or ["--without-revocations"]),
    )
    yield Step(
        "the versions are there",
        (found.feddp(found.old, "--version"), found.feddp(found.new, "--version")),
    )
    yield Step(
        "the backup can be restored by the older version",
        (found.feddp(found.new, *restore, "--dry-run"),),
    )
    yield from found.backed_up()
    back = tuple(found.filled(found.start, name) for name in restoring.stopped)
    for name in restoring.stopped:
        yield Step(f"{name}: stop", (found.filled(found.stop, name),), back=back)
    yield Step(
        "restore; nothing that is there is written over",
        (found.feddp(found.new, *restore),),
        back=back,
    )
    for name in found.replicas:
        # From the first of them on, nodes have seen the restored coordinator's epoch.
        yield Step(f"{name}: start {found.new}", found.put(name, found.new), back=None)
        yield Step(
            f"{name}: wait until it is ready",
            (found.page(name, "ready"),),
            is_ready,
            found.wait_s,
            None,
        )
    at = ("--dir", restoring.folder)
    yield Step(
        "the older version finds no error; all work is paused, docs/operations.md says what to do",
        (found.feddp(found.new, "coordinator", "check", *at),),
        back=None,
    )
    yield Step("the ledger verifies", (found.feddp(found.new, "budget", "verify", *at),), back=None)


def of_release(found: helm.Helm) -> Iterator[Step]:
    """To the release's revision of before."""
    ledger = Ledger()
    yield from found.was_running()
    yield from found.may_go_back()
    yield from found.before(ledger)
    back = found.back_to_now()
    yield Step("the image of before, pod by pod", (found.to_before(),), back=back)
    yield Step("wait until every pod is replaced and ready", (found.rolled_out(),), back=back)
    yield from found.after(ledger.after)


def main() -> int:
    """The exit code: 0 done, 1 stopped at a step, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    plain.add_options(parser)
    helm.add_options(parser)
    plain.add_common_options(parser)
    parser.add_argument("--restore", default="", metavar="FILE", help="to this backup")
    parser.add_argument("--restored-dir", default="", help="a new folder")
    parser.add_argument("--revocations", action="append", default=[], metavar="FILE")
    parser.add_argument(
        "--stopped", action="append", default=[], metavar="NAME", help="a process that runs now"
    )
    given = parser.parse_args()
    if given.helm:
        if given.restore:
            parser.error("--restore is not for --helm: docs/upgrading.md says what to do there")
        release = helm.helm_of(parser, given, ("old",))
        if given.run:
            release = release.released_now()
        title, steps = f"rollback of {given.helm}", [*of_release(release)]
        return carry_out(title, steps, run=given.run, backup=given.backup, anew=ANEW)
    found = plain.plain_of(parser, given)
    if given.restore:
        if not (given.restored_dir and given.stopped):
            parser.error("--restore needs --restored-dir and --stopped")
        restoring = Restoring(
            given.restore, given.restored_dir, tuple(given.revocations), tuple(given.stopped)
        )
        title = f"rollback to {found.new} and the backup {given.restore}"
        anew = f"{ANEW}, and another --restored-dir (nobody has served from {given.restored_dir})"
        steps = [*to_backup(found, restoring)]
        return carry_out(title, steps, run=given.run, backup=given.backup, anew=anew)
    if given.run:
        found = found.leader_last()
    title = f"rollback to {found.new}, on the tables as they are"
    steps = [*of_processes(found)]
    return carry_out(title, steps, run=given.run, backup=given.backup, anew=ANEW)


if __name__ == "__main__":
    sys.exit(script(main))
