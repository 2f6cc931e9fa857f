"""Blobs on disk: what counts, what is dropped, and what a restart finds."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from coordinator.blobs import BlobStore
from coordinator.uploads import PER_USER_MAX
from protos.content import INLINE_BYTES, digest_of, digest_of_file
from protos.errors import FeddpError, Malformed, NotFound, TooLate, Unavailable

DATA = os.urandom(3000)
DIGEST = digest_of(DATA)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def stage(blobs: BlobStore, owner: str, digest: str, offset: int, pieces: Sequence[bytes]) -> int:
    """One call that ends well; the durable size."""
    appending = blobs.begin(owner, digest, offset)
    try:
        for piece in pieces:
            appending.write(piece)
        return appending.keep()
    finally:
        appending.close()


def test_an_upload_goes_on_where_the_durable_bytes_end(blobs: BlobStore) -> None:
    """Two calls make one blob; a call at another offset changes nothing."""
    assert stage(blobs, "att", DIGEST, 0, [DATA[:500], DATA[500:1000]]) == 1000
    with pytest.raises(Malformed) as caught:
        blobs.begin("att", DIGEST, 2000)
    assert caught.value.reason == "OFFSET_MISMATCH"
    assert blobs.received("att", DIGEST) == (1000, False)
    assert stage(blobs, "att", DIGEST, 1000, [DATA[1000:]]) == 3000
    blobs.finish("att", DIGEST)
    assert blobs.received("att", DIGEST) == (3000, True)
    assert blobs.update("att", DIGEST).read_bytes() == DATA


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[:1000],
    lambda data: data[:1000] + bytes([data[1000] ^ 64]) + data[1001:],
]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_an_update_that_was_damaged_on_the_disk_is_not_there(
    blobs: BlobStore, tmp_path: Path, damage: Callable[[bytes], bytes], restarted: bool
) -> None:
    """It would be folded as it lies, or be tried for ever; its node, if it still has it, can send
    it again, as what is wrong goes."""
    stage(blobs, "att", DIGEST, 0, [DATA])
    blobs.finish("att", DIGEST)
    path = blobs.update("att", DIGEST)
    path.write_bytes(damage(DATA))
    again = BlobStore(tmp_path / "blobs") if restarted else blobs
    with pytest.raises(NotFound) as caught:
        again.update("att", DIGEST)
    assert caught.value.reason == "BLOB_MISSING"
    assert again.received("att", DIGEST) == (0, False)
    again.keep_update("att", DIGEST, DATA)
    assert again.update("att", DIGEST).read_bytes() == DATA


def test_a_model_is_compared_with_its_digest_once_and_after_each_change(
    blobs: BlobStore, tmp_path: Path
) -> None:
    """One byte that is another makes as good a file of tensors."""
    (tmp_path / "model").write_bytes(DATA)
    blobs.adopt_model(tmp_path / "model", DIGEST)
    blobs.check_models([DIGEST])
    path = blobs.model(DIGEST)
    path.write_bytes(DAMAGES[1](DATA))
    for one in (blobs, BlobStore(tmp_path / "blobs")):
        with pytest.raises(NotFound) as caught:
            one.check_models([DIGEST])
        assert caught.value.reason == "MODEL_DAMAGED"
    path.unlink()
    with pytest.raises(NotFound, match="damaged on the coordinator's disk or gone from it"):
        blobs.check_models([DIGEST])
    path.write_bytes(DATA)
    blobs.check_models([DIGEST])


def test_an_update_is_compared_with_its_digest_once(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it comes; a process after this one reads it once more. None is remembered for longer than
    it is there."""
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return digest_of_file(path)

    monkeypatch.setattr("coordinator.compared.digest_of_file", counted)
    stage(blobs, "att", DIGEST, 0, [DATA])
    blobs.finish("att", DIGEST)
    blobs.keep_update("small", DIGEST, DATA)
    for one in ("att", "small"):
        blobs.update(one, DIGEST)
    assert not read
    again = BlobStore(tmp_path / "blobs")
    for _ in range(2):
        path = again.update("att", DIGEST)
    assert read == [path]
    blobs.drop_update("att", DIGEST)
    blobs.drop_attempt("small")
    assert not blobs._compared._files


def test_bytes_that_were_not_kept_do_not_count(blobs: BlobStore) -> None:
    """A call that is refused leaves the upload as it found it, digest included."""
    stage(blobs, "att", DIGEST, 0, [DATA[:1000]])
    appending = blobs.begin("att", DIGEST, 1000)
    appending.write(b"nonsense")
    appending.close()
    assert blobs.received("att", DIGEST) == (1000, False)
    stage(blobs, "att", DIGEST, 1000, [DATA[1000:]])
    blobs.finish("att", DIGEST)


