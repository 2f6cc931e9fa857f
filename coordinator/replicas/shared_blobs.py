"""Models and updates in a store that every replica reaches: S3, or one that is compatible.

A replica that takes over finds here what the one before it has acknowledged. The folder of each
replica (`storage.blob_dir`) then is what it has at hand: a copy that may be lost.
"""

import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from blake3 import blake3

from coordinator.uploads import room
from protos.content import beside_of, sync_directory
from protos.errors import FeddpError, Malformed, NotFound, Unavailable

if TYPE_CHECKING:
    from obstore.store import S3Store

log = structlog.get_logger(__name__)

PART_BYTES: Final = 8 << 20
READ_BYTES: Final = 1 << 20
"""At least so much at a time. Eight times as much costs twice the CPU: each part is new pages."""

PARTS_AT_ONCE: Final = 2
"""Of one upload: what is in memory of it at most."""

RETRY_S: Final = 3.0
TIMEOUT: Final = timedelta(seconds=8)
CONNECT_TIMEOUT: Final = timedelta(seconds=3)
TRIED_AGAIN_MAX: Final = 2
RETRY_TIMEOUT: Final = timedelta(seconds=8)
COMPLAIN_S: Final = 30.0

_PROBE: Final = "probe"
_REFUSED: Final = (
    "it refuses these credentials; check them, and what they may do in the bucket (read, write, "
    "list and delete)"
)
_KNOWN: Final = (
    (
        "169.254.169.254",
        "it has no credentials: give it AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its "
        "environment; this machine has no role that it could ask for any",
    ),
    ("status code: 403", _REFUSED),
    ("AccessDenied", _REFUSED),
    (
        "kind: Connect",
        "it does not get there: look at host, port and http or https in storage.blob_endpoint, and "
        "at what is on the way (names, firewall, network policy)",
    ),
    (
        "kind: Timeout",
        "it does not answer in time: look at storage.blob_endpoint, and at what is on the way",
    ),
)
"""What the library says, in part -> what it means. Its own words hold addresses and names."""
_STATUS: Final = re.compile(r"status code: (5\d\d)\b")


@dataclass(frozen=True, slots=True)
class Away:
    """A store that cannot be used, since a time in seconds since 1970."""

    since_s: float
    why: str

    @property
    def sentence(self) -> str:
        """For whoever waits."""
        return f"the store of models and updates cannot be used: {self.why}"


