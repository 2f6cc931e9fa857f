"""A backup holds what the tables name at one moment, and says so when it does not."""

import fcntl
import io
import json
import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from certs import sealing
from certs.sealing import CHUNK_BYTES, Opener
from coordinator.backups import backup as backup_module
from coordinator.backups.backup import backup, read_password
from coordinator.backups.check import check
from coordinator.installation import Installation, init
from coordinator.keyring import ledger_key
from coordinator.rounds import events
from coordinator.rounds.live import job_to_json
from coordinator.store import backups, booking, checkpoints, jobs
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord, ModelRecord
from coordinator.store.schema import nodes
from privacy.ledger import sign
from protos.content import digest_of
from protos.errors import Conflict, FeddpError, Malformed, NotFound
from tests.coordinator.planning import HASH, SPEC, job
from tests.coordinator.playbook import offers
from tests.coordinator.store_conformance.samples import KEY, PUBLIC, statement, with_account

MODEL = b"a model of a few bytes"
PASSWORD = b"a password of these tests"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a password is not made hard here."""
    monkeypatch.setattr(sealing, "LOG2_N", 4)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """One with an account that has paid, and a job whose model lies in its folder."""
    made = init(tmp_path / "c", "test.example")
    database = opened(made)
    with_account(database)
    database.write_now(lambda c: c.execute(nodes.update().values(ledger_public_key=PUBLIC)))
    database.close()
    return made


def opened(made: Installation) -> Database:
    """Its database, as the coordinator has it open meanwhile."""
    return Database(f"sqlite:///{made.folder / 'coordinator.db'}")


def booked(database: Database, attempt_id: str) -> None:
    """A release that the node has signed."""
    for kind in ("reserve", "post"):
        one = statement(attempt_id, kind=kind)
        database.write_now(lambda c, one=one: booking.book(c, one, sign(KEY, one)))


def with_job(made: Installation, taken: tuple[events.Event, ...] = ()) -> str:
    """A running job whose initial model, and round model, lie in the folder; the model's digest."""
    digest = digest_of(MODEL)
    blobs = made.folder / "blobs"
    (blobs / "updates").mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(MODEL)
    record = JobRecord(
        *("j", "default", "heart", "operator", "r", SPEC, job_to_json(job()), HASH, "running", 1.0)
    )
    database = opened(made)
    database.write_now(lambda c: jobs.add(c, record))
    steps = (events.JobSubmitted(digest), *taken)
    database.write_now(lambda c: jobs.append_all(c, "j", 0, 1.0, steps))
    model = ModelRecord("j", "round", 1, digest, len(MODEL), 1.0, "default")
    database.write_now(lambda c: jobs.add_model(c, model))
    database.close()
    return digest


UPDATE = b"an update that its round still needs"
ORDERED = (
    events.NodesSurveyed(offers("a", "b", "d"), ()),
    events.BudgetsReserved(tuple(events.Grant(one.node, one) for one in offers("a", "b", "d")), ()),
    events.UpdateReceived("a", digest_of(UPDATE), len(UPDATE), b""),
)


def members(path: Path) -> dict[str, bytes]:
    """What lies in a backup that is not sealed."""
    with tarfile.open(path) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]


def test_a_backup_holds_the_tables_the_configuration_and_what_jobs_need(
    installation: Installation, tmp_path: Path
) -> None:
    """Models that the tables name, and updates that a round still needs; nothing else, no key."""
    digest = with_job(installation, ORDERED)
    blobs = installation.folder / "blobs"
    kept = f"a.{digest_of(UPDATE)}"
    (blobs / "updates" / kept).write_bytes(UPDATE)
    (blobs / "updates" / f"old.{digest}").write_bytes(MODEL)
    (blobs / ("0" * 64)).write_bytes(b"named by nobody")
    made = backup(installation.config, tmp_path / "b")
    found = members(tmp_path / "b")
    names = ["format.json", f"updates/{kept}", f"models/{digest}"]
    assert list(found) == [*names, "coordinator.yaml", "coordinator.db", "manifest.json"]
    assert (found[names[1]], found[names[2]]) == (UPDATE, MODEL)
    assert found["coordinator.yaml"] == installation.config.read_bytes()
    assert (made.missing, made.sealed, made.keys, made.files) == ((), False, False, 5)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert check(tmp_path / "b").problems == []
    assert sorted(one.name for one in (blobs / ".backup").iterdir()) == ["lock"]


