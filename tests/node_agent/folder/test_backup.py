"""A whole agent in one file, and back."""

import io
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from certs.authority import Authority
from node_agent.folder.backup import backup, restore
from node_agent.folder.config import Folder
from node_agent.folder.installation import locked
from node_agent.joining.identity import load_identity
from node_agent.policy.admission import Suspensions
from node_agent.state.notes import RESTORED_NOTE
from node_agent.state.state import State
from privacy.filters import make_filter
from privacy.ledger import Entry
from protos.errors import Conflict, FeddpError, Malformed, NotFound
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, order

FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)


@pytest.fixture
def agent(tmp_path: Path) -> Folder:
    """One with a release in its ledger."""
    folder = make_agent(tmp_path / "a", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 1)
    state = opened(folder)
    state.reserve(order(), FILTER)
    state.open("a1", 1.0, 1.0)
    state.lose("a1")
    state.close()
    return folder


def opened(folder: Folder) -> State:
    """A folder's ledger."""
    return State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)


def test_what_is_restored_is_the_same_agent_that_reads_up_first(
    agent: Folder, tmp_path: Path
) -> None:
    """Same identity, same rules, same entries; the running agent's lock is no hindrance."""
    file = tmp_path / "backup.tar"
    with locked(agent):
        backup(agent.root, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not list(agent.root.glob(".backup*"))
    new = Folder(tmp_path / "b")
    assert restore(file, new.root) == backup(new.root, tmp_path / "again.tar")
    for name in ("agent.yaml", "policy.yaml", "datasets.yaml", "identity/ledger.key"):
        assert (new.root / name).read_bytes() == (agent.root / name).read_bytes()
        assert stat.S_IMODE((new.root / name).stat().st_mode) == 0o600
    old, made = opened(agent), opened(new)
    assert made.ledger.entries() == old.ledger.entries()
    assert made.notes.read(RESTORED_NOTE) == "yes"
    assert Suspensions(catching_up=True).reason(f"{NODE}/patients") == "LEDGER_CATCHING_UP"
    for one in (old, made):
        one.close()


def test_a_folder_that_holds_an_agent_is_left_alone(agent: Folder, tmp_path: Path) -> None:
    """Its ledger may hold more than the backup."""
    backup(agent.root, tmp_path / "backup.tar")
    with pytest.raises(Conflict, match="holds an agent already"):
        restore(tmp_path / "backup.tar", agent.root)
    with pytest.raises(Conflict, match="not written over"):
        backup(agent.root, tmp_path / "backup.tar")
    with pytest.raises(NotFound):
        backup(agent.root, tmp_path / "no/folder.tar")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "identity/../../evil", "spool/x", "identity/a/b", "link"]
)
def test_a_file_that_is_no_agents_is_not_taken_out(tmp_path: Path, name: str) -> None:
    """Wherever it would have gone."""
    file = tmp_path / "evil.tar"
    with tarfile.open(file, "w") as archive:
        info = tarfile.TarInfo("policy.yaml" if name == "link" else name)
        if name == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info, io.BytesIO(b""))
    with pytest.raises(Malformed, match="no file of an agent"):
        restore(file, tmp_path / "b")
    assert not [one for one in tmp_path.rglob("*") if one.name in ("evil", "x", "policy.yaml")]


