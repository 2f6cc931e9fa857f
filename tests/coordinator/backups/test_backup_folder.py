"""A folder of scheduled backups keeps the newest sound ones, and never loses the last of them."""

import fcntl
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs import sealing
from coordinator.backups import backup as backup_module
from coordinator.backups.check import check
from coordinator.backups.folder import LOCK, Kept, backup_into
from coordinator.installation import Installation
from coordinator.store import backups
from protos.errors import Conflict, FeddpError, Malformed, NotFound, WrongPhase
from tests.coordinator.backups.test_backup import (
    MODEL,
    PASSWORD,
    booked,
    installation,
    opened,
    with_job,
    with_sql,
)

__all__ = ["installation"]

NOW_S = datetime(2026, 1, 31, 2, tzinfo=UTC).timestamp()
DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a password is not made hard here."""
    monkeypatch.setattr(sealing, "LOG2_N", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where backups go."""
    made = tmp_path / "backups"
    made.mkdir()
    return made


def names(folder: Path) -> list[str]:
    """What lies in it besides the lock."""
    return sorted(one.name for one in folder.iterdir() if one.name != LOCK)


def made(installation: Installation, folder: Path, day: int, keep: int = 3) -> Kept:
    """The backup of a day of February."""
    return backup_into(installation.config, folder, keep=keep, now_s=NOW_S + day * DAY_S)


def days(folder: Path) -> list[str]:
    """Of what days there are backups; an incomplete one has a mark."""
    return [
        f"{one[12:14]}{'?' if one.endswith('.incomplete.backup') else ''}" for one in names(folder)
    ]


def test_the_newest_stay_and_the_oldest_go(installation: Installation, folder: Path) -> None:
    """Each is read back first; files that are not the schedule's are left alone."""
    others = ["feddp-20250101T020000Z.backup.old", "by-hand.backup", ".feddp-x.backup.partial"]
    for name in others:
        (folder / name).write_bytes(b"not the schedule's")
    for day in range(1, 6):
        kept = made(installation, folder, day)
        assert kept.kept == min(day, 3)
        assert (kept.checked.accounts, kept.checked.problems) == (1, [])
    assert kept.removed == ("feddp-20260202T020000Z.backup",)
    assert names(folder) == sorted(
        [*others, *(f"feddp-2026020{day}T020000Z.backup" for day in (3, 4, 5))]
    )
    for name in names(folder):
        if name not in others:
            assert check(folder / name).problems == []
    database = opened(installation)
    assert database.read_now(backups.last_success_at) == kept.backup.made_at_s
    database.close()


def test_a_backup_that_is_not_sound_is_not_kept_and_removes_nothing(
    installation: Installation, folder: Path
) -> None:
    """A ledger that was changed in the database: the good ones of before stay, however often the
    schedule comes, and the time of the last success does not move."""
    database = opened(installation)
    booked(database, "x1")
    database.close()
    for day in (1, 2, 3):
        before = made(installation, folder, day)
    path = installation.folder / "coordinator.db"
    path.write_bytes(with_sql("UPDATE entries SET noise_multiplier = 40")(path.read_bytes()))
    for day in (4, 5, 6, 7):
        with pytest.raises(WrongPhase) as refused:
            made(installation, folder, day)
        assert refused.value.reason == "BACKUP_UNSOUND"
        assert "entry 1" in refused.value.message
    assert days(folder) == ["01", "02", "03"]
    database = opened(installation)
    assert database.read_now(backups.last_success_at) == before.backup.made_at_s
    database.close()


def test_an_incomplete_backup_pushes_no_complete_one_out(
    installation: Installation, folder: Path
) -> None:
    """A coordinator that has lost its models: what its tables still say is kept, and so is the last
    backup that has the models; when they are back, the incomplete ones go in their turn."""
    digest = with_job(installation)
    model = installation.folder / "blobs" / digest
    for day in (1, 2):
        complete = made(installation, folder, day, keep=2)
    model.unlink()
    for day in (3, 4, 5):
        kept = made(installation, folder, day, keep=2)
        assert kept.backup.missing == (f"models/{digest}",)
        assert not kept.backup.recorded
    # Nor does the alert on old backups take one of these for a good one.
    database = opened(installation)
    assert database.read_now(backups.last_success_at) == complete.backup.made_at_s
    database.close()
    assert days(folder) == ["01", "02", "04?", "05?"]
    assert check(folder / names(folder)[1]).missing == ()
    model.write_bytes(MODEL)
    made(installation, folder, 6, keep=2)
    assert days(folder) == ["05?", "06"]
    made(installation, folder, 7, keep=2)
    assert days(folder) == ["06", "07"]


