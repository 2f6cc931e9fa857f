"""A full disk is called one, by every command that opens a database: never a damaged ledger.

Each test mounts a real file system of a few MiB, in a mount namespace of its own: it needs a kernel
that gives one to this user, and fails where it does not.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.authority import Authority
from node_agent.folder.config import Folder
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.joining.test_enrol import FakeEnrolment

FEDDP = f"{sys.executable} -m feddp"
FILLED = 'dd if=/dev/zero of="$DISK/fill" bs=4k 2>/dev/null || true'


def on_small_disk(tmp_path: Path, script: str) -> str:
    """What a script prints on both streams; $DISK is a file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size=2m none "$DISK"\n{script}']
    ran = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        env={"DISK": str(disk), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
    )
    return ran.stdout


@pytest.fixture
def agent(tmp_path: Path) -> Folder:
    """One that has joined."""
    return make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 1)


READ = ["status", "outbox", "digest", "approve --list", "ledger heads"]


@pytest.mark.parametrize("command", READ)
def test_what_only_reads_works_on_a_full_disk(agent: Folder, tmp_path: Path, command: str) -> None:
    """It shows what it shows where there is room, with the same exit code."""
    said = on_small_disk(
        tmp_path,
        f'cp -r {agent.root} "$DISK/agent"; read="{FEDDP} agent {command} --dir $DISK/agent"\n'
        f'$read; echo "exit $?"; {FILLED}\necho full; $read; echo "exit $?"\n',
    )
    before, after = said.split("full\n")
    assert before == after
    assert before.endswith("exit 0\n")


@pytest.mark.parametrize("command", ["run", "approve job-1"])
def test_a_full_disk_is_said_and_no_backup_is_asked_for(
    agent: Folder, tmp_path: Path, command: str
) -> None:
    """The folder is named, the exit code is 1, and with room the ledger opens as before."""
    said = on_small_disk(
        tmp_path,
        f'cp -r {agent.root} "$DISK/agent" && {FILLED}\n'
        f'{FEDDP} agent {command} --dir "$DISK/agent"; echo "exit $?"\n'
        f'rm "$DISK/fill"; {FEDDP} agent status --dir "$DISK/agent" >/dev/null && echo opens\n',
    )
    error, code, opens = said.splitlines()
    assert error.startswith(f"error: disk full: free room on the disk of {tmp_path}/disk/agent")
    assert "damaged" not in error
    assert "restore" not in error
    assert (code, opens) == ("exit 1", "opens")


def test_doctor_names_the_full_disk_and_calls_no_ledger_missing(
    agent: Folder, tmp_path: Path
) -> None:
    """Nobody is told to put an older copy in the place of a sound ledger."""
    said = on_small_disk(
        tmp_path,
        f'cp -r {agent.root} "$DISK/agent" && {FILLED}\n'
        f'{FEDDP} agent doctor --hold 0 --dir "$DISK/agent" || true\n',
    )
    assert re.search("FAILED +disk: .* cannot be written .*: No space left on device", said)
    assert "free room on that disk" in said
    assert re.search("ok +ledger: 0 entries;", said)
    assert "import" not in said


@pytest.fixture
def enrolment(tmp_path: Path) -> Iterator[FakeEnrolment]:
    """A coordinator's enrolment port on this machine."""
    server = FakeEnrolment(Authority.create(tmp_path / "ca", TRUST_DOMAIN))
    yield server
    server.stop()


@pytest.mark.parametrize("left_kib", [0, 64])
def test_a_join_on_a_full_disk_says_so_and_goes_on_once_there_is_room(
    enrolment: FakeEnrolment, tmp_path: Path, left_kib: int
) -> None:
    """Before its keys can be written, and after them: the same command then ends the join."""
    join = f'{FEDDP} agent join {enrolment.token()} --dir "$DISK/agent"'
    said = on_small_disk(
        tmp_path,
        f'dd if=/dev/zero of="$DISK/left" bs=1k count={left_kib} 2>/dev/null; {FILLED}\n'
        f'rm "$DISK/left"; {join}; echo "exit $?"; rm "$DISK/fill"; {join} && echo "joined"\n',
    )
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert errors[0].startswith(f"error: disk full: free room on the disk of {tmp_path}/disk/agent")
    assert "exit 1\n" in said
    assert said.endswith("joined\n")
    assert len(enrolment.csrs) == (2 if left_kib else 1)


def test_a_coordinator_on_a_full_disk_says_so(tmp_path: Path) -> None:
    """Of its database too."""
    said = on_small_disk(
        tmp_path,
        f'{FEDDP} coordinator init --dir "$DISK/c" >/dev/null\n{FILLED}\n'
        f'timeout 60 {FEDDP} coordinator serve --config "$DISK/c/coordinator.yaml"\n'
        'echo "exit $?"\n',
    )
    assert "error: disk full: free room on the disk " in said
    assert "damaged" not in said
    assert said.endswith("exit 1\n")
