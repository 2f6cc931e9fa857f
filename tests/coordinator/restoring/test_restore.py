"""A backup becomes a coordinator again, whole and in an empty place, or nothing is changed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from certs import sealing
from certs.spiffe import SpiffeId
from coordinator.backups.backup import backup
from coordinator.backups.extract import Places
from coordinator.blobs import BlobStore
from coordinator.checking.check import check
from coordinator.installation import init
from coordinator.keyring import ledger_public_key
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.restoring import marker
from coordinator.rounds.live import job_from_json, plan_of, replay
from coordinator.rounds.phases import AttemptState
from coordinator.server import serve
from coordinator.store import (
    epochs,
    jobs,
    joins,
    leases,
    ledger,
    pauses,
    people,
    shared_work,
    users,
)
from coordinator.store.shared_work import Checked
from privacy.verification import verify
from protos.content import digest_of
from protos.errors import Conflict, FeddpError, Malformed, NotFound, Unauthenticated, WrongPhase
from tests.coordinator.backups.test_backup import rewritten, with_sql
from tests.coordinator.restoring.samples import (
    MODEL,
    PASSWORD,
    UPDATE,
    Source,
    opened,
    restored,
    rows,
    source,
)
from tests.coordinator.store_conformance.samples import ACCOUNT, NODE, PUBLIC

SPIFFE_CAROL = SpiffeId("test.example", "user", "carol")

CHANGED = frozenset(
    {"epochs", "pauses", "journal", "jobs", "leases", "tokens", "invitations", "certificates"}
    | {"averages", "checked_updates"}
)
"""Tables that a restore itself writes to; every other one comes back row by row."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a password is not made hard here."""
    monkeypatch.setattr(sealing, "LOG2_N", 4)


@pytest.fixture
def made(tmp_path: Path) -> Source:
    """An installation on SQLite."""
    return source(tmp_path / "c")


def url_of(folder: Path) -> str:
    """The restored SQLite database."""
    return f"sqlite:///{folder / 'coordinator.db'}"


def names(folder: Path) -> list[str]:
    """What lies there, folders' contents included."""
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*"))