@pytest.mark.parametrize("size", [0, 700, 5000])
def test_a_backup_that_was_cut_is_refused(agent: Folder, tmp_path: Path, size: int) -> None:
    """And says so."""
    backup(agent.root, tmp_path / "backup.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "backup.tar").read_bytes()[:size])
    with pytest.raises(FeddpError):
        restore(tmp_path / "cut.tar", tmp_path / "b")
    assert {one.name for one in (tmp_path / "b").rglob("*")} <= {"agent.lock"}
    restore(tmp_path / "backup.tar", tmp_path / "b")


def test_a_file_without_a_ledger_is_no_backup(agent: Folder, tmp_path: Path) -> None:
    """An agent of it would begin with nothing spent."""
    file = tmp_path / "backup.tar"
    with tarfile.open(file, "w") as archive:
        archive.add(agent.agent_yaml, "agent.yaml")
    with pytest.raises(Malformed, match="not a whole backup"):
        restore(file, tmp_path / "b")


@pytest.mark.parametrize("command", ["ledger export", "backup"])
def test_a_full_disk_is_no_damaged_ledger_and_is_named(
    agent: Folder, tmp_path: Path, command: str
) -> None:
    """A real file system of 16 KiB, in a mount namespace of its own; nothing is left on it."""
    full = tmp_path / "full"
    full.mkdir()
    script = (
        'mount -t tmpfs -o size=16k none "$1" && "$2" -m feddp agent $3 "$1/copy" --dir "$4"'
        ' || echo "exit $?, left: $(ls -A "$1")"'
    )
    words = [str(full), sys.executable, command, str(agent.root)]
    ran = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "left: \n" in ran.stdout
    assert str(full) in ran.stderr
    assert "no ledger" not in ran.stderr
    assert "disk" in ran.stderr
    assert "free room" in ran.stderr
    assert "check the path, its owner" not in ran.stderr


def test_a_backup_whose_ledger_was_changed_is_refused(agent: Folder, tmp_path: Path) -> None:
    """The archive tells nothing of a bit that has turned, the signatures do: the folder is not made
    for an agent whose books its coordinator would dispute."""
    file = tmp_path / "backup.tar"
    backup(agent.root, file)
    data = file.read_bytes()
    [signature] = [one.node_signature for one in _entries(agent) if one.statement.kind == "post"]
    assert data.count(signature.hex().encode()) == 1
    changed = signature[:-1] + bytes([signature[-1] ^ 1])
    file.write_bytes(data.replace(signature.hex().encode(), changed.hex().encode()))
    with pytest.raises(Malformed) as caught:
        restore(file, tmp_path / "b")
    assert (caught.value.reason, str(file) in caught.value.message) == ("LEDGER_INVALID", True)
    assert not (tmp_path / "b").exists()


def _entries(folder: Folder) -> list[Entry]:
    state = opened(folder)
    entries = state.ledger.entries()
    state.close()
    return entries


def test_a_refused_backup_leaves_no_folder_and_no_lock(tmp_path: Path) -> None:
    """A folder that was there before stays, as empty as it was."""
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"no archive")
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(Malformed):
            restore(bad, tmp_path / name)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("command", ["ledger export", "backup"])
def test_a_ledger_is_saved_to_another_disk_when_its_own_is_full(
    agent: Folder, tmp_path: Path, command: str
) -> None:
    """That is when it is needed; the folder's disk has not even room to open it."""
    full, out = tmp_path / "full", tmp_path / "saved"
    full.mkdir()
    script = (
        'mount -t tmpfs -o size=2m none "$1" && cp -a "$4/." "$1" && rm -f "$1"/state.db-*'
        ' && (cat /dev/zero > "$1/filler" 2>/dev/null; true) && "$2" -m feddp agent $3 "$5"'
        ' --dir "$1" || echo "exit $?"'
    )
    words = [str(full), sys.executable, command, str(agent.root), str(out)]
    ran = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "exit" not in ran.stdout, ran.stderr
    if command == "backup":
        restore(out, tmp_path / "b")
        assert (tmp_path / "b" / "state.db").stat().st_size > 0
    else:
        assert out.read_bytes().startswith(b"SQLite format 3")
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["policy.yaml", "datasets.yaml"])
def test_a_stewards_file_that_is_there_is_neither_written_over_nor_removed(
    agent: Folder, tmp_path: Path, name: str
) -> None:
    """It may be newer than the backup; whoever restores is told which file is in the way."""
    backup(agent.root, tmp_path / "backup.tar")
    new = tmp_path / "b"
    new.mkdir()
    (new / name).write_text("newer: 1")
    with pytest.raises(Conflict, match=f"{name} is there already"):
        restore(tmp_path / "backup.tar", new)
    assert [(one.name, one.read_text()) for one in new.iterdir()] == [(name, "newer: 1")]