def test_the_time_of_a_backup_is_kept_in_the_database(
    installation: Installation, tmp_path: Path
) -> None:
    """Where the coordinator's gauge reads it; one that failed changes nothing."""
    database = opened(installation)
    assert database.read_now(backups.last_success_at) == 0.0
    made = backup(installation.config, tmp_path / "b")
    assert made.recorded
    assert database.read_now(backups.last_success_at) == made.made_at_s
    with pytest.raises(Conflict):
        backup(installation.config, tmp_path / "b")
    assert database.read_now(backups.last_success_at) == made.made_at_s
    database.close()


def test_a_backup_is_of_one_moment_though_the_ledger_goes_on(
    installation: Installation, tmp_path: Path
) -> None:
    """What is booked while it is written is not in it, and nobody waited."""
    database = opened(installation)
    booked(database, "x1")
    told: list[int] = []

    def goes_on(_count: int, _share: float) -> None:
        if not told:
            booked(database, "x2")
        told.append(1)

    backup(installation.config, tmp_path / "b", progress=goes_on)
    found = check(tmp_path / "b")
    assert (found.problems, found.accounts, found.entries) == ([], 1, 2)
    backup(installation.config, tmp_path / "after")
    assert check(tmp_path / "after").entries == 4
    database.close()


def test_keys_are_never_written_unsealed(installation: Installation, tmp_path: Path) -> None:
    """Nor a configuration that tells the database's password."""
    with pytest.raises(Malformed) as caught:
        backup(installation.config, tmp_path / "b", keys=True)
    assert caught.value.reason == "PASSWORD_REQUIRED"
    text = "storage: {database_url: 'postgresql+psycopg://u:secret@127.0.0.1:1/n'}\n"
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(Malformed) as caught:
        backup(tmp_path / "c.yaml", tmp_path / "b")
    assert (caught.value.reason, "secret" in caught.value.message) == ("PASSWORD_REQUIRED", False)
    assert not (tmp_path / "b").exists()


def test_a_sealed_backup_holds_every_key_and_shows_none(
    installation: Installation, tmp_path: Path
) -> None:
    """All files of the folder of keys come back byte for byte with the password."""
    out = tmp_path / "b"
    made = backup(installation.config, out, keys=True, password=PASSWORD)
    assert (made.sealed, made.keys) == (True, True)
    pki = installation.folder / "pki"
    wanted = {f"pki/{one.relative_to(pki)}": one.read_bytes() for one in pki.rglob("*.*")}
    assert {"pki/ledger.key", "pki/root.key"} <= wanted.keys()
    data = out.read_bytes()
    assert not [name for name in wanted if name.encode() in data]
    with out.open("rb") as file, tarfile.open(fileobj=Opener(file, PASSWORD), mode="r|") as archive:  # type: ignore[call-overload]
        found = {one.name: archive.extractfile(one).read() for one in archive}
    assert {name: found.get(name) for name in wanted} == wanted
    assert (check(out, PASSWORD).problems, check(out, PASSWORD).sealed) == ([], True)
    with pytest.raises(Malformed, match="password"):
        check(out, PASSWORD + b"x")
    with pytest.raises(NotFound, match="--password-file"):
        check(out)


@pytest.mark.parametrize("there", ["none", "another"])
def test_no_backup_with_keys_is_made_without_the_ledger_key_of_its_tables(
    installation: Installation, tmp_path: Path, there: str
) -> None:
    """It would push the last one that has it out of a folder; one of tables alone promises none."""
    pki = installation.folder / "pki"
    database = opened(installation)
    database.write_now(lambda c: checkpoints.renew(c, ledger_key(pki), 400.0))
    database.close()
    (pki / "ledger.key").unlink()
    if there == "another":
        ledger_key(pki)
    with pytest.raises(FeddpError) as caught:
        backup(installation.config, tmp_path / "b", keys=True, password=PASSWORD)
    wanted = {"none": "LEDGER_KEY_MISSING", "another": "LEDGER_KEY_CHANGED"}[there]
    assert (caught.value.reason, (tmp_path / "b").exists()) == (wanted, False)
    backup(installation.config, tmp_path / "b", password=PASSWORD)