class SharedBlobs:
    """Whole files by their names. Every method may take as long as the store does: use a thread.

    Args:
        url: `s3://BUCKET/PREFIX`. Credentials and region come from the environment
            (AWS_ACCESS_KEY_ID, ...) or from the machine's role.
        endpoint: of an S3-compatible store; empty for Amazon's.

    Attributes:
        away: since when and why the store cannot be used. Only a whole `check` says that it can be
            again: one that may be read and not written is away.

    Every method but `drop` raises:
        Unavailable: STORE_UNREACHABLE.

    Raises:
        Malformed: STORE_DRIVER_MISSING, STORE_INVALID.
    """

    def __init__(self, url: str, endpoint: str = "") -> None:
        self.url = url
        self._store = _open(url, endpoint)
        self._dropping = ThreadPoolExecutor(1, "blob-drop")
        self._fetching: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._trying: Future[None] | None = None
        self.away: Away | None = None

    def put(self, name: str, path: Path) -> None:
        """Keep a whole file; once this returns, a crash of this machine does not lose it."""
        import obstore

        with path.open("rb") as file, self._said():
            large = path.stat().st_size > PART_BYTES
            obstore.put(
                self._store,
                name,
                file,
                use_multipart=large,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    def put_bytes(self, name: str, data: bytes) -> None:
        """`put` of what is in memory."""
        import obstore

        with self._said():
            obstore.put(self._store, name, data, use_multipart=False)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none of this name."""
        import obstore

        try:
            with self._said():
                return int(obstore.head(self._store, name)["size"])
        except NotFound:
            return None

    def fetch(self, name: str, digest: str, target: Path) -> None:
        """Write the file to `target`: beside it first, then renamed, whole or not at all.

        Raises:
            NotFound: BLOB_MISSING.
            Malformed: DIGEST_MISMATCH, the store's copy is damaged.
            Unavailable: also STORE_FULL, this replica's disk.
        """
        with self._lock:
            one = self._fetching.setdefault(name, threading.Lock())
        with one:
            if not target.exists():  # else another thread has just fetched it
                self._fetch(name, digest, target)
        with self._lock:
            self._fetching.pop(name, None)

    def _fetch(self, name: str, digest: str, target: Path) -> None:
        import obstore

        partial, hasher = beside_of(target), blake3()
        try:
            with room(), partial.open("wb") as file:
                with self._said():
                    parts = obstore.get(self._store, name).stream(min_chunk_size=READ_BYTES)
                for part in self._each(parts):
                    hasher.update(part)
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            if hasher.hexdigest() != digest:
                raise Malformed(
                    "DIGEST_MISMATCH",
                    f"the copy of {name} in the shared store is damaged; put it back from the "
                    "store's own versions or its backup",
                )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        sync_directory(target.parent)

    def drop(self, name: str) -> None:
        """Forget a file; soon, and what is left over costs room only."""
        self._dropping.submit(self._drop, lambda: [name])

    def drop_folder(self, name: str) -> None:
        """`drop` of every file of a folder."""
        self._dropping.submit(self._drop, lambda: self._names(name))

    def _names(self, folder: str) -> list[str]:
        import obstore

        listed = obstore.list(self._store, f"{folder}/")
        return [str(one["path"]) for batch in listed for one in batch]

    def _drop(self, names: Callable[[], list[str]]) -> None:
        import obstore

        try:
            with self._said():
                if gone := names():
                    obstore.delete(self._store, gone)
        except NotFound:
            return
        except FeddpError as error:
            log.warning("blobs_not_dropped", reason=error.reason)

    def check(self) -> None:
        """Write, read, remove and look for a small file of no meaning. Nothing is logged."""
        import obstore

        probe = f"{_PROBE}-{secrets.token_hex(4)}"  # replicas that start at once do the same
        try:
            with self._said(in_log=False):
                obstore.put(self._store, probe, b"feddp")
                found = bytes(obstore.get(self._store, probe).bytes())
                obstore.delete(self._store, probe)
                # What is left of jobs that have ended is found so; and without this right Amazon
                # says of a file that is not there that one may not read it.
                obstore.list(self._store, probe).collect()
        except NotFound:
            why = (
                f"it has no bucket as {self.url} says, or loses what it takes: make the bucket, or "
                "mend storage.blob_url"
            )
            raise self._is_away(why) from None
        if found != b"feddp":
            raise self._is_away(f"{self.url} gives back other bytes than it got")
        self.away = None

    def try_again(self) -> None:
        """`check` apart, while the store is away and nobody may need it: so that it is known when
        it is back."""
        if self.away is not None and (self._trying is None or self._trying.done()):
            self._trying = self._dropping.submit(self._try_again)

    def _try_again(self) -> None:
        with suppress(FeddpError):
            self.check()

    def look(self) -> None:
        """`check` apart, whose fault is logged and no more: a coordinator that starts while the
        store is away serves what it has at hand."""
        self._dropping.submit(self._look)

    def _look(self) -> None:
        try:
            self.check()
        except FeddpError as error:
            log.error(
                "store_unusable_at_start",
                detail=error.message,
                do="uploads and jobs wait for it; `feddp coordinator check` tries it again",
            )

    def close(self) -> None:
        """Finish what is being dropped."""
        self._dropping.shutdown()

    def _each(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """The parts as they come; a fault of the store between them is said as any other."""
        coming = iter(parts)
        while True:
            with self._said():
                part = next(coming, None)
            if part is None:
                return
            yield bytes(part)

    @contextmanager
    def _said(self, *, in_log: bool = True) -> Iterator[None]:
        """The store's faults in our words; its own may repeat what it was sent."""
        from obstore.exceptions import (
            BaseError,
            NotFoundError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        try:
            yield
        except (NotFoundError, FileNotFoundError):
            raise NotFound("BLOB_MISSING", "the shared store has no such file") from None
        except (PermissionDeniedError, UnauthenticatedError):
            why = _REFUSED
        except BaseError as error:
            why = _meaning(error)
        else:
            return
        if in_log:
            _complain(why)
        raise self._is_away(why)

    def _is_away(self, why: str) -> Unavailable:
        self.away = Away(time.time() if self.away is None else self.away.since_s, why)
        return Unavailable("STORE_UNREACHABLE", self.away.sentence, retry_after_s=RETRY_S)


def _meaning(error: Exception) -> str:
    said = str(error)
    if status := _STATUS.search(said):
        return f"it answers {status[1]}; see its own log, and how much room it has left"
    unknown = f"{type(error).__name__}; check storage.blob_url, storage.blob_endpoint, the network"
    return next((means for part, means in _KNOWN if part in said), unknown)


def _complain(why: str) -> None:
    """Say it once in a while: every node tries again every few seconds."""
    now_s = time.monotonic()
    if now_s - _complained_at_s[0] >= COMPLAIN_S:
        _complained_at_s[0] = now_s
        log.error("store_unreachable", why=why, do="what is not kept there is sent again")


_complained_at_s = [-math.inf]


def _open(url: str, endpoint: str) -> "S3Store":
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError:
        raise Malformed(
            "STORE_DRIVER_MISSING", "storage.blob_url needs the extra: pip install 'feddp[s3]'"
        ) from None
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            config={"endpoint": endpoint} if endpoint else None,
            client_options={
                "timeout": TIMEOUT,
                "connect_timeout": CONNECT_TIMEOUT,
                "allow_http": endpoint.startswith("http://"),
            },
            retry_config={"max_retries": TRIED_AGAIN_MAX, "retry_timeout": RETRY_TIMEOUT},
        )
    except (BaseError, ValueError) as error:
        raise Malformed(
            "STORE_INVALID", f"storage.blob_url cannot be used ({type(error).__name__})"
        ) from None
