"""A `state.db` that was emptied is a lost ledger, whoever opens it, and never a new one."""

import io
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from certs.authority import Authority
from certs.enrolment import load_ledger_key, new_ledger_key
from feddp.cli.app import app
from node_agent.agent import run
from node_agent.doctor.files import check_ledger
from node_agent.folder.backup import backup, restore
from node_agent.folder.config import Folder
from node_agent.joining.enrol import _begin_ledger as begin_ledger
from node_agent.joining.kept_name import kept_name
from node_agent.joining.leaving import leave
from node_agent.ledger.copies import export, heads, settle
from node_agent.ledger.copies import restore as put_back
from node_agent.ledger.reading import writing
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from protos.errors import FeddpError, Malformed
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, order


def no_bytes(path: Path) -> None:
    """What a power cut leaves on some file systems, or a slip with `>`."""
    path.write_bytes(b"")


def no_tables(path: Path) -> None:
    """A database of SQLite's that holds nothing."""
    path.unlink()
    with closing(sqlite3.connect(path)) as made:
        made.execute("VACUUM")
        made.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size > 0


def no_owner(path: Path) -> None:
    """All tables of a ledger, and nothing in them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        for (name,) in opened.execute("SELECT name FROM sqlite_schema WHERE type = 'table'"):
            opened.execute(f"DELETE FROM {name}")  # noqa: S608


EMPTIED = [no_bytes, no_tables, no_owner]


def opened(folder: Folder) -> State:
    """Its ledger, to write."""
    return State(folder.state_db, NODE, load_ledger_key(folder.identity / "ledger.key"))


@pytest.fixture
def spent(tmp_path: Path) -> Folder:
    """An agent whose patients have spent something."""
    folder = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)
    with closing(opened(folder)) as state:
        state.reserve(order(), make_filter("gdp", 0, 10.0, 1.0e-5))
        state.open("a1", 1.0, 0.5)
        state.lose("a1")
    return folder


def call(*words: str | Path) -> tuple[int, str]:
    """(exit code, all that it printed)."""
    told = CliRunner().invoke(app, ["agent", *map(str, words)])
    return told.exit_code, told.output


@pytest.mark.parametrize("empty", EMPTIED)
def test_an_emptied_ledger_counts_for_none_wherever_it_is_opened(
    spent: Folder, tmp_path: Path, empty: Callable[[Path], None]
) -> None:
    """Neither the agent, nor what reads, nor what writes goes on with nothing spent."""
    empty(spent.state_db)
    before = spent.state_db.read_bytes()

    def written() -> None:
        with writing(spent, Owner(spent)):
            pass

    for use in (
        lambda: run(spent.root),
        lambda: opened(spent),
        lambda: export(spent.root, tmp_path / "copy.db"),
        lambda: backup(spent.root, tmp_path / "agent.tar"),
        lambda: heads(spent.root),
        lambda: leave(spent.root),
        lambda: settle(spent.root, "*"),
        written,
    ):
        with pytest.raises(FeddpError) as caught:
            use()
        assert caught.value.reason == "LEDGER_MISSING", use
        assert "is empty" in caught.value.message
        assert "feddp agent ledger import FILE" in caught.value.message
    assert spent.state_db.read_bytes() == before
    assert not (tmp_path / "agent.tar").exists()  # last night's good one is not replaced


class Owner:
    """Whose ledger it is."""

    def __init__(self, folder: Folder) -> None:
        self.node = NODE
        self.ledger_key = load_ledger_key(folder.identity / "ledger.key")


@pytest.mark.parametrize("empty", EMPTIED)
def test_what_reads_says_that_it_is_lost(spent: Folder, empty: Callable[[Path], None]) -> None:
    """Never "0 entries, verifies", nor "no entry yet"."""
    empty(spent.state_db)
    found = status(spent.root)
    assert (found["in_order"], found["ledger"]["verified"]) == (False, False)
    assert "is empty" in found["ledger"]["missing"]
    code, words = call("status", "--dir", spent.root)
    assert code == 1
    assert "MISSING" in words
    assert "UNKNOWN" in words
    assert "booked epsilon" not in words
    for one in found["accounts"]:
        known = {name: one[name] for name in ("epsilon_limit", "delta")}
        assert None not in known.values()
        for name in ("epsilon_booked", "epsilon_spent", "epsilon_remaining", "guarantee"):
            assert one[name] is None, name  # a 0 there would be a wrong epsilon
    assert found["accounts"]
    code, words = call("policy", "check", "--json", "--dir", spent.root)
    assert code == 1
    answer = json.loads(words)
    assert "is empty" in answer["refused"][0]
    assert not any("no entry yet" in one for one in answer["notes"])
    check = check_ledger(spent)
    assert (check.result, "is empty" in check.found) == ("failed", True)


@pytest.mark.parametrize("empty", EMPTIED)
def test_a_copy_takes_the_place_of_an_emptied_ledger(
    spent: Folder, tmp_path: Path, empty: Callable[[Path], None]
) -> None:
    """What the sentence says to do does it, and all that was spent is back."""
    export(spent.root, tmp_path / "copy.db")
    empty(spent.state_db)
    assert put_back(spent.root, tmp_path / "copy.db") == 2
    assert status(spent.root)["ledger"]["entries"] == 2


def test_an_empty_copy_is_no_copy(spent: Folder, tmp_path: Path) -> None:
    """Neither as a ledger to import nor within a backup."""
    copy, made = tmp_path / "copy.db", tmp_path / "agent.tar"
    copy.touch()
    with pytest.raises(Malformed) as caught:
        put_back(spent.root, copy)
    assert caught.value.reason == "LEDGER_INVALID"
    assert status(spent.root)["ledger"]["entries"] == 2
    backup(spent.root, made)
    emptied = tmp_path / "emptied.tar"
    with tarfile.open(made) as old, tarfile.open(emptied, "w") as new:
        for member in old:
            held = old.extractfile(member)
            assert held is not None
            data = b"" if member.name == "state.db" else held.read()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    with pytest.raises(Malformed) as caught:
        restore(emptied, tmp_path / "other")
    assert caught.value.reason == "BACKUP_INVALID"
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("empty", EMPTIED)
def test_no_join_begins_on_an_emptied_ledger(spent: Folder, empty: Callable[[Path], None]) -> None:
    """It is found before a token is used up: in a folder that was left, too."""
    leave(spent.root)
    assert kept_name(spent, None) == NODE
    empty(spent.state_db)
    with pytest.raises(FeddpError) as caught:
        kept_name(spent, None)
    assert caught.value.reason == "LEDGER_MISSING"
    with pytest.raises(FeddpError) as caught:
        export(spent.root, spent.root / "out.db")
    assert caught.value.reason == "LEDGER_MISSING"


def test_the_log_beside_an_emptied_ledger_is_not_thrown_away(spent: Folder) -> None:
    """SQLite removes the log of a database that has no bytes: nobody opens it to look."""
    log = Path(f"{spent.state_db}-wal")
    with closing(sqlite3.connect(spent.state_db, isolation_level=None)) as agent:
        agent.execute("INSERT INTO meta VALUES ('a', 'b')")
        shutil.copy(log, spent.root / "kept")
        no_bytes(spent.state_db)
        kept = (spent.root / "kept").read_bytes()
        assert "is empty" in status(spent.root)["ledger"]["missing"]
        with pytest.raises(FeddpError):
            opened(spent)
        assert log.read_bytes() == kept


def test_a_damaged_ledger_is_named_with_what_to_do(spent: Folder, tmp_path: Path) -> None:
    """Which file it is, and that a copy is imported once it is out of the way."""
    export(spent.root, tmp_path / "copy.db")
    spent.state_db.write_bytes(b"\xa5" * 8192)
    for use in (
        lambda: run(spent.root),
        lambda: opened(spent),
        lambda: export(spent.root, tmp_path / "other.db"),
        lambda: heads(spent.root),
        lambda: put_back(spent.root, tmp_path / "copy.db"),
    ):
        with pytest.raises(Malformed) as caught:
            use()
        assert caught.value.reason == "LEDGER_INVALID"
        assert str(spent.state_db) in caught.value.message
        assert "feddp agent ledger import FILE" in caught.value.message
    assert str(spent.state_db) in status(spent.root)["ledger"]["problems"][0]
    check = check_ledger(spent)
    assert (check.result, "damaged" in check.found) == ("failed", True)
    spent.state_db.rename(tmp_path / "damaged.db")
    assert put_back(spent.root, tmp_path / "copy.db") == 2


def test_a_ledger_has_its_tables_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first join that is cut short leaves no `state.db` that would be taken for an emptied one,
    and the same join goes on over what it left beside."""
    folder, key = Folder(tmp_path), new_ledger_key()

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("node_agent.state.state.prepare", cut)
        with pytest.raises(KeyboardInterrupt):
            begin_ledger(folder, NODE, key)
    assert not folder.state_db.exists()
    begin_ledger(folder, NODE, key)
    begin_ledger(folder, NODE, key)  # of a node that joins again
    assert kept_name(folder, None) == NODE
    assert [one.name for one in tmp_path.iterdir()] == ["state.db"]