@pytest.mark.parametrize("password", ["", "short\n", "x" * 5000])
def test_a_password_that_anybody_guesses_is_refused(tmp_path: Path, password: str) -> None:
    """Also an empty file, and one that is no password at all."""
    (tmp_path / "p").write_text(password)
    with pytest.raises(Malformed, match="openssl rand"):
        read_password(tmp_path / "p")


def test_a_passwords_line_may_end(tmp_path: Path) -> None:
    """As editors and `echo` leave it."""
    (tmp_path / "p").write_bytes(PASSWORD + b"\r\n")
    assert read_password(tmp_path / "p") == PASSWORD


def test_nothing_is_written_over(installation: Installation, tmp_path: Path) -> None:
    """Neither a file nor a link to one."""
    (tmp_path / "b").write_text("another backup")
    (tmp_path / "l").symlink_to("nowhere")
    for name in ("b", "l"):
        with pytest.raises(Conflict) as caught:
            backup(installation.config, tmp_path / name)
        assert caught.value.reason == "FILE_EXISTS"
    assert (tmp_path / "b").read_text() == "another backup"


def test_two_backups_at_once_are_one(installation: Installation, tmp_path: Path) -> None:
    """The second says so; what a killed one has left is no hindrance, and is removed."""
    scratch = installation.folder / "blobs" / ".backup"
    (scratch / "now-left").mkdir(parents=True)
    descriptor = os.open(scratch / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(Conflict) as caught:
        backup(installation.config, tmp_path / "b")
    assert caught.value.reason == "BACKUP_RUNS"
    os.close(descriptor)
    (tmp_path / ".b.partial").write_bytes(b"of one that was killed" * 100_000)
    backup(installation.config, tmp_path / "b")
    assert check(tmp_path / "b").problems == []
    assert not (scratch / "now-left").exists()
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["b"]


def test_a_full_disk_leaves_nothing_behind(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails on the way, no half of a file looks like a backup."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        backup(installation.config, tmp_path / "b")
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == []


def test_what_lies_nowhere_or_is_damaged_is_told_and_is_no_hindrance(
    installation: Installation, tmp_path: Path
) -> None:
    """The rest of the installation is worth keeping; and who reads the backup is told, too."""
    digest = with_job(installation, ORDERED)
    (installation.folder / "blobs" / digest).write_bytes(MODEL + b"!")
    made = backup(installation.config, tmp_path / "b")
    assert not made.recorded
    wanted = (f"updates/a.{digest_of(UPDATE)}", f"models/{digest}")
    assert made.missing == wanted
    found = check(tmp_path / "b")
    assert (found.problems, found.missing) == ([], wanted)


def test_a_backup_that_lacks_updates_alone_counts_as_made(
    installation: Installation, tmp_path: Path
) -> None:
    """A job that folds them faster than they are read costs a round again and no backup."""
    with_job(installation, ORDERED)
    made = backup(installation.config, tmp_path / "b")
    assert (made.missing, made.recorded) == ((f"updates/a.{digest_of(UPDATE)}",), True)


def test_an_update_that_is_folded_meanwhile_makes_it_begin_anew(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tables are then those of the later moment, which do not name it."""
    with_job(installation, ORDERED)
    update = installation.folder / "blobs" / "updates" / f"a.{digest_of(UPDATE)}"
    update.write_bytes(UPDATE)
    taken, really = [], backup_module.snapshot

    def snapshot(url: str, copy: Path) -> None:
        really(url, copy)
        if not taken:  # the job ends between the snapshot and the copy
            database = opened(installation)
            cancelled = [events.CancelRequested("operator")]
            database.write_now(lambda c: jobs.append_all(c, "j", 4, 2.0, cancelled))
            database.write_now(lambda c: jobs.set_status(c, "j", "cancelled"))
            database.close()
            update.unlink()
        taken.append(copy)

    monkeypatch.setattr(backup_module, "snapshot", snapshot)
    made = backup(installation.config, tmp_path / "b")
    assert (len(taken), made.missing) == (2, ())
    assert check(tmp_path / "b").problems == []


def rewritten(path: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """The backup with another member of that name, and a manifest that knows of it."""
    found = members(path)
    found[name] = change(found[name])
    manifest = json.loads(found["manifest.json"])
    manifest["files"][name] = {"bytes": len(found[name]), "digest": digest_of(found[name])}
    found["manifest.json"] = json.dumps(manifest).encode()
    out = path.with_name("rewritten")
    with tarfile.open(out, "w") as archive:
        for member, data in found.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out


def with_sql(statements: str) -> Callable[[bytes], bytes]:
    """The same database after some statements, past every trigger of ours."""

    def change(data: bytes) -> bytes:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            with closing(sqlite3.connect(file.name)) as database:
                database.executescript(
                    "PRAGMA journal_mode=DELETE; PRAGMA foreign_keys=OFF;"
                    "DROP TRIGGER entries_are_kept; DROP TRIGGER entries_stay;" + statements
                )
            return Path(file.name).read_bytes()

    return change


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ("UPDATE entries SET noise_multiplier = 40 WHERE seq = 1", "entry 1"),
        ("DELETE FROM entries WHERE seq = 4", "newest entry is not the head"),
        ("UPDATE accounts SET epsilon_limit = 0.01, epsilon_limit_highest = 0.01", "entry 1"),
        ("UPDATE models SET digest = '" + "0" * 64 + "'", "is named by a job and is not in it"),
        ("UPDATE nodes SET ledger_public_key = x'" + "00" * 32 + "'", "not node a's"),
        ("DROP TABLE entries", "cannot be read"),
    ],
)
def test_a_ledger_that_was_changed_in_a_backup_is_found(
    installation: Installation, tmp_path: Path, statements: str, said: str
) -> None:
    """Though every digest of the file fits: chains, signatures and heads are looked at."""
    with_job(installation)
    database = opened(installation)
    for name in ("x1", "x2"):
        booked(database, name)
    database.close()
    backup(installation.config, tmp_path / "b")
    assert check(tmp_path / "b").problems == []
    changed = rewritten(tmp_path / "b", "coordinator.db", with_sql(statements))
    found = check(changed)
    assert found.problems
    assert said in " ".join(found.problems)


@pytest.mark.parametrize("sealed", [False, True])
def test_every_way_to_damage_a_backup_is_found(
    installation: Installation, tmp_path: Path, sealed: bool
) -> None:
    """A byte changed anywhere, or its end cut off: never a backup that looks sound."""
    with_job(installation)
    password = PASSWORD if sealed else None
    backup(installation.config, tmp_path / "b", password=password)
    data = (tmp_path / "b").read_bytes()
    broken = tmp_path / "broken"
    if sealed:
        places = [*range(0, len(data), len(data) // 50), len(data) - 1]
    else:  # between the files there is padding, and behind the last one, which means nothing
        with tarfile.open(tmp_path / "b") as archive:
            ends = [(one.offset_data, one.offset_data + one.size - 2) for one in archive]
        places = [place for both in ends for place in both]
    for place in places:
        broken.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert damage_of(broken, password), place
        broken.write_bytes(data[:place])
        assert damage_of(broken, password), place


def damage_of(path: Path, password: bytes | None) -> list[str]:
    """What is said of it, by whichever way."""
    try:
        found = check(path, password)
    except FeddpError as error:
        return [error.message]
    return found.problems


@pytest.mark.parametrize("data", [b"", b"no tar", b"\0" * 20_000, CHUNK_BYTES * b"x"])
def test_what_is_no_backup_is_called_so(tmp_path: Path, data: bytes) -> None:
    """Exit code 2 rather than a list of problems."""
    (tmp_path / "b").write_bytes(data)
    with pytest.raises(Malformed, match="is no backup of a coordinator"):
        check(tmp_path / "b")
