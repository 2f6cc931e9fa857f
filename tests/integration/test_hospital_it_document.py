"""Each command of docs/hospital-it.md is run as it stands there, against a real coordinator.

A shell block says after `sh` how it is run: nothing (the agent runs), `stopped` (it does not),
`other` (TOKEN is another coordinator's), `exit N`, or `not run: REASON`, which is printed here.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.alerts.settings import AlertsConfig
from tests.integration.document_blocks import Block, put_in, shell_blocks
from tests.integration.federation import Federation, null_job, run_cli, wait_for, write_data

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs/hospital-it.md").read_text()
FIRST, LAST = ("Install", "Join"), ("Another coordinator", "Uninstall")
"""Sections that the others rest on, and those after which there is nothing left to try."""


def blocks() -> list[Block]:
    """Every shell block in the order of work."""

    def order(one: Block) -> int:
        if one.section in FIRST:
            return FIRST.index(one.section)
        return 10 + LAST.index(one.section) if one.section in LAST else 5

    return sorted(shell_blocks(TEXT), key=order)


class Site:
    """A hospital's machine, and the two coordinators that it may be with."""

    def __init__(self, one: Federation, other: Federation, folder: Path) -> None:
        self.one, self.other, self.now = one, other, one
        self.folder = folder
        self.agent = folder / "agent"
        self.job = "none"

    def token(self, federation: Federation) -> str:
        """A fresh one for this node's name, or for another while this one is in the federation."""
        for name in ("alpha", "visitor"):
            made = run_cli("node", "token", name, "--dir", str(federation.installation.folder))
            if made[0] == 0:
                return made[1].split()[-1]
        raise AssertionError(made[2])

    def run(self, block: Block) -> None:
        """As a reader does it: names put in, exit codes looked at."""
        words = block.how.split()
        stopped = "stopped" in words
        if stopped:
            self.stop()
        target = self.other if "other" in words else self.now
        names = {
            "TOKEN": self.token(target) if "TOKEN" in block.text else "",
            "RESTORED": str(self.folder / "restored"),
            "DIR": str(self.agent),
            "JOB": self.job,
            "NAME": "alpha",
            "COORDINATOR": str(target.installation.folder),
            "GATEWAY": str(self.folder / "gateway"),
        }
        (self.folder / "gateway").mkdir(exist_ok=True)
        text = put_in(block, names)
        done = subprocess.run(
            ["bash", "-ec", text],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "FEDDP_DIR": str(target.installation.folder),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == block.exit_code, f"{block.text}\n{done.stdout}\n{done.stderr}"
        if "other" in words:
            self.now = self.other
        if "agent join" in block.text and self.job == "none":
            self.settle_in()
        elif stopped:
            self.start()

    def settle_in(self) -> None:
        """What the steward does after the join; and a job, so that there is something to see."""
        self.one.agent("alpha").symlink_to(self.agent)
        write_data(self.agent, 60)
        self.one.set_policy("alpha")
        self.start()
        self.job = self.one.submit(null_job(1, min_participants=2))
        assert self.one.wait_for_end(self.job).status == "completed"

    def start(self) -> None:
        """Run the agent, if the folder has one."""
        if (self.agent / "agent.yaml").exists():
            if not self.now.agent("alpha").exists():
                self.now.agent("alpha").parent.mkdir(exist_ok=True)
                self.now.agent("alpha").symlink_to(self.agent)
            self.now.start("alpha")
            self.now.wait_for_nodes("alpha")
            wait_for("it has read what it signed", lambda: not self.status()["catching_up"])

    def status(self) -> Any:
        """What `feddp agent status` says."""
        return json.loads(run_cli("agent", "status", "--dir", str(self.agent), "--json")[1])

    def stop(self) -> None:
        """End it."""
        if self.now.is_running("alpha"):
            self.now.kill("alpha")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Two coordinators, and an empty machine."""
    federations = []
    try:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            federation = Federation(tmp_path / name)
            federations.append(federation)
            federation.configure(min_participants=2)
            federation.start("coordinator")
        federations[0].add_node("beta")
        federations[0].start("beta")
        folder = tmp_path / "machine"
        (folder / "bin").mkdir(parents=True)
        for name, arguments in (("feddp", "-m feddp "), ("python", "")):
            path = folder / "bin" / name
            path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
            path.chmod(0o755)
        yield Site(federations[0], federations[1], folder)
    finally:
        for federation in federations:
            federation.stop()


def test_every_command_of_the_document_works(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order in which a hospital lives; what is not run is printed with the reason."""
    ran = 0
    for block in blocks():
        if block.reason:
            with capsys.disabled():
                first = block.lines()[0]
                sys.stdout.write(f"\nnot run ({block.section}): {first} …: {block.reason}")
            continue
        site.run(block)
        ran += 1
    assert ran >= 8
    assert not (site.agent / "agent.yaml").exists()
    assert (site.agent / "state.db").exists()
    # Here everything is one user's, which the agent says.
    assert "stewards_files_not_apart" in site.one.log("alpha")


def test_what_is_not_run_says_why_and_names_real_options() -> None:
    """A command of ours that cannot run here must at least be one."""
    not_run = [one for one in blocks() if one.reason]
    assert not_run
    for block in not_run:
        assert len(block.reason.split()) > 3, block
        for line in block.lines():
            if not line.startswith("feddp "):
                continue
            words = shlex.split(line, comments=True)[1:]
            command = [one for one in words[:3] if one.isidentifier() or "-" in one]
            command = [one for one in command if not one.startswith("-")]
            code, text, _ = run_cli(*command[: 3 if command[1:2] == ["limit"] else 2], "--help")
            assert code == 0, line
            for option in (one for one in words if one.startswith("--")):
                assert option in text, line


def test_the_alerts_that_are_shown_are_a_configuration() -> None:
    """As it stands there."""
    (shown,) = re.findall(r"^```yaml\n(alerts:.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    config = AlertsConfig.model_validate(yaml.safe_load(shown)["alerts"])
    assert config.mail is not None
    assert config.is_used
