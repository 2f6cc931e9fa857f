"""Commands that only read a node's ledger: as it lies, of every schema, and nothing is written."""

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from certs.authority import Authority
from certs.enrolment import save_private_key
from node_agent.alerts.digest import digest
from node_agent.doctor.files import check_ledger, check_policy
from node_agent.folder.backup import backup
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.joining.leaving import plan
from node_agent.ledger import reading as reading_module
from node_agent.ledger.copies import export, heads, restore
from node_agent.ledger.reading import reading, snapshot, writing
from node_agent.outbox import outbox
from node_agent.policy.explaining import explain, order_of_job
from node_agent.policy.letting_in import asked_for_approval, let_in
from node_agent.state.notes import CONNECTED_NOTE
from node_agent.state.schema import SCHEMA_VERSION
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from protos.errors import FeddpError, Limited, Unavailable
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import APPROVALS_BEFORE, EPOCHS_DROPPED, LEDGER_KEY, NODE, order

RELEASED: Final = Path(__file__).parent / "state_0_1_0.sql"

ASKED: Final = "DROP TABLE job_mandates; DROP TABLE approvals; DROP TABLE known_projects;"
FOLLOWED: Final = (
    "ALTER TABLE attempts DROP COLUMN project; ALTER TABLE attempts DROP COLUMN purpose;"
    "DROP TABLE seen_heads; DROP TABLE seen_attempts; DROP TABLE seen_checkpoints;"
    "DROP TABLE disputes; DROP TABLE settled;"
)
BACK: Final = {
    7: "",
    6: APPROVALS_BEFORE,
    5: f"{APPROVALS_BEFORE}{EPOCHS_DROPPED}",
    4: f"{EPOCHS_DROPPED}{ASKED}",
    3: f"{EPOCHS_DROPPED}{ASKED}DROP TABLE payers;",
    2: f"{EPOCHS_DROPPED}{ASKED}DROP TABLE payers; DROP TABLE raises;",
    1: f"{EPOCHS_DROPPED}{ASKED}DROP TABLE payers; DROP TABLE raises;{FOLLOWED}",
}
"""What brings a ledger of this schema back to each that there was."""

READERS: Final[dict[str, Callable[[Folder, Path], Any]]] = {
    "status": lambda folder, _: status(folder.root),
    "outbox": lambda folder, _: outbox(folder.root),
    "digest": lambda folder, _: digest(folder.root, 7.0),
    "heads": lambda folder, _: heads(folder.root),
    "export": lambda folder, out: export(folder.root, out / "copy.db"),
    "backup": lambda folder, out: backup(folder.root, out / "backup.tar"),
    "leave, shown": lambda folder, _: plan(folder.root),
    "approve --list": lambda folder, _: asked_for_approval(folder.root),
    "explain": lambda folder, _: explain(folder.root, order("other")),
    "explain a job": lambda folder, _: explain(folder.root, order_of_job(folder.root, "job-1")),
    "doctor's ledger": lambda folder, _: check_ledger(folder),
    "doctor's policy": lambda folder, _: check_policy(folder, load_identity(folder.identity)),
}


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of an agent that has joined, its ledger with one release; copied for each test."""
    path = tmp_path_factory.mktemp("joined")
    made = make_agent(path / "agent", Authority.create(path / "ca", TRUST_DOMAIN), 1)
    (made.identity / "ledger.key").unlink()
    save_private_key(made.identity / "ledger.key", LEDGER_KEY)
    with contextlib.closing(State(made.state_db, NODE, LEDGER_KEY)) as state:
        state.reserve(order(), make_filter("gdp", 0, 10.0, 1e-5))
        state.open("a1", 1.0, 1.0)
        state.lose("a1")
        state.close_attempt("a1", "post")
    return made


@pytest.fixture
def folder(joined: Folder, tmp_path: Path) -> Folder:
    """This test's own."""
    return Folder(shutil.copytree(joined.root, tmp_path / "agent"))


def brought_back(folder: Folder, version: int) -> None:
    """The folder's ledger is of an earlier schema, and at rest."""
    with contextlib.closing(sqlite3.connect(folder.state_db)) as old:
        old.executescript(f"{BACK[version]}PRAGMA user_version = {version};")


def as_released(folder: Folder) -> None:
    """The folder's ledger is one that release 0.1.0 wrote."""
    folder.state_db.unlink()
    with contextlib.closing(sqlite3.connect(folder.state_db)) as old:
        old.executescript(f"PRAGMA journal_mode = WAL;{RELEASED.read_text()}")


def contents(folder: Folder) -> dict[str, bytes]:
    """Every file of the folder but the index that readers of an open ledger share."""
    files = (one for one in folder.root.rglob("*") if one.is_file())
    return {str(one): one.read_bytes() for one in files if one.name != "state.db-shm"}


@contextlib.contextmanager
def held(folder: Folder) -> Iterator[None]:
    """Somebody has the ledger open, and has written to its log what is not in the file yet."""
    with contextlib.closing(sqlite3.connect(folder.state_db, isolation_level=None)) as agent:
        agent.execute("INSERT OR REPLACE INTO meta VALUES (?, '1.5')", (CONNECTED_NOTE,))
        assert Path(f"{folder.state_db}-wal").stat().st_size
        yield


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("is_held", [False, True], ids=["at rest", "open"])
@pytest.mark.parametrize("version", [*BACK, "0.1.0"])
def test_who_reads_leaves_a_ledger_of_every_schema_as_it_lies(
    folder: Folder, tmp_path: Path, version: int | str, is_held: bool, name: str
) -> None:
    """No byte of the folder changes, and no file is there afterwards that was not before."""
    as_released(folder) if isinstance(version, str) else brought_back(folder, version)
    with held(folder) if is_held else contextlib.nullcontext():
        before = contents(folder)
        READERS[name](folder, tmp_path)
        assert contents(folder) == before


