"""An installation of processes, as systemd runs them: each version in a folder of its own, and a
link for each process that says which it runs."""

import argparse
import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from steps import LEADS, Command, Ledger, Step, is_ready, may_roll, one_leads, replies

STOP: Final = "systemctl stop feddp-coordinator@{name}"
SWITCH: Final = "ln -sfn {version} /opt/feddp/run/{name}"
START: Final = "systemctl start feddp-coordinator@{name}"


@dataclass(frozen=True, slots=True)
class Plain:
    """How this installation's processes are stopped, switched and started.

    Attributes:
        folder: of the installation, whose coordinator.yaml reaches the database from here.
        old, new: folders of versions, each with `bin/feddp`.
        replicas: name -> where its /ready and /metrics are.
    """

    folder: str
    old: str
    new: str
    replicas: dict[str, str]
    backup_file: str
    password_file: str
    backup_with: str
    wait_s: float
    stop: str
    switch: str
    start: str

    def feddp(self, version: str, *words: str) -> Command:
        """A command of a version."""
        return (f"{version}/bin/feddp", *words)

    def filled(self, template: str, name: str, version: str = "") -> Command:
        """What stops, switches or starts a process."""
        return tuple(shlex.split(template.format(name=name, version=version)))

    def page(self, name: str, page: str) -> Command:
        """What reads a replica's page."""
        return ("curl", "-fsS", f"{self.replicas[name]}/{page}")

    def waited(self, name: str) -> Command:
        """For a way back, which is pasted: ends when the replica is ready."""
        retry = ("--retry", f"{self.wait_s:.0f}", "--retry-delay", "1", "--retry-all-errors")
        return ("curl", "-fsS", *retry, f"{self.replicas[name]}/ready")

    def put(self, name: str, version: str) -> tuple[Command, ...]:
        """What has a stopped process run a version."""
        return (
            self.filled(self.switch, name, version),
            self.filled(self.start, name),
        )

    def leader_last(self) -> "Plain":
        """The same with the replica that leads now at the end: the lead moves once."""
        pages = replies([self.page(name, "metrics") for name in self.replicas])
        leads = dict(zip(self.replicas, (LEADS in page for page in pages), strict=True))
        changed = {name: self.replicas[name] for name in sorted(leads, key=lambda one: leads[one])}
        return dataclasses.replace(self, replicas=changed)

    def before(self, ledger: Ledger) -> Iterator[Step]:
        """Checks and a backup that was read back."""
        at = ("--dir", self.folder)
        yield Step(
            "this version finds no error", (self.feddp(self.old, "coordinator", "check", *at),)
        )
        yield Step(
            "the ledger verifies",
            (self.feddp(self.old, "budget", "verify", *at, "--json"),),
            ledger.before,
        )
        yield from self.backed_up()

    def backed_up(self) -> Iterator[Step]:
        """A backup, read back."""
        version = self.new if self.backup_with == "new" else self.old
        sealed = ("--password-file", self.password_file) if self.password_file else ()
        keys = ("--keys",) if self.password_file else ()
        make = ("coordinator", "backup", "--dir", self.folder, "--out", self.backup_file)
        read = ("coordinator", "backup", "--verify", self.backup_file)
        yield Step("a backup", (self.feddp(version, *make, *keys, *sealed),))
        yield Step("the backup is sound", (self.feddp(version, *read, *sealed),))

    def rolled(self, old: str, new: str) -> Iterator[Step]:
        """Each replica replaced in its turn."""
        replaced: list[str] = []
        for name in self.replicas:
            back = self._way_back([*replaced, name], old)
            yield Step(f"{name}: stop", (self.filled(self.stop, name),), back=back)
            yield Step(f"{name}: start {new}", self.put(name, new), back=back)
            yield Step(
                f"{name}: wait until it is ready",
                (self.page(name, "ready"),),
                is_ready,
                self.wait_s,
                back,
            )
            yield Step(
                "wait until one leads",
                tuple(self.page(one, "metrics") for one in self.replicas),
                one_leads,
                self.wait_s,
                back,
            )
            replaced.append(name)

    def after(self, ledger: Ledger, old: str, new: str) -> Iterator[Step]:
        """Nothing was lost."""
        back, at = self._way_back(list(self.replicas), old), ("--dir", self.folder)
        yield Step(
            "the new version finds no error",
            (self.feddp(new, "coordinator", "check", *at),),
            back=back,
        )
        yield Step(
            "the ledger verifies, and has every entry of before",
            (self.feddp(new, "budget", "verify", *at, "--json"),),
            ledger.after,
            back=back,
        )

    def may_roll(self, old: str, new: str) -> Iterator[Step]:
        """Whether the versions may serve beside each other."""
        yield Step(
            "the versions are there",
            (self.feddp(old, "--version"), self.feddp(new, "--version")),
        )
        plan = ("coordinator", "upgrade", "--plan", "--dir", self.folder, "--json")
        yield Step("the tables let both serve", (self.feddp(new, *plan),), may_roll)

    def _way_back(self, names: list[str], version: str) -> tuple[Command, ...]:
        """The replaced ones to the version of before, the newest first: the tables let it."""
        return tuple(
            command
            for name in reversed(names)
            for command in (
                self.filled(self.stop, name),
                *self.put(name, version),
                self.waited(name),
            )
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """What says where things are."""
    group = parser.add_argument_group("processes")
    group.add_argument("--dir", default="", help="the installation's folder")
    group.add_argument("--old", default="", help="folder of the version that runs; has bin/feddp")
    group.add_argument("--new", default="", help="folder of the version that is to run")
    group.add_argument(
        "--replica",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a process and where its /ready is (http://127.0.0.1:8080); repeatable",
    )
    group.add_argument("--backup-with", choices=("old", "new"), default="old", help="0.1.0: new")
    group.add_argument("--stop", default=STOP, help=f"default: {STOP}")
    group.add_argument("--switch", default=SWITCH, help=f"default: {SWITCH}")
    group.add_argument("--start", default=START, help=f"default: {START}")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Of every procedure."""
    parser.add_argument("--backup", required=True, metavar="FILE", help="a new file")
    parser.add_argument("--password-file", default="", help="the backup has keys and is sealed")
    parser.add_argument("--wait-s", type=float, default=120.0, help="for each to be ready")
    parser.add_argument("--run", action="store_true", help="do it; else the plan is printed")


def plain_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Plain:
    """What the options say; ends the program if one is missing."""
    for name in ("dir", "old", "new", "replica"):
        if not getattr(given, name):
            parser.error(f"--{name} is needed")
    replicas = dict(one.partition("=")[::2] for one in given.replica)
    if len(replicas) != len(given.replica) or not all(replicas.values()):
        parser.error("--replica is NAME=URL, each name once")
    return Plain(
        folder=given.dir,
        old=given.old.rstrip("/"),
        new=given.new.rstrip("/"),
        replicas=replicas,
        backup_file=given.backup,
        password_file=given.password_file,
        backup_with=given.backup_with,
        wait_s=given.wait_s,
        stop=given.stop,
        switch=given.switch,
        start=given.start,
    )