def test_a_clock_that_was_set_back_does_not_remove_what_was_just_made(
    installation: Installation, folder: Path
) -> None:
    """By its name it would be the oldest."""
    for day in (5, 6, 7):
        made(installation, folder, day)
    kept = made(installation, folder, 1)
    assert kept.removed == ("feddp-20260205T020000Z.backup",)
    assert days(folder) == ["01", "06", "07"]


def test_what_a_killed_one_has_left_is_removed_and_one_at_a_time_writes(
    installation: Installation, folder: Path
) -> None:
    """Else each that was cut off by its deadline would fill the volume a little more."""
    left = folder / ".feddp-20260131T020000Z.incomplete.backup.partial"
    left.write_bytes(b"half of one")
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(Conflict) as refused:
        made(installation, folder, 1)
    assert refused.value.reason == "BACKUP_RUNS"
    assert left.exists(), "it may be the other's, which is still at work"
    os.close(descriptor)
    made(installation, folder, 1)
    assert days(folder) == ["01"]


def test_a_full_disk_removes_nothing(
    installation: Installation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is not made by giving up a backup for one that does not exist yet."""
    made(installation, folder, 1, keep=1)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        made(installation, folder, 2, keep=1)
    assert days(folder) == ["01"]


def test_a_sealed_one_with_keys_is_read_back_with_its_password(
    installation: Installation, folder: Path
) -> None:
    """As the schedule of an installation that may have to be made anew."""
    kept = backup_into(
        installation.config, folder, keep=1, now_s=NOW_S, keys=True, password=PASSWORD
    )
    assert kept.checked.sealed
    assert kept.checked.format["keys"] is True
    assert kept.backup.file == folder / "feddp-20260131T020000Z.backup"


def test_what_cannot_be_kept_is_refused(
    installation: Installation, folder: Path, tmp_path: Path
) -> None:
    """Before anything is written."""
    for where, keep, kind, reason in (
        (folder, 0, Malformed, "KEEP_INVALID"),
        (folder, -1, Malformed, "KEEP_INVALID"),
        (tmp_path / "none", 1, NotFound, "FOLDER_MISSING"),
    ):
        with pytest.raises(FeddpError) as refused:
            made(installation, where, 1, keep)
        assert (type(refused.value), refused.value.reason) == (kind, reason)
    assert names(folder) == []
    made(installation, folder, 1)
    with pytest.raises(Conflict) as exists:
        made(installation, folder, 1)
    assert exists.value.reason == "FILE_EXISTS"
    assert days(folder) == ["01"]


def run(*words: str | Path) -> tuple[int, str]:
    """Exit code and output of `feddp coordinator backup`."""
    done = subprocess.run(
        [sys.executable, "-m", "feddp", "coordinator", "backup", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_says_what_it_kept_and_fails_where_something_is_missing(
    installation: Installation, folder: Path
) -> None:
    """Nobody reads the output of a schedule, but a job that failed is seen."""
    of = ("--dir", installation.folder)
    code, said = run(*of, "--out-dir", folder)
    assert (code, "read back and sound: 1 accounts" in said) == (0, True), said
    digest = with_job(installation)
    (installation.folder / "blobs" / digest).unlink()
    # Two of one second would have one name.
    (other := folder / "other").mkdir()
    code, said = run(*of, "--out-dir", other, "--keep", "1", "--json")
    found = json.loads(said)
    assert (code, found["missing"], found["removed"]) == (1, [f"models/{digest}"], [])
    assert found["file"].endswith(".incomplete.backup")


def test_the_command_refuses_what_does_not_go_together(
    installation: Installation, folder: Path
) -> None:
    """Each with what to give instead; nothing is written."""
    of = ("--dir", installation.folder)
    for words, said in (
        (("--out-dir", folder, "--out", folder / "b"), "give one of --out FILE"),
        (("--out", folder / "b", "--keep", "3"), "--keep goes with --out-dir"),
        (("--out-dir", folder, "--keep", "0"), "--keep is a number from 1"),
        (("--out-dir", folder, "--keys"), "give --password-file FILE"),
    ):
        code, told = run(*of, *words)
        assert (code, said in told) == (2, True), told
    assert names(folder) == []


@pytest.mark.parametrize("is_sealed", [False, True])
def test_the_command_that_it_names_for_a_check_works_as_it_stands(
    installation: Installation, tmp_path: Path, *, is_sealed: bool
) -> None:
    """A sealed backup is opened with the password that sealed it."""
    (password := tmp_path / "password").write_bytes(PASSWORD)
    words = ("--keys", "--password-file", password) if is_sealed else ()
    code, said = run("--dir", installation.folder, "--out", tmp_path / "b", *words)
    assert code == 0, said
    named = said.partition("check it: feddp coordinator backup ")[2].splitlines()[0]
    code, said = run(*named.split())
    assert (code, "the backup is sound" in said) == (0, True), said