@pytest.mark.parametrize("version", [one for one in BACK if one < SCHEMA_VERSION])
@pytest.mark.parametrize("name", ["status", "outbox", "heads", "digest", "explain"])
def test_an_older_ledger_reads_as_the_agent_will_have_it(
    folder: Folder, tmp_path: Path, version: int, name: str
) -> None:
    """A check before the upgrade says what it will say after it."""
    brought_back(folder, version)
    early = READERS[name](folder, tmp_path)
    State(folder.state_db, NODE, LEDGER_KEY).close()
    late = READERS[name](folder, tmp_path)
    if name == "status":
        assert early["ledger"].pop("older").startswith(f"{folder.state_db} is of an older release")
        assert late["ledger"].pop("older") == ""
    for one in (early, late):
        if name == "digest":
            one.pop("since_s")
    assert early == late


def test_a_reader_sees_what_a_running_agent_has_in_its_log_alone(folder: Folder) -> None:
    """The newest is not in the file yet."""
    for version in (SCHEMA_VERSION, 1):
        brought_back(folder, version)
        with held(folder), reading(folder, load_identity(folder.identity)) as state:
            assert state.notes.read(CONNECTED_NOTE) == "1.5"


def test_a_ledger_that_a_crash_left_open_is_read_whole(folder: Folder, tmp_path: Path) -> None:
    """Its log counts, also where it was copied without its index."""
    with held(folder):
        copy = tmp_path / "crashed/state.db"
        copy.parent.mkdir()
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{folder.state_db}{suffix}").read_bytes())
    before = {one.name: one.read_bytes() for one in copy.parent.iterdir()}
    with reading(Folder(copy.parent), load_identity(folder.identity)) as state:
        assert state.notes.read(CONNECTED_NOTE) == "1.5"
        assert len(state.ledger.entries()) == 2
    assert {one.name: one.read_bytes() for one in copy.parent.iterdir()} == before


def test_where_no_copy_can_be_written_a_folder_is_asked_for_and_a_copy_is_saved_all_the_same(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was booted to be rescued may have no /tmp; doctor and an export need none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(Limited) as refused:
        status(folder.root)
    assert refused.value.reason == "TMPDIR_UNUSABLE"
    assert "TMPDIR" in refused.value.message
    assert check_ledger(folder).result == "ok"
    assert export(folder.root, tmp_path / "copy.db") == 2


def test_a_reader_cannot_write(folder: Folder) -> None:
    """Neither to the ledger that an agent has open, nor to what stands for one that is at rest, or
    of an older release: what it wrote would be lost without a word."""
    for version in (SCHEMA_VERSION, 1):
        brought_back(folder, version)
        with (
            reading(folder, load_identity(folder.identity)) as state,
            pytest.raises(sqlite3.OperationalError, match="readonly"),
        ):
            state.notes.keep("a", "b")
        with (
            held(folder),
            reading(folder, load_identity(folder.identity)) as state,
            pytest.raises(sqlite3.OperationalError, match="readonly"),
        ):
            state.notes.keep("a", "b")


@pytest.mark.parametrize("version", [one for one in BACK if one < SCHEMA_VERSION])
def test_who_writes_beside_an_agent_brings_no_older_ledger_along(
    folder: Folder, version: int
) -> None:
    """The agent that runs may be of that release: it could not open its ledger again."""
    brought_back(folder, version)
    before = contents(folder)
    with pytest.raises(FeddpError) as refused:
        let_in(folder.root, "job-1")
    assert refused.value.reason == "STATE_OLDER"
    assert "nothing was changed" in refused.value.message
    with held(folder):
        during = contents(folder)
        with pytest.raises(FeddpError), writing(folder, load_identity(folder.identity)):
            raise AssertionError("it was opened")
        assert contents(folder) == during
    assert contents(folder).keys() == before.keys()


def test_a_copy_of_an_older_ledger_is_of_its_own_schema(folder: Folder, tmp_path: Path) -> None:
    """The release that it is from can import it; this version can, too."""
    brought_back(folder, 1)
    out = tmp_path / "copy.db"
    assert export(folder.root, out) == 2
    with contextlib.closing(sqlite3.connect(out)) as copied:
        assert copied.execute("PRAGMA user_version").fetchone() == (1,)
    assert restore(folder.root, out) == 2


def test_a_ledger_that_changes_while_it_is_copied_is_copied_again(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that starts in the middle tears no copy; one that never rests ends with a word."""
    copied, writes = reading_module._copy, [1]

    def copy_while_written(part: Path, copy: Path) -> None:
        copied(part, copy)
        if writes:
            number = writes.pop()
            with contextlib.closing(sqlite3.connect(folder.state_db)) as agent, agent:
                agent.execute("INSERT INTO meta VALUES (?, 'x')", (f"note {number}",))

    monkeypatch.setattr(reading_module, "_copy", copy_while_written)
    with reading(folder, load_identity(folder.identity)) as state:
        assert state.notes.read("note 1") == "x"
    writes = list(range(100, 200))
    with pytest.raises(Unavailable) as busy:
        snapshot(folder.state_db, tmp_path / "copy.db")
    assert busy.value.reason == "LEDGER_BUSY"
    assert not (tmp_path / "copy.db").exists()
