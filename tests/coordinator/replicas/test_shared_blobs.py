"""What replicas share of models and updates, in a real S3-compatible store."""

import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from benchmarks.s3_server import S3Server, s3_server
from coordinator.blobs import BlobStore
from coordinator.replicas.shared_blobs import SharedBlobs
from protos.content import digest_of
from protos.errors import Malformed, NotFound, Unavailable

DATA = os.urandom(1000)
LARGE = os.urandom(20 << 20)


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of the test's own, with credentials in the environment that may do everything."""
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    return s3.new_bucket()


@pytest.fixture
def replicas(bucket: str, s3: S3Server, tmp_path: Path) -> Iterator[list[BlobStore]]:
    """Two replicas' stores: a folder each, one bucket."""
    stores = [
        BlobStore(tmp_path / name, SharedBlobs(bucket, s3.endpoint)) for name in ("one", "two")
    ]
    yield stores
    for store in stores:
        store.close()


def upload(store: BlobStore, owner: str, data: bytes) -> str:
    """A whole upload in one call."""
    digest = digest_of(data)
    appending = store.begin(owner, digest, store.received(owner, digest)[0])
    try:
        appending.write(data[appending.end :])
        appending.keep()
    finally:
        appending.close()
    store.finish(owner, digest)
    return digest


@pytest.mark.parametrize("data", [DATA, LARGE], ids=["small", "in-parts"])
def test_what_one_replica_has_acknowledged_another_one_has(
    replicas: list[BlobStore], data: bytes
) -> None:
    """Models and updates, however they came: uploaded, in a message, or made by the replica."""
    one, two = replicas
    model, update = upload(one, "user.ada", data), upload(one, "attempt-1", data)
    one.keep_update("attempt-2", digest_of(DATA), DATA)
    with one.scratch("job.1") as made:
        made.write_bytes(data[::-1])
        adopted = one.adopt_model(made)
    assert two.received("attempt-1", update) == (len(data), True), "its bytes are not sent again"
    assert two.update("attempt-1", update).read_bytes() == data
    assert two.update("attempt-2", digest_of(DATA)).read_bytes() == DATA
    assert two.model(model).read_bytes() == data
    assert not two.has_model(adopted), "what nobody asked for is not fetched"
    two.at_hand([adopted])
    assert two.has_model(adopted)
    assert two.model(adopted).read_bytes() == data[::-1]


def test_a_model_that_no_replica_has_is_missing(replicas: list[BlobStore]) -> None:
    """As in a folder alone."""
    one, _ = replicas
    with pytest.raises(NotFound) as missing:
        one.model(digest_of(b"never"))
    assert missing.value.reason == "BLOB_MISSING"
    with pytest.raises(NotFound):
        one.update("attempt-1", digest_of(b"never"))
    one.at_hand([digest_of(b"never"), "no digest"])
    assert one.received("attempt-1", digest_of(b"never")) == (0, False)


def test_updates_that_are_spent_leave_the_store(
    replicas: list[BlobStore], s3: S3Server, bucket: str
) -> None:
    """One that is folded alone, those of an ended attempt together; another attempt's stay."""
    one, two = replicas
    folded, kept = upload(one, "attempt-1", DATA), upload(one, "attempt-11", DATA)
    one.keep_update("attempt-2", digest_of(b"a"), b"a")
    model = upload(one, "user.ada", DATA)
    one.drop_update("attempt-1", folded)
    two.drop_attempt("attempt-2")
    two.drop_attempt("attempt-3")
    for store in replicas:
        store.close()
    assert s3.names(bucket) == sorted([model, f"updates/attempt-11/{kept}"])


