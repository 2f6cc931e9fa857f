"""`feddp coordinator check` and a start look at the ledger key that nodes remember."""

import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.checking.check import check
from coordinator.installation import Installation, init
from coordinator.keyring import FILE, ledger_key
from coordinator.store import checkpoints, epochs
from coordinator.store.database import Database
from feddp.demo.ports import free_ports
from protos.errors import FeddpError

START_S_MAX = 60.0


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """A new one."""
    port, enrollment_port, health_port = free_ports(3)
    return init(
        tmp_path / "c",
        "test.example",
        port=port,
        enrollment_port=enrollment_port,
        health_port=health_port,
    )


def said(made: Installation, subject: str) -> list[tuple[str, str]]:
    """(level, text) of what is found of a subject."""
    return [(one.level, one.text) for one in check(made.config) if one.subject == subject]


def start(made: Installation) -> subprocess.CompletedProcess[str]:
    """One that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "feddp", "coordinator", "serve", "--config", made.config],
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
        check=False,
    )


def signed(made: Installation, what: str = "checkpoint") -> None:
    """The coordinator has told nodes its key."""
    database, key = Database(f"sqlite:///{made.folder / 'coordinator.db'}"), made.folder / "pki"
    if what == "checkpoint":
        database.write_now(lambda c: checkpoints.renew(c, ledger_key(key), 1000.0))
    else:
        database.write_now(
            lambda c: epochs.raise_epoch(c, ledger_key(key), now_s=9.0, backup_made_at_s=8.0)
        )
    database.close()


@pytest.mark.parametrize("what", ["checkpoint", "epoch"])
@pytest.mark.parametrize("lost", ["missing", "another", "no key"])
def test_another_ledger_key_than_the_one_that_nodes_remember_is_refused(
    installation: Installation, lost: str, what: str
) -> None:
    """By the check and by a start, with the same words, and none is made in its place."""
    signed(installation, what)
    assert [level for level, _ in said(installation, "ledger key")] == ["ok"]
    file = installation.folder / "pki" / FILE
    kept = file.read_bytes()
    file.unlink()
    if lost == "another":
        ledger_key(file.parent)
    elif lost == "no key":
        file.write_text("")
    there = file.read_bytes() if file.exists() else None
    [(level, text)] = said(installation, "ledger key")
    assert level == "error"
    assert str(file) in text
    if lost != "no key":
        assert "restore that file from a backup that holds keys" in text
    done = start(installation)
    assert (done.returncode != 0, text in done.stderr) == (True, True), done.stderr
    assert (file.read_bytes() if file.exists() else None) == there
    file.write_bytes(kept)
    assert [level for level, _ in said(installation, "ledger key")] == ["ok"]


def test_a_ledger_key_is_made_where_nothing_was_ever_signed(installation: Installation) -> None:
    """As by the first start after 0.1.0; the check makes none."""
    file = installation.folder / "pki" / FILE
    file.unlink()
    assert said(installation, "ledger key") == []
    assert not file.exists()
    ledger_key(file.parent, [])
    assert file.exists()


def test_the_check_makes_no_database_where_none_is(installation: Installation) -> None:
    """An empty file would be taken for one without tables."""
    file = installation.folder / "coordinator.db"
    file.unlink()
    assert said(installation, "ledger key") == []
    assert not file.exists()


def test_a_replica_makes_no_ledger_key(tmp_path: Path) -> None:
    """Even where nothing was ever signed."""
    with pytest.raises(FeddpError, match="every replica needs the whole folder") as caught:
        ledger_key(tmp_path, shared=True)
    assert caught.value.reason == "LEDGER_KEY_MISSING"
    assert list(tmp_path.iterdir()) == []
