"""Uploads under way: what counts, after what, and what is forgotten."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator import uploads as uploads_module
from coordinator.uploads import PER_USER_MAX, SPENT_MAX, Uploads
from protos.content import digest_of
from protos.errors import Malformed, TooLate, Unavailable

BYTES = bytes(range(256)) * 40
DIGEST = digest_of(BYTES)
OTHERS = [digest_of(bytes([number])) for number in range(6)]


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """Over an empty folder."""
    return Uploads(tmp_path)


def put(uploads: Uploads, owner: str, digest: str, data: bytes, offset: int = 0) -> int:
    """One call that ends well; the bytes that count after it."""
    appending = uploads.begin(owner, digest, offset)
    try:
        appending.write(data)
        return appending.keep()
    finally:
        appending.close()


def names(folder: Path) -> set[str]:
    """Files of a folder, by their owner."""
    return {path.name.rpartition(".")[0] for path in folder.iterdir()}


def test_a_finished_upload_holds_every_byte_of_its_calls(uploads: Uploads, tmp_path: Path) -> None:
    """Also of those before a restart, whose bytes are read and hashed once more."""
    assert put(uploads, "a1", DIGEST, BYTES[:1000]) == 1000
    again = Uploads(tmp_path)
    assert again.durable("a1", DIGEST) == 1000
    assert put(again, "a1", DIGEST, BYTES[1000:], 1000) == len(BYTES)
    kept: list[bytes] = []
    target = tmp_path / "target"
    again.finish("a1", DIGEST, target, lambda path: kept.append(path.read_bytes()))
    assert target.read_bytes() == BYTES
    assert kept == [BYTES]
    assert again.durable("a1", DIGEST) == 0


def test_what_an_earlier_process_has_left_is_synced_before_it_counts(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have died before it synced them: bytes that a node is told it need not send again
    must not go with the power."""
    put(uploads, "a1", DIGEST, BYTES[:1000])
    synced: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(uploads_module.os, "fsync", noted)
    assert Uploads(tmp_path).durable("a1", DIGEST) == 1000
    assert synced == [str(tmp_path / f"a1.{DIGEST}")]


def test_an_upload_is_its_owners_alone_and_is_left_open_by_no_call(tmp_path: Path) -> None:
    """Each range of a model is a call, and a process has about a thousand descriptors."""
    for number in range(3):
        again = Uploads(tmp_path)
        put(again, "a1", DIGEST, bytes([number]), number)
    assert (tmp_path / f"a1.{DIGEST}").stat().st_mode & 0o777 == 0o600
    folder = Path("/proc/self/fd")
    left = [os.readlink(one) for one in folder.iterdir() if one.is_symlink()]
    assert [one for one in left if one.startswith(str(tmp_path))] == []


def test_bytes_of_a_call_that_was_not_kept_are_cut_off(uploads: Uploads, tmp_path: Path) -> None:
    """What counts ends where the last call that was kept ended, on the disk too."""
    put(uploads, "a1", DIGEST, BYTES[:100])
    appending = uploads.begin("a1", DIGEST, 100)
    appending.write(b"not to be kept")
    appending.close()
    assert (tmp_path / f"a1.{DIGEST}").read_bytes() == BYTES[:100]
    assert uploads.durable("a1", DIGEST) == 100
    with pytest.raises(Malformed) as caught:
        uploads.begin("a1", DIGEST, 114)
    assert caught.value.reason == "OFFSET_MISMATCH"


def test_what_does_not_have_its_digest_is_dropped_and_may_begin_again(
    uploads: Uploads, tmp_path: Path
) -> None:
    """Nothing of it gets the name, here or in a store that replicas share."""
    put(uploads, "a1", DIGEST, b"other bytes")
    kept: list[Path] = []
    with pytest.raises(Malformed) as caught:
        uploads.finish("a1", DIGEST, tmp_path / "target", kept.append)
    assert (caught.value.reason, kept) == ("DIGEST_MISMATCH", [])
    assert list(tmp_path.iterdir()) == []
    assert put(uploads, "a1", DIGEST, BYTES) == len(BYTES)


def test_one_that_was_dropped_while_it_ran_is_not_finished(
    uploads: Uploads, tmp_path: Path
) -> None:
    """The attempt was closed meanwhile."""
    put(uploads, "a1", DIGEST, BYTES)
    (tmp_path / f"a1.{DIGEST}").unlink()
    with pytest.raises(TooLate) as caught:
        uploads.finish("a1", DIGEST, tmp_path / "target", lambda _: None)
    assert caught.value.reason == "UPLOAD_DROPPED"