def test_a_damaged_copy_is_refused(
    replicas: list[BlobStore], s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """What the store gives back is checked against its name, and never kept."""
    one, two = replicas
    digest = upload(one, "user.ada", DATA)
    other = tmp_path / "other"
    other.write_bytes(DATA[:-1] + b"!")
    shared = SharedBlobs(bucket, s3.endpoint)
    shared.put(digest, other)
    with pytest.raises(Malformed) as refused:
        two.model(digest)
    assert refused.value.reason == "DIGEST_MISMATCH"
    assert not two.has_model(digest)
    assert not list((tmp_path / "two").glob(".*"))
    shared.close()


def test_an_upload_counts_only_once_the_store_has_it(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store refuses, the upload stands whole and its sender tries again."""
    for name, value in s3.reader.items():
        monkeypatch.setenv(name, value)
    refused = BlobStore(tmp_path / "one", SharedBlobs(bucket, s3.endpoint))
    digest = digest_of(DATA)
    with pytest.raises(Unavailable) as error:
        upload(refused, "attempt-1", DATA)
    assert error.value.reason == "STORE_UNREACHABLE"
    assert "credentials" in error.value.message
    assert refused.received("attempt-1", digest) == (len(DATA), False)
    with pytest.raises(Unavailable):
        refused.keep_update("attempt-2", digest, DATA)
    with pytest.raises(NotFound):
        refused.update("attempt-2", digest)
    refused.close()
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    mended = BlobStore(tmp_path / "one", SharedBlobs(bucket, s3.endpoint))
    assert mended.received("attempt-1", digest) == (len(DATA), False)
    upload(mended, "attempt-1", DATA)
    assert mended.received("attempt-1", digest) == (len(DATA), True)
    mended.close()
    assert s3.names(bucket) == [f"updates/attempt-1/{digest}"]


def test_check_tells_what_is_wrong_with_a_store(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sound; without the right to write; nobody there. No address or key is repeated."""
    SharedBlobs(bucket, s3.endpoint).check()
    assert s3.names(bucket) == []
    for name, value in s3.reader.items():
        monkeypatch.setenv(name, value)
    # A line of the log would stand in the middle of what `check --json` prints.
    with capture_logs() as told, pytest.raises(Unavailable, match="refuses these credentials"):
        SharedBlobs(bucket, s3.endpoint).check()
    assert told == []
    with pytest.raises(Unavailable, match=r"storage\.blob_endpoint") as gone:
        SharedBlobs(bucket, "http://127.0.0.1:9").check()
    assert "127.0.0.1" not in gone.value.message
    assert "GenericError" not in gone.value.message


def test_check_tells_that_there_are_no_credentials(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library then asks for a machine's role, which is nobody's thought."""
    for name in s3.credentials:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unavailable, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        SharedBlobs(bucket, s3.endpoint).check()


class Answers(BaseHTTPRequestHandler):
    """A store by what it answers."""

    def _answer(self, status: int, said: bytes = b"") -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = said.replace(b"KEY", b"".join(re.findall(rb"<Key>.*</Key>", asked)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class NoBucket(Answers):
    """As Amazon does for a bucket that nobody has made; SeaweedFS would make it."""

    def do_PUT(self) -> None:
        """Of a file."""
        self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")


class NoList(Answers):
    """To credentials that may do everything but list."""

    def do_PUT(self) -> None:
        """Of a file."""
        self._answer(200)

    def do_GET(self) -> None:
        """Of a file, or of the names of files."""
        if "list-type" in self.path:
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        else:
            self._answer(200, b"feddp")

    def do_POST(self) -> None:
        """Of files to be removed."""
        gone = f"<DeleteResult>{self._removed}</DeleteResult>"
        self._answer(200, gone.encode())

    _removed = "<Deleted>KEY</Deleted>"


class NoDelete(NoList):
    """To credentials that may read and write alone."""

    _removed = "<Error>KEY<Code>AccessDenied</Code><Message>no</Message></Error>"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (NoBucket, "no bucket as s3://nowhere says"),
        (NoDelete, "refuses these credentials"),
        (NoList, r"refuses these credentials.*\(read, write, list and delete\)"),
    ],
)
def test_check_tells_of_a_missing_bucket_and_of_a_missing_right(
    answers: type[Answers], words: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bucket is not a missing file; a right that is missing is not found by a node first."""
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with pytest.raises(Unavailable, match=words):
                SharedBlobs("s3://nowhere", f"http://127.0.0.1:{server.server_port}").check()
        finally:
            server.shutdown()


def test_replicas_that_check_at_once_do_not_disturb_each_other(s3: S3Server, bucket: str) -> None:
    """Each with a file of its own: pods of a release start together."""
    stores = [SharedBlobs(bucket, s3.endpoint) for _ in range(8)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for _ in range(5):
            list(pool.map(lambda one: one.check(), stores))
    assert s3.names(bucket) == []


def test_a_start_tells_that_the_store_does_not_let_it_write(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the log, with what to do; a store that is sound is not spoken of."""
    with capture_logs() as sound:
        store = SharedBlobs(bucket, s3.endpoint)
        store.look()
        store.close()
    assert sound == []
    for name, value in s3.reader.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as told:
        store = SharedBlobs(bucket, s3.endpoint)
        store.look()
        store.close()
    [line] = told
    assert (line["event"], line["log_level"]) == ("store_unusable_at_start", "error")
    assert "refuses these credentials" in line["detail"]


def test_whether_the_store_can_be_used_is_known_also_when_it_is_back(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first fault until it answers again, which is tried where nobody else does."""
    sound = SharedBlobs(bucket, s3.endpoint)
    sound.put_bytes("a", b"1")
    assert sound.away is None
    for name, value in s3.reader.items():
        monkeypatch.setenv(name, value)
    barred = SharedBlobs(bucket, s3.endpoint)
    with pytest.raises(Unavailable):
        barred.put_bytes("a", b"1")
    first = barred.away
    assert first is not None
    assert "refuses these credentials" in first.sentence
    with pytest.raises(Unavailable):
        barred.put_bytes("a", b"1")
    assert barred.away is not None
    assert barred.away.since_s == first.since_s
    assert barred.size("a") == 1
    assert barred.away is not None, "it can be read, which is not enough"
    sound.away = first
    sound.try_again()
    sound.close()  # which waits for it
    assert sound.away is None


def test_a_store_that_is_full_says_more_than_one_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its status is repeated, of what it was sent nothing."""
    with s3_server(volumes=7) as full:
        for name, value in full.credentials.items():
            monkeypatch.setenv(name, value)
        stores = [SharedBlobs(full.new_bucket(), full.endpoint) for _ in range(5)]
        with pytest.raises(Unavailable, match="answers 500") as refused:
            _ = [store.check() for store in stores]
    assert refused.value.reason == "STORE_UNREACHABLE"
    assert "feddp-" not in refused.value.message


def test_a_replica_that_does_not_lead_keeps_what_nodes_may_ask_for_and_no_more(
    replicas: list[BlobStore], tmp_path: Path
) -> None:
    """Its folder: not an update, which the leader reads from the store; not the beginning of one
    whose attempt is over; no model that only another job once began with. The store keeps all."""
    one, two = replicas
    whole = upload(one, "attempt-1", DATA)
    for owner in ("attempt-2", "attempt-3", "user.ada"):
        appending = one.begin(owner, digest_of(LARGE), 0)
        appending.write(LARGE[:10])
        appending.keep()
        appending.close()
    used, spent = upload(one, "user.bob", DATA), upload(one, "user.bob", DATA[::-1])
    one.keep_attempts({"attempt-2"})
    assert one.received("attempt-2", digest_of(LARGE)) == (10, False)
    assert one.received("attempt-3", digest_of(LARGE)) == (0, False)
    assert one.received("user.ada", digest_of(LARGE)) == (10, False)
    assert not list((tmp_path / "one/updates").iterdir())
    assert two.update("attempt-1", whole).read_bytes() == DATA
    assert one.models_beside({used}) == [spent]
    assert one.drop_copy(spent)
    assert (one.has_model(used), one.has_model(spent)) == (True, False)
    assert one.model_bytes(spent) == len(DATA)
    assert not one.has_model(spent), "its size is asked for, not its bytes"
    assert one.model(spent).read_bytes() == DATA[::-1]


def test_a_model_that_the_store_does_not_have_is_not_dropped(
    replicas: list[BlobStore], tmp_path: Path
) -> None:
    """From before the installation had a shared store, say: the folder's copy is the only one."""
    one, _ = replicas
    digest = upload(BlobStore(tmp_path / "one"), "user.ada", DATA)
    assert one.models_beside(()) == [digest]
    assert not one.drop_copy(digest)
    assert one.model(digest).read_bytes() == DATA