def is_same(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> bool:
    """Whether every table has the rows that it had, but for what a restore changes."""
    assert before["entries"], "there is something to compare"
    return all(before[name] == after[name] for name in before.keys() - CHANGED)


def test_everything_comes_back_and_the_ledger_verifies(made: Source, tmp_path: Path) -> None:
    """Files byte for byte, rows to the last bit, the keys, and a profile to look with."""
    before, folder = rows(made.url), tmp_path / "d"
    done = restored(made.backup(tmp_path / "b"), folder)
    assert is_same(before, rows(url_of(folder)))
    assert (folder / "blobs" / digest_of(MODEL)).read_bytes() == MODEL
    assert (folder / "blobs/updates" / f"a.{digest_of(UPDATE)}").read_bytes() == UPDATE
    for one in ("coordinator.yaml", "pki/ledger.key", "pki/root.key", "pki/server.crt"):
        assert (folder / one).read_bytes() == (made.made.folder / one).read_bytes()
    assert not [
        one for one in names(folder) if "partial" in one or one.startswith((".", "restore"))
    ]
    secret = [one for one in names(folder) if one.endswith((".key", "key.pem"))]
    assert {(folder / one).stat().st_mode & 0o077 for one in secret} == {0}
    with opened(url_of(folder)) as database:
        account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
        chain = database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    assert verify(chain, {ACCOUNT: account.verifying_filter}, {NODE: PUBLIC}).ok
    assert (done.checked.entries, done.blobs, done.keys, done.epoch) == (3, 2, True, 2)
    assert [one for one in check(folder / "coordinator.yaml") if one.level == "error"] == []


def test_work_for_rounds_that_were_cut_off_is_offered_to_nobody(
    made: Source, tmp_path: Path
) -> None:
    """Their jobs have ended: what replicas had found and averaged for them is dropped."""
    found = Checked("a", digest_of(UPDATE), "j", len(UPDATE))
    with opened(made.url) as database:
        database.write_now(lambda inside: shared_work.offer(inside, "j", "0" * 64))
        database.write_now(lambda inside: shared_work.note_checked(inside, found))
    before = rows(made.url)
    restored(made.backup(tmp_path / "b"), tmp_path / "d")
    after = rows(url_of(tmp_path / "d"))
    for table in ("averages", "checked_updates"):
        assert (len(before[table]), after[table]) == (1, [])


def test_a_restored_coordinator_is_paused_at_the_next_epoch(made: Source, tmp_path: Path) -> None:
    """So that a person looks, and nothing is reserved before the nodes have told."""
    restored(made.backup(tmp_path / "b"), tmp_path / "d")
    with opened(url_of(tmp_path / "d")) as database:
        epoch = database.read_now(epochs.newest)
        pause = database.read_now(pauses.current)
        assert database.read_now(epochs.unreconciled) == {ACCOUNT}
    assert epoch is not None
    assert epoch.number == 2
    assert pause is not None
    assert pause.reason.startswith("restored from a backup of 20")
    found = {one.subject: one for one in check(tmp_path / "d/coordinator.yaml")}
    assert found["restored"].level == "warning"
    assert found["restored"].text.endswith(f": 1 accounts ({ACCOUNT})")


def test_what_was_restored_is_backed_up_and_restored_again(made: Source, tmp_path: Path) -> None:
    """Epochs count on, and the pause of the first restore is no hindrance to the second."""
    restored(made.backup(tmp_path / "b"), tmp_path / "d")
    backup(tmp_path / "d/coordinator.yaml", tmp_path / "b2", keys=True, password=PASSWORD)
    done = restored(tmp_path / "b2", tmp_path / "e")
    assert done.epoch == 3
    with opened(url_of(tmp_path / "e")) as database:
        assert [one.number for one in database.read_now(epochs.all_of)] == [2, 3]
    assert len(rows(url_of(tmp_path / "e"))["pauses"]) == 2


def test_a_job_that_ran_has_failed_and_its_open_attempts_stay_reserved(
    made: Source, tmp_path: Path
) -> None:
    """It can be resumed from the updates that it holds; the node says what became of the rest."""
    done = restored(made.backup(tmp_path / "b"), tmp_path / "d")
    assert done.changes is not None
    assert done.changes.jobs == ("j",)
    with opened(url_of(tmp_path / "d")) as database:
        record = database.read_now(lambda c: jobs.job(c, "j"))
        steps = database.read_now(lambda c: jobs.history(c, "j"))
        account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    phase, _ = replay(plan_of(job_from_json(record.resolved)), steps)
    assert (record.status, phase.status) == ("failed", "failed")  # type: ignore[union-attr]
    assert "RESTORED: the coordinator was restored from a backup of 20" in phase.message  # type: ignore[union-attr]
    states = {one.node: (one.state, one.reason) for one in phase.unfinished.attempts}  # type: ignore[union-attr]
    lost = (AttemptState.LOST, "RESTORED")
    assert states == {"a": (AttemptState.RECEIVED, ""), "b": lost, "d": lost}
    assert [one.attempt_id for one in account.balance.pending] == ["open"]


def test_tokens_invitations_and_waiting_joins_are_void(made: Source, tmp_path: Path) -> None:
    """They may have been used since; those that were redeemed stay to be read."""
    now_s = time.time()
    with opened(made.url) as database:

        def work(connection: Any) -> None:
            for number in range(3):
                people.invite(
                    *(connection, f"n{number}", "edge", f"t{number}"),
                    spiffe_id=f"spiffe://test.example/node/n{number}",
                    now_s=now_s,
                    expires_at_s=now_s + 1000,
                )
            people.redeem(connection, "t1", "k1", now_s)
            joins.wait(connection, "t1", confirming=False)
            people.redeem(connection, "t2", "k2", now_s)
            people.enrol(connection, "t2", "n2", PUBLIC, b"its chain")
            users.invite(
                *(connection, users.User("carol", frozenset({"engineer"}), "default"), "i"),
                identity=SPIFFE_CAROL,
                invited_by="operator",
                now_s=now_s,
                expires_at_s=now_s + 1000,
            )

        database.write_now(work)
    done = restored(made.backup(tmp_path / "b"), tmp_path / "d")
    assert done.changes is not None
    assert (done.changes.tokens, done.changes.invitations, done.changes.joins) == (1, 1, 1)
    with opened(url_of(tmp_path / "d")) as database:
        for secret in ("t0", "i"):
            redeem = users.redeem if secret == "i" else people.redeem
            with pytest.raises(Unauthenticated) as caught:
                database.write_now(lambda c, s=secret, r=redeem: r(c, s, "thief", time.time()))
            assert caught.value.reason == "TOKEN_EXPIRED"
        with pytest.raises(FeddpError) as refused:
            database.write_now(lambda c: people.redeem(c, "t1", "k1", time.time()))
        assert refused.value.reason == "JOIN_REJECTED"
        assert database.read_now(joins.waiting) == {}
        kept = database.write_now(lambda c: people.redeem(c, "t2", "k2", time.time()))
        assert kept.chain == b"its chain"


def test_a_process_of_the_lost_installation_can_write_nothing(made: Source, tmp_path: Path) -> None:
    """Though its lease was never taken away, and however often hands had changed since."""
    file = made.backup(tmp_path / "b")
    with opened(made.url) as database:
        for number in range(3):
            lease = database.write_now(
                lambda c, n=number: leases.take(c, "coordinator", f"p{n}", 10.0 * n)
            )
    assert lease is not None
    again = made.backup(tmp_path / "b2")
    for one, folder in ((file, tmp_path / "d"), (again, tmp_path / "e")):
        restored(one, folder)
        with opened(url_of(folder)) as database:
            new = database.write_now(lambda c: leases.take(c, "coordinator", "new", time.time()))
            assert new is not None
            if one is again:
                assert new.epoch > 1_000_000_000
            with pytest.raises(FeddpError, match="taken over"):
                database.write_now(lambda c: leases.check(c, lease))


@pytest.mark.parametrize("change", ["cut", "bit", "password"])
def test_a_damaged_backup_writes_nothing(made: Source, tmp_path: Path, change: str) -> None:
    """Not even the folder; the sentence says what is wrong."""
    file, password = made.backup(tmp_path / "b"), PASSWORD
    data = file.read_bytes()
    if change == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif change == "bit":
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        password = b"another password than it"
    with pytest.raises(Malformed) as caught:
        restored(file, tmp_path / "d", password=password)
    assert caught.value.reason in ("SEAL_BROKEN", "BACKUP_DAMAGED")
    assert not (tmp_path / "d").exists()


def test_a_backup_that_changes_after_it_was_checked_is_taken_back(
    made: Source, tmp_path: Path
) -> None:
    """What was written of it meanwhile goes again."""
    with opened(made.url) as database:
        database.write_now(lambda c: None)
    one, other = made.backup(tmp_path / "b"), made.backup(tmp_path / "b2")
    swapped: list[float] = []

    def told(_count: int, share: float) -> None:
        if share > 0.45 and not swapped:
            swapped.append(share)
        if share >= 0.44 and one.exists() and other.exists():
            os.replace(other, one)

    with pytest.raises(Malformed) as caught:
        restored(one, tmp_path / "d", progress=told)
    assert caught.value.reason == "BACKUP_CHANGED"
    assert not (tmp_path / "d").exists()


def test_keys_are_needed_and_must_be_the_same_installations(made: Source, tmp_path: Path) -> None:
    """Without them no node knows the coordinator; with another ledger key each raises a dispute."""
    bare = made.backup(tmp_path / "b", keys=False)
    with pytest.raises(NotFound) as missing:
        restored(bare, tmp_path / "d")
    assert missing.value.reason == "KEYS_MISSING"
    other = init(tmp_path / "other", "test.example")
    for folder, reason in ((other.folder, "RESTORE_OTHER_INSTALLATION"),):
        for one in ("coordinator.db", "operator", "coordinator.yaml"):
            (folder / one).rename(tmp_path / f"away-{one}")
        for file in (bare, made.backup(tmp_path / "b2")):
            with pytest.raises(Conflict) as caught:
                restored(file, folder)
            assert caught.value.reason == reason
        assert names(folder) == ["pki", *(one for one in names(folder) if one.startswith("pki/"))]
    mine = tmp_path / "mine"
    mine.mkdir()
    (made.made.folder / "pki").rename(mine / "pki")
    done = restored(bare, mine)
    assert (done.keys, done.epoch) == (False, 2)
    assert ledger_public_key(mine / "pki").hex() == done.checked.format["ledger_public_key"]


@pytest.mark.parametrize(
    "in_the_way", ["coordinator.db", "blobs/a", "blobs/updates/a", "pki/a", "something"]
)
def test_nothing_that_exists_is_written_over(made: Source, tmp_path: Path, in_the_way: str) -> None:
    """It is named, and stays as it is, alone."""
    file, folder = made.backup(tmp_path / "b"), tmp_path / "d"
    (folder / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (folder / in_the_way).write_text("here before")
    before = names(folder)
    for dry_run in (True, False):
        with pytest.raises(Conflict) as caught:
            restored(file, folder, dry_run=dry_run)
        assert caught.value.reason == "RESTORE_TARGET_NOT_EMPTY"
    assert str(folder / in_the_way.partition("/")[0]) in caught.value.message
    assert names(folder) == before
    assert (folder / in_the_way).read_text() == "here before"


def test_a_dry_run_writes_nothing_and_says_the_same(made: Source, tmp_path: Path) -> None:
    """Also not the folder."""
    done = restored(made.backup(tmp_path / "b"), tmp_path / "d", dry_run=True)
    assert (done.checked.entries, done.keys, done.changes) == (3, True, None)
    assert not (tmp_path / "d").exists()


def test_a_configuration_that_is_there_is_used_as_it_is(made: Source, tmp_path: Path) -> None:
    """For an installation whose ports or paths have changed; the backup's own is left out."""
    file, folder = made.backup(tmp_path / "b"), tmp_path / "d"
    folder.mkdir()
    text = "# mine\nserver: {port: 1443}\nstorage: {blob_dir: models, pki_dir: keys}\n"
    (folder / "coordinator.yaml").write_text(text)
    restored(file, folder)
    assert (folder / "coordinator.yaml").read_text() == text
    assert (folder / "models" / digest_of(MODEL)).read_bytes() == MODEL
    assert (folder / "keys/ledger.key").exists()


def test_tables_of_an_older_version_are_upgraded_first(made: Source, tmp_path: Path) -> None:
    """And those of a newer one refused, with nothing written."""
    from alembic import command

    from coordinator.store.upgrade import alembic_config

    with opened(made.url) as database:
        database.write_now(lambda c: command.downgrade(alembic_config(c), "0011"))
    done = restored(made.backup(tmp_path / "b"), tmp_path / "d")
    assert done.checked.entries == 3
    assert len(rows(url_of(tmp_path / "d"))["entries"]) == 3
    backup(made.made.config, tmp_path / "plain")
    newer = rewritten(
        tmp_path / "plain",
        "coordinator.db",
        with_sql("UPDATE alembic_version SET version_num = '9999'"),
    )
    (tmp_path / "e").mkdir()
    (made.made.folder / "pki").rename(tmp_path / "e/pki")
    before = names(tmp_path / "e")
    with pytest.raises(Malformed, match="newer version of feddp made its tables"):
        restored(newer, tmp_path / "e")
    assert names(tmp_path / "e") == before


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.coordinator.restoring.samples import restored

seen = 0
def told(_count, share):
    global seen
    seen += 1
    if share >= float(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "placed":
    from coordinator.restoring import marker
    marker.take_away = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    told = lambda _count, _share: None
restored(Path(sys.argv[1]), Path(sys.argv[2]), progress=told)
"""


@pytest.mark.parametrize("where", ["0.2", "0.46", "0.6", "0.79", "0.85", "1.0", "placed"])
def test_a_restore_that_is_killed_is_served_by_nobody_and_done_again(
    made: Source, tmp_path: Path, where: str
) -> None:
    """Wherever it was; and where only its mark was left, the second one finishes it."""
    before, file, folder = rows(made.url), made.backup(tmp_path / "b"), tmp_path / "d"
    killed = subprocess.run([sys.executable, "-c", KILLED, file, folder, where], check=False)
    assert killed.returncode == -signal.SIGKILL
    if where == "0.2":
        assert not folder.exists()
    else:
        assert (folder / marker.FILE).exists()
        with pytest.raises(WrongPhase, match="run `feddp coordinator restore` into it again"):
            serve(folder / "coordinator.yaml")
        storage = {"database_url": url_of(folder), "pki_dir": str(folder / "pki")}
        (tmp_path / "mounted").mkdir()
        elsewhere = tmp_path / "mounted/coordinator.yaml"
        elsewhere.write_text(yaml.safe_dump({"storage": storage}))
        with pytest.raises(WrongPhase, match="run `feddp coordinator restore` into it again"):
            serve(elsewhere)
        for one in (folder / "coordinator.yaml", elsewhere):
            assert [(f.level, f.subject) for f in check(one)] == [("error", "restore")]
        with pytest.raises(WrongPhase):
            restored(file, folder, dry_run=True)
    done = restored(file, folder)
    assert done.finished == (where == "placed")
    assert is_same(before, rows(url_of(folder)))
    assert len(rows(url_of(folder))["epochs"]) == 1
    assert not [one for one in names(folder) if "restore" in one or "partial" in one]


def test_what_somebody_put_into_half_a_restore_is_not_removed(made: Source, tmp_path: Path) -> None:
    """It is named, with a second restore as with a first."""
    file, folder = made.backup(tmp_path / "b"), tmp_path / "d"
    killed = subprocess.run([sys.executable, "-c", KILLED, file, folder, "0.85"], check=False)
    assert killed.returncode == -signal.SIGKILL
    mine = (folder / "pki/mine.key", folder / "blobs/updates/mine")
    for one in mine:
        one.write_text("the only copy")
    with pytest.raises(Conflict) as caught:
        restored(file, folder)
    assert caught.value.reason == "RESTORE_TARGET_NOT_EMPTY"
    assert [one.read_text() for one in mine] == ["the only copy"] * 2
    assert names(folder) == ["blobs", "blobs/updates", "blobs/updates/mine", "pki", "pki/mine.key"]


def test_a_full_disk_leaves_the_folder_as_it_was(made: Source, tmp_path: Path) -> None:
    """A real one, of several sizes; with room the same command works."""
    file = made.backup(tmp_path / "b")
    (tmp_path / "p").write_bytes(PASSWORD)
    disk = tmp_path / "disk"
    disk.mkdir()
    feddp = (
        f'{sys.executable} -m feddp coordinator restore {file} --dir "$DISK/d" '
        f"--password-file {tmp_path}/p --without-revocations --json"
    )
    script = "".join(
        f'mount -t tmpfs -o size={size} none "$DISK"; {feddp} 2>&1 | grep -o "disk full" | head -1;'
        ' ls -A "$DISK" | wc -l; umount "$DISK"\n'
        for size in ("16k", "200k", "400k", "700k", "760k")
    )
    script += f'mount -t tmpfs -o size=8m none "$DISK"; {feddp} >/dev/null; ls "$DISK/d"\n'
    ran = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={
            "DISK": str(disk),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(sys.path),
            "TMPDIR": str(tmp_path),
        },
    )
    said = ran.stdout.split()
    assert said[:15] == ["disk", "full", "0"] * 5
    assert set(said[15:]) == {"blobs", "coordinator.db", "coordinator.yaml", "operator", "pki"}


def test_sqlite_to_postgresql_and_back(
    made: Source, tmp_path: Path, postgresql_server: PostgreSql
) -> None:
    """The same rows on either side; entries stay append-only, and the old database is untouched."""
    url, before = postgresql_server.new_database(), rows(made.url)
    restored(made.backup(tmp_path / "b"), tmp_path / "d", database_url=url)
    assert is_same(before, rows(url))
    settings = yaml.safe_load((tmp_path / "d/coordinator.yaml").read_text())
    assert settings["storage"]["database_url"] == url
    assert not (tmp_path / "d/coordinator.db").exists()
    with opened(url) as database:
        with pytest.raises(Exception, match="ledger entries are never changed"):
            database.write_now(
                lambda c: c.exec_driver_sql("UPDATE entries SET steps = 1 WHERE seq = 1")
            )
        assert set(database.read_now(users.all_users)) == {"operator"}
        following = database.write_now(
            lambda c: c.exec_driver_sql("SELECT nextval('checkpoints_number_seq')").scalar_one()
        )
    assert following == before["checkpoints"][-1][0] + 1
    backup(tmp_path / "d/coordinator.yaml", tmp_path / "p", keys=True, password=PASSWORD)
    restored(tmp_path / "p", tmp_path / "e", database_url="sqlite:///coordinator.db")
    assert is_same(before, rows(url_of(tmp_path / "e")))
    assert [row[0] for row in rows(url_of(tmp_path / "e"))["epochs"]] == [2, 3]


def test_a_postgresql_database_with_rows_is_refused(
    made: Source, tmp_path: Path, postgresql_server: PostgreSql
) -> None:
    """Ours or somebody else's; tables of ours that are empty are not."""
    url, file = postgresql_server.new_database(), made.backup(tmp_path / "b")
    with opened(url) as database:
        database.migrate()
    restored(file, tmp_path / "d", database_url=url)
    for dry_run in (True, False):
        with pytest.raises(Conflict) as caught:
            restored(file, tmp_path / "e", database_url=url, dry_run=dry_run)
        assert caught.value.reason == "RESTORE_TARGET_NOT_EMPTY"
    assert not (tmp_path / "e").exists()
    foreign = postgresql_server.new_database()
    with opened(foreign) as database:
        database.write_now(lambda c: c.exec_driver_sql("CREATE TABLE theirs (x int)"))
    with pytest.raises(Conflict, match="table theirs"):
        restored(file, tmp_path / "e", database_url=foreign)


def test_a_killed_restore_leaves_a_postgresql_database_empty(
    made: Source, tmp_path: Path, postgresql_server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction: all rows, the epoch and the pause, or none."""
    url, file = postgresql_server.new_database(), made.backup(tmp_path / "b")
    monkeypatch.setenv("FEDDP_STORAGE__DATABASE_URL", url)
    for where in ("0.85", "1.0"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, file, tmp_path / "d", where], check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert not any(rows(url).values())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, file, tmp_path / "e", "placed"], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    done = restored(file, tmp_path / "e")
    assert done.finished
    assert len(rows(url)["epochs"]) == 1


def test_models_and_updates_go_to_the_store_that_replicas_share(
    made: Source, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the names by which a replica with an empty folder finds them."""
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    storage = {"blob_url": s3.new_bucket(), "blob_endpoint": s3.endpoint}
    (tmp_path / "d").mkdir()
    (tmp_path / "d/coordinator.yaml").write_text(yaml.safe_dump({"storage": storage}))
    restored(made.backup(tmp_path / "b"), tmp_path / "d")
    replica = BlobStore(tmp_path / "other", SharedBlobs(*storage.values()))
    assert replica.model(digest_of(MODEL)).read_bytes() == MODEL
    assert replica.update("a", digest_of(UPDATE)).read_bytes() == UPDATE
    replica.close()


def test_two_restores_into_one_folder_are_one(made: Source, tmp_path: Path) -> None:
    """The second says so, and the first goes on."""
    file, folder = made.backup(tmp_path / "b"), tmp_path / "d"
    said: list[str] = []

    def told(_count: int, share: float) -> None:
        if share > 0.6 and not said:
            with pytest.raises(Conflict) as caught:
                restored(file, folder)
            said.append(caught.value.reason)

    restored(file, folder, progress=told)
    assert said == ["RESTORE_RUNS"]
    assert (folder / "coordinator.db").exists()


@pytest.mark.parametrize("name", ["pki/../../evil", "/evil", "updates/../evil." + "0" * 64, "new"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """Whoever forged a backup that is not sealed writes nothing outside of the folder."""
    places = Places(tmp_path / "db", tmp_path / "blobs", tmp_path / "pki")
    with pytest.raises(Malformed):
        places.of(name)
    inside = places.of("pki/rollover/next.key")
    assert inside == tmp_path / "pki/rollover/next.key"
