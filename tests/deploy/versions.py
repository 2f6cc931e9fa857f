"""Versions beside each other, as an upgrade has them, and the scripts of deploy/upgrade."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.coordinator.next_release import ADDS, write_migration
from tests.deploy import managed

ROOT: Final = Path(__file__).parents[2]
SCRIPTS: Final = ROOT / "deploy/upgrade"
PARTS: Final = ("certs", "coordinator", "feddp", "node_agent", "privacy", "protos")
NEXT: Final = "9.9.0"

WRAPPER: Final = """#!/bin/sh
PYTHONPATH={tree} exec {python} -P -m feddp "$@"
"""


def version_folder(parent: Path, name: str, tree: Path = ROOT) -> Path:
    """A folder with `bin/feddp`, which runs the code of `tree`: a virtual environment, as it were,
    with the packages of this one."""
    folder = parent / name
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin/feddp"
    program.write_text(WRAPPER.format(tree=shlex.quote(str(tree)), python=sys.executable))
    program.chmod(0o755)
    return folder


def next_release(
    parent: Path, *, older_may_serve: bool, version: str = NEXT, statement: str = ADDS
) -> Path:
    """The code of now under another version number, with one more migration."""
    tree = parent / f"tree-{version}"
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, tree / part, ignore=ignored)
    about = tree / f"feddp-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: feddp\nVersion: {version}\n")
    write_migration(
        tree / "coordinator/store/migrations/versions",
        older_may_serve=older_may_serve,
        statement=statement,
    )
    return version_folder(parent, version, tree)


class Service:
    """The processes of an installation, under `managed.py` in place of systemd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "run").mkdir(parents=True)
        command = f"{sys.executable} {managed.__file__}"
        self.options = (
            *("--stop", f"{command} stop {{name}} {folder}"),
            *("--switch", f"ln -sfn {{version}} {folder}/run/{{name}}"),
            *("--start", f"{command} start {{name}} {folder}"),
        )

    def add(self, name: str, config: Path, log: Path, **environment: str) -> None:
        """Describe a process; it is not started."""
        about = {"config": str(config), "log": str(log), "environment": environment}
        (self.folder / f"{name}.json").write_text(json.dumps(about))

    def switch(self, name: str, version: Path) -> None:
        """Which version it runs at its next start."""
        link = self.folder / "run" / name
        link.unlink(missing_ok=True)
        link.symlink_to(version)

    def version(self, name: str) -> str:
        """Which version it runs."""
        return (self.folder / "run" / name).readlink().name

    def start(self, name: str) -> None:
        """Start it, through a process that ends."""
        subprocess.run(
            [sys.executable, managed.__file__, "start", name, self.folder], check=True, timeout=60
        )

    def runs(self, name: str) -> bool:
        """Whether it does."""
        pid_file = self.folder / f"{name}.pid"
        return pid_file.exists() and managed.runs(int(pid_file.read_text()))

    def close(self) -> None:
        """End all."""
        for pid_file in self.folder.glob("*.pid"):
            managed.stop(pid_file.stem, self.folder)


def script(name: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of deploy/upgrade."""
    return subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **environment},
    )


def way_back(printed: str) -> list[list[str]]:
    """The commands that a script which stopped says."""
    _, _, told = printed.partition("to go back:\n")
    return [shlex.split(line) for line in commands(told)]


def commands(printed: str) -> list[str]:
    """The commands of a plan."""
    return [line.strip() for line in printed.splitlines() if re.match(r"      \S", line)]


def printed_json(version: Path, *words: object) -> Any:
    """What a version prints with --json."""
    done = subprocess.run(
        [version / "bin/feddp", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