def test_an_attempt_has_one_update_and_a_person_a_few_models(
    uploads: Uploads, tmp_path: Path
) -> None:
    """Whoever announces digest after digest fills no disk; the one that waited longest goes."""
    for digest in OTHERS[:2]:
        put(uploads, "a1", digest, b"x")
    assert [path.name for path in tmp_path.glob("a1.*")] == [f"a1.{OTHERS[1]}"]
    assert uploads.durable("a1", OTHERS[0]) == 0
    for digest in OTHERS[:PER_USER_MAX]:
        put(uploads, "user.eve", digest, b"x")
    put(uploads, "user.eve", OTHERS[0], b"y", 1)  # gone on with: no longer the oldest
    put(uploads, "user.eve", OTHERS[PER_USER_MAX], b"x")
    left = {path.name.rpartition(".")[2] for path in tmp_path.glob("user.eve.*")}
    assert left == {OTHERS[0], *OTHERS[2 : PER_USER_MAX + 1]}
    assert uploads.durable("a1", OTHERS[1]) == 1


def test_those_of_a_process_before_this_one_go_first(uploads: Uploads, tmp_path: Path) -> None:
    """They waited longest."""
    put(uploads, "user.eve", OTHERS[5], b"x")
    again = Uploads(tmp_path)
    for digest in OTHERS[:PER_USER_MAX]:
        put(again, "user.eve", digest, b"x")
    left = {path.name.rpartition(".")[2] for path in tmp_path.glob("user.eve.*")}
    assert left == set(OTHERS[:PER_USER_MAX])


@pytest.mark.parametrize(
    "drop",
    [
        lambda uploads: uploads.drop("a1"),
        lambda uploads: uploads.drop_one("a1", DIGEST),
        lambda uploads: uploads.drop_longer("a1", DIGEST, len(BYTES) - 1),
    ],
)
def test_what_is_dropped_is_forgotten_and_nothing_else_is(
    uploads: Uploads, tmp_path: Path, drop: Callable[[Uploads], None]
) -> None:
    """On the disk and in memory; "a10" is no upload of "a1"."""
    for owner in ("a1", "a10"):
        put(uploads, owner, DIGEST, BYTES)
    uploads.drop_longer("a1", DIGEST, len(BYTES))  # it is not longer
    assert names(tmp_path) == {"a1", "a10"}
    drop(uploads)
    assert names(tmp_path) == {"a10"}
    assert (uploads.durable("a1", DIGEST), uploads.durable("a10", DIGEST)) == (0, len(BYTES))
    uploads.finish("a10", DIGEST, tmp_path / "target", lambda _: None)  # reads nothing again
    assert (tmp_path / "target").read_bytes() == BYTES


def test_files_that_nobody_needs_are_few_and_go_when_an_upload_begins(
    uploads: Uploads, tmp_path: Path
) -> None:
    """One for each that begins, all after a restart."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for number in range(SPENT_MAX + 3):
        (outside / str(number)).write_bytes(b"x")
        uploads.spend(outside / str(number))
    assert len(list(tmp_path.glob("spent.*"))) == SPENT_MAX
    put(uploads, "a1", DIGEST, BYTES[:10])
    assert len(list(tmp_path.glob("spent.*"))) == SPENT_MAX - 1
    put(uploads, "a1", DIGEST, BYTES[10:], 10)
    assert len(list(tmp_path.glob("spent.*"))) == SPENT_MAX - 1
    Uploads(tmp_path)
    assert names(tmp_path) == {"a1", ""}  # "outside" has no dot


def test_a_full_disk_is_waited_for_and_gives_back_what_nobody_needs(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the call counts, and the next try finds the room."""
    (tmp_path / "old").write_bytes(b"x")
    put(uploads, "a1", DIGEST, BYTES[:10])
    uploads.spend(tmp_path / "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write_all", "fsync"):
        with monkeypatch.context() as patched:
            module = uploads_module if name == "write_all" else uploads_module.os
            patched.setattr(module, name, full)
            with pytest.raises(Unavailable) as caught:
                put(uploads, "a1", DIGEST, BYTES[10:20], 10)
        assert caught.value.reason == "STORE_FULL"
        assert uploads.durable("a1", DIGEST) == 10
    assert list(tmp_path.glob("spent.*")) == []
    assert put(uploads, "a1", DIGEST, BYTES[10:], 10) == len(BYTES)


@pytest.mark.parametrize("digest", ["", "../x", DIGEST.upper(), DIGEST[:-1]])
def test_only_a_digest_names_a_file(uploads: Uploads, digest: str) -> None:
    """No path leads out of the folder."""
    with pytest.raises(Malformed) as caught:
        uploads.begin("a1", digest, 0)
    assert caught.value.reason == "DIGEST_INVALID"
