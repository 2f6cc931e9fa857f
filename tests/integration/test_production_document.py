"""Each command of docs/production.md is run as it stands there, from an empty folder to a verified
ledger and a verified backup; only the ports are made free ones.

A shell block says after `sh` how it is run: nothing, `serves` (each line is a process that stays),
`exit N`, or `not run: REASON`, which is printed here.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from feddp.client import Client
from feddp.demo.ports import choose_ports
from feddp.profile import Profile
from tests.integration.document_blocks import Block, put_in, shell_blocks
from tests.integration.federation import wait_for
from tests.observing.prometheus import program

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = shell_blocks((ROOT / "docs/production.md").read_text())
JOB = (ROOT / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]


class Machine:
    """An empty folder with a clone of the repository in reach, and what was started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = choose_ports(None)
        for name in ("charts", "config"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "BACKUPS").mkdir()
        (folder / "job.yaml").write_text(JOB)
        (folder / "bin").mkdir()
        for name, arguments in (("feddp", "-m feddp "), ("python", "")):
            path = folder / "bin" / name
            path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
            path.chmod(0o755)
        (folder / "bin" / "promtool").symlink_to(program("promtool"))
        path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        self.environment = {k: v for k, v in environment.items() if not k.startswith("FEDDP_")}
        self.servers: list[subprocess.Popen[bytes]] = []
        self.printed = ""

    def run(self, block: Block) -> None:
        """As a reader does it."""
        text = put_in(block, {"HOST": "localhost"} | {name: name for name in KEPT})
        for shown, port in zip((8443, 8444, 8080), self.ports, strict=True):
            text = text.replace(f":{shown}", f":{port}")
        options = "--port {} --enrollment-port {} --health-port {}".format(*self.ports)
        text = re.sub(r"(feddp coordinator init .*)", rf"\1 {options}", text)
        if block.how == "serves":
            for line in text.splitlines():
                self.serve(line)
            self.until_up()
            return
        done = subprocess.run(
            ["bash", "-ec", text],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == block.exit_code, f"{text}\n{done.stdout}\n{done.stderr}"
        self.printed += done.stdout

    def serve(self, line: str) -> None:
        """A command that stays."""
        with (self.folder / "servers.log").open("ab") as log:
            self.servers.append(
                subprocess.Popen(
                    shlex.split(line), cwd=self.folder, env=self.environment, stdout=log, stderr=log
                )
            )

    def until_up(self) -> None:
        """The coordinator is ready, and every agent that was started has its session."""
        wait_for("it is ready", self._is_ready)
        with Client(Profile.load(self.folder / "DIR/operator")) as client:
            agents = len(self.servers) - 1
            wait_for("all agents are in", lambda: self._connected(client) == agents)

    def _is_ready(self) -> bool:
        assert all(one.poll() is None for one in self.servers), self.log()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[2]}/ready", timeout=5):
                return True
        except OSError:
            return False

    def _connected(self, client: Client) -> int:
        assert all(one.poll() is None for one in self.servers), self.log()
        return sum(node.connected for node in client.nodes())

    def log(self) -> str:
        """Its end."""
        return (self.folder / "servers.log").read_text()[-3000:]

    def close(self) -> None:
        """End what was started."""
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
        for server in self.servers:
            server.wait(60)


KEPT = ("DIR", "TRY", "ENGINEER", "BACKUPS", "PASSWORD")
"""Names that are files and folders, and may be called so."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Nothing on it but the repository."""
    made = Machine(tmp_path)
    yield made
    made.close()


def test_every_command_of_the_document_works(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page; what is not run is printed with the reason."""
    ran = 0
    for block in BLOCKS:
        if block.reason:
            assert len(block.reason.split()) > 3, block
            with capsys.disabled():
                sys.stdout.write(f"\nnot run ({block.section}): {block.lines()[0]}: {block.reason}")
            continue
        machine.run(block)
        ran += 1
    assert ran >= 13
    for said in (
        "the check failed",  # of config/production.yaml
        "cleveland/patients",
        "completed after 4 rounds",
        'feddp_nodes{status="enrolled"} 3.0',
        "SUCCESS: 18 rules found",
        "work is paused",
        "Verification: OK",
    ):
        assert said in machine.printed, (said, machine.printed)
    assert len(list((machine.folder / "BACKUPS").iterdir())) == 1