def test_a_restart_goes_on_at_the_bytes_on_disk(blobs: BlobStore, tmp_path: Path) -> None:
    """The digest of what is there is built again, once."""
    stage(blobs, "att", DIGEST, 0, [DATA[:1000]])
    again = BlobStore(tmp_path / "blobs")
    assert again.received("att", DIGEST) == (1000, False)
    stage(again, "att", DIGEST, 1000, [DATA[1000:]])
    again.finish("att", DIGEST)
    assert again.update("att", DIGEST).read_bytes() == DATA


def test_the_end_of_an_upload_does_not_read_the_file_again(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte is hashed while it arrives, not in one stop at its end."""

    def refuse(*_: object) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr("coordinator.uploads.hashed", refuse)
    stage(blobs, "att", DIGEST, 0, [DATA[:1000]])
    stage(blobs, "att", DIGEST, 1000, [DATA[1000:]])
    blobs.finish("att", DIGEST)


def test_an_upload_that_was_dropped_while_it_ran_is_not_called_damaged(blobs: BlobStore) -> None:
    """Its attempt was closed before its last bytes were kept; they need not be sent again."""
    appending = blobs.begin("att", DIGEST, 0)
    appending.write(DATA)
    blobs.drop_attempt("att")
    appending.keep()
    with pytest.raises(TooLate) as caught:
        blobs.finish("att", DIGEST)
    appending.close()
    assert caught.value.reason == "UPLOAD_DROPPED"


def test_bytes_with_another_digest_are_dropped(blobs: BlobStore) -> None:
    """A lying digest is refused and the honest bytes can be sent afterwards."""
    digest = digest_of(b"honest")
    stage(blobs, "att", digest, 0, [b"lies.."])
    with pytest.raises(Malformed) as caught:
        blobs.finish("att", digest)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert blobs.received("att", digest) == (0, False)
    stage(blobs, "att", digest, 0, [b"honest"])
    blobs.finish("att", digest)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_counts_nothing_and_the_upload_goes_on_when_there_is_room(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The refusal is retryable, says after how long, and the earlier bytes stay."""
    stage(blobs, "att", DIGEST, 0, [DATA[:1000]])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(Unavailable) as caught:
            stage(blobs, "att", DIGEST, 1000, [DATA[1000:]])
    assert caught.value.reason == "STORE_FULL"
    assert caught.value.retry_after_s is not None
    assert blobs.received("att", DIGEST) == (1000, False)
    stage(blobs, "att", DIGEST, 1000, [DATA[1000:]])
    blobs.finish("att", DIGEST)


def test_an_attempt_cannot_hand_in_the_bytes_of_another(blobs: BlobStore) -> None:
    """Updates are named by attempt and digest: knowing a digest gives nothing."""
    stage(blobs, "theirs", DIGEST, 0, [DATA])
    blobs.finish("theirs", DIGEST)
    assert blobs.received("mine", DIGEST) == (0, False)
    with pytest.raises(NotFound):
        blobs.update("mine", DIGEST)


def test_an_attempt_has_one_upload_at_a_time(blobs: BlobStore, tmp_path: Path) -> None:
    """Other digests would let a node fill the disk; a person may upload a few models."""
    digests = [digest_of(bytes([n])) for n in range(PER_USER_MAX + 1)]
    for owner, kept in (("att", 1), ("user.ada", PER_USER_MAX)):
        for digest in digests:
            stage(blobs, owner, digest, 0, [b"x"])
        left = {path.name for path in (tmp_path / "blobs/partial").iterdir()}
        assert left == {f"{owner}.{digest}" for digest in digests[-kept:]}
        blobs.drop_attempt(owner)


def test_an_attempt_that_ends_while_it_uploads_leaves_nothing(
    blobs: BlobStore, tmp_path: Path
) -> None:
    """The call that was under way is told so, and no file is left."""
    appending = blobs.begin("att", DIGEST, 0)
    appending.write(DATA)
    blobs.drop_attempt("att")
    appending.keep()
    appending.close()
    with pytest.raises(FeddpError) as caught:
        blobs.finish("att", DIGEST)
    assert isinstance(caught.value, (TooLate, Malformed))
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_small_update_is_kept_only_with_its_own_digest(blobs: BlobStore) -> None:
    """It needs no upload; a lie leaves nothing behind."""
    with pytest.raises(Malformed) as caught:
        blobs.keep_update("att", DIGEST, b"other")
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert blobs.received("att", DIGEST) == (0, False)
    blobs.keep_update("att", DIGEST, DATA)
    assert blobs.update("att", DIGEST).read_bytes() == DATA


def test_a_small_model_is_read_once_for_all_orders(blobs: BlobStore, tmp_path: Path) -> None:
    """One copy in memory serves every node; a larger model is left to be fetched."""
    (tmp_path / "small").write_bytes(DATA)
    (tmp_path / "large").write_bytes(bytes(INLINE_BYTES + 1))
    small, large = (blobs.adopt_model(tmp_path / name) for name in ("small", "large"))
    assert blobs.inline_model(small) == DATA
    assert blobs.inline_model(small) is blobs.inline_model(small)
    assert blobs.inline_model(large) == b""


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_only_digests_become_file_names(blobs: BlobStore, digest: str) -> None:
    """A path that a caller makes up is refused before the file system sees it."""
    with pytest.raises(Malformed):
        blobs.begin("att", digest, 0)
    assert not blobs.has_model(digest)


def test_the_room_of_a_folded_update_is_given_back_when_the_next_upload_begins(
    blobs: BlobStore, tmp_path: Path
) -> None:
    """Or when the job ends, or at a start; the update itself is gone at once."""
    large = os.urandom(INLINE_BYTES + 1)
    digest = digest_of(large)

    def spent() -> int:
        return sum(len(large) == path.stat().st_size for path in (tmp_path / "blobs").rglob("*"))

    def drop_one() -> None:
        stage(blobs, "old", digest, 0, [large])
        blobs.finish("old", digest)
        blobs.drop_update("old", digest)
        assert blobs.received("old", digest) == (0, False)
        assert spent() == 1

    drop_one()
    stage(blobs, "new", DIGEST, 0, [DATA[:10]])
    assert spent() == 0
    drop_one()
    blobs.free_spent()
    assert spent() == 0
    drop_one()
    BlobStore(tmp_path / "blobs")
    assert spent() == 0


def test_the_same_small_update_may_come_twice_at_once(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that restarts hands in again while the first call still runs: both are kept, and
    neither is told that the disk is full or finds half a file."""
    both, sync = threading.Barrier(2), os.fsync

    def sync_together(descriptor: int) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(5)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_together)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(blobs.keep_update, "att", DIGEST, DATA) for _ in range(2)]
        for call in calls:
            call.result()
    assert blobs.update("att", DIGEST).read_bytes() == DATA


def test_a_full_disk_gets_back_what_nobody_needs(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are kept for later uploads are no reason to wait for a person."""
    large = os.urandom(INLINE_BYTES + 1)
    spent: list[Path] = []

    def begin_and_spend() -> None:
        """An update is folded while another one arrives."""
        stage(blobs, "old", digest_of(large), 0, [large])
        blobs.finish("old", digest_of(large))
        blobs.drop_update("old", digest_of(large))
        spent[:] = (tmp for tmp in blobs._partial.glob("spent.*"))
        assert spent

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    def fold() -> None:
        with blobs.scratch("job.1") as scratch:
            scratch.write_bytes(b"half a model")
            full()

    stage(blobs, "att", DIGEST, 0, [DATA[:500]])
    begin_and_spend()
    monkeypatch.setattr("coordinator.uploads.write_all", full)
    with pytest.raises(Unavailable) as caught:
        stage(blobs, "att", DIGEST, 500, [DATA[500:]])
    monkeypatch.undo()
    assert caught.value.reason == "STORE_FULL"
    assert not any(one.exists() for one in spent)
    assert stage(blobs, "att", DIGEST, 500, [DATA[500:]]) == len(DATA)
    begin_and_spend()
    with pytest.raises(OSError, match="no space"):
        fold()
    assert not list(blobs._partial.glob("scratch.*"))
    assert not any(one.exists() for one in spent)


def test_two_folds_of_one_round_do_not_write_one_file(blobs: BlobStore) -> None:
    """One that was paused as it led, or whose job failed and was resumed, may still be at it."""
    with blobs.scratch("job.1") as one, blobs.scratch("job.1") as other:
        one.write_bytes(b"half")
        other.write_bytes(b"whole")
        assert blobs.model(blobs.adopt_model(other)).read_bytes() == b"whole"
        assert one.read_bytes() == b"half"
