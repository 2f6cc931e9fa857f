"""What the README says is what happens."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from feddp.demo.ports import choose_ports

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
SERVERS = ("feddp coordinator serve", "feddp agent run")


def block(language: str) -> str:
    """The first fenced block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def commands() -> list[str]:
    """The by-hand section's commands, one each; a loop is one command."""
    lines = [line.split("  #")[0].rstrip() for line in block("sh").splitlines()]
    joined: list[str] = []
    for line in lines:
        if joined and joined[-1].startswith("for ") and not joined[-1].endswith("done"):
            joined[-1] += "\n" + line
        else:
            joined.append(line)
    return [line for line in joined if line]


def test_the_first_forty_lines_tell_what_it_is_and_is_not() -> None:
    """What it is, what it protects and does not, a diagram, the two commands and their output."""
    top = "\n".join(README.splitlines()[:40])
    for said in ("**Protects**", "**Does not protect**", "make demo", "make test", "held-out rows"):
        assert said in top, said


def test_the_by_hand_section_has_under_twelve_commands() -> None:
    """A loop counts as one, as a reader pastes it."""
    assert len(commands()) < 12


@pytest.fixture
def shell(tmp_path: Path) -> Iterator["Shell"]:
    """A reader with several terminals."""
    opened = Shell(tmp_path)
    yield opened
    opened.close()


class Shell:
    """Runs commands as a reader would, servers in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        self._servers: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> str:
        """A command that ends; its standard output."""
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, command: str) -> None:
        """A command that stays."""
        with (self.folder / "servers.log").open("ab") as log:
            self._servers.append(
                subprocess.Popen(
                    shlex.split(command),
                    cwd=self.folder,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                )
            )
        time.sleep(3)

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.send_signal(signal.SIGTERM)
        for server in self._servers:
            server.wait(20)


def test_the_by_hand_section_works_as_it_is_written(shell: Shell) -> None:
    """Every command in order; only the ports are made free ones, and servers run beside."""
    (shell.folder / "job.yaml").write_text(block("yaml"))
    port, enrolment, health = choose_ports(None)
    ports = f" --port {port} --enrollment-port {enrolment} --health-port {health}"
    printed = ""
    for command in commands():
        if command.startswith(SERVERS):
            shell.serve(command)
        else:
            free = ports if command.startswith("feddp coordinator init") else ""
            printed += shell.run(command + free)
    assert "cleveland/patients" in printed
    assert "answer" in printed


@pytest.mark.parametrize("target", ["help", "demo", "test", "lint", "protos", "bench"])
def test_make_help_lists_every_target(target: str) -> None:
    """A reader finds what there is."""
    done = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.search(rf"^{target}\s", done.stdout, re.MULTILINE)
