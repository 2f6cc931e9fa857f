"""How an agent and a worker on another machine speak: files in a folder that both machines see.

No port is opened and nothing is sent anywhere, so that there is nobody to authenticate but the
file system: the folder is its owner's alone, and a worker takes no folder of anybody else. Request
and answer N are files of their own that appear whole, by a rename. Each side renews a file of its
own every second, which tells the other that it lives, without comparing clocks; on a network
file system the same write makes this machine look at the folder anew. The folder's going ends the
worker.
"""

import contextlib
import json
import os
import queue
import secrets
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any, Final

BEAT_S: Final = 1.0
"""On a network file system also how long the other side's message may stay unseen."""

AGENT_SILENT_S: Final = 60.0
"""A worker whose agent is silent for so long ends: its allocation must not outlive the agent."""

WORKER_SILENT_S: Final = 120.0
"""Longer, as it is worse to give up a worker that has opened the data."""

POLL_S: Final = 0.1
MESSAGE_BYTES_MAX: Final = 16 << 20
"""A data set of 10,000 columns, each with a name of 256 letters, fits."""

_AGENT, _WORKER, _TAKEN = "agent-beat", "worker-beat", "taken"


class Refused(Exception):
    """A folder that is not a mailbox of this account, or that another worker has."""


class Mailbox:
    """One worker's folder, from either side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def make(cls, beside: Path) -> "Mailbox":
        """A new one, which nobody can guess the name of, in `beside`."""
        beside.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = beside / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        box = cls(folder)
        box.beat(of_agent=True)
        return box

    def take(self) -> None:
        """Be the one worker of this folder, for ever.

        A scheduler that starts a job anew must not train an attempt a second time.

        Raises:
            Refused.
        """
        try:
            found = self.folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise Refused("the mailbox is not this account's folder")
            if found.st_mode & 0o077:
                raise Refused("others may read or write the mailbox")
            os.close(os.open(self.folder / _TAKEN, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileNotFoundError:
            raise Refused("the mailbox is gone") from None
        except FileExistsError:
            raise Refused("another worker took the mailbox") from None

    def is_taken(self) -> bool:
        """Whether a worker is up."""
        return (self.folder / _TAKEN).exists()

    def exists(self) -> bool:
        """Whether the agent still wants the worker."""
        return self.folder.is_dir()

    def beat(self, *, of_agent: bool) -> None:
        """Say that this side lives; OSError when the folder is gone."""
        self._write(_AGENT if of_agent else _WORKER, secrets.token_hex(8).encode())

    def last_beat(self, *, of_agent: bool) -> bytes:
        """Differs from an earlier one when that side beat since; empty before its first."""
        return self._read(_AGENT if of_agent else _WORKER) or b""

    def post(self, kind: str, number: int, message: dict[str, Any]) -> None:
        """Put a "request" or an "answer"."""
        self._write(f"{kind}-{number}", json.dumps(message).encode())

    def find(self, kind: str, number: int) -> bytes | None:
        """A request or answer, once it is there."""
        return self._read(f"{kind}-{number}")

    def remove(self) -> None:
        """Take the folder away, at once for who looks by its name."""
        away = self.folder.with_name(f".{self.folder.name}")
        with contextlib.suppress(OSError):
            self.folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        beside = self.folder / f".{name}-{secrets.token_hex(4)}"
        try:
            with beside.open("xb") as file:
                file.write(data)
            beside.rename(self.folder / name)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def _read(self, name: str) -> bytes | None:
        try:
            with (self.folder / name).open("rb") as file:
                return file.read(MESSAGE_BYTES_MAX)
        except OSError:
            return None


class Silence:
    """How long the other side has not beaten, by this machine's own steady clock."""

    def __init__(self, now_s: float) -> None:
        self._seen = b""
        self._since_s = now_s

    def length_s(self, beat: bytes, now_s: float) -> float:
        """Seconds since `beat` was another one."""
        if beat != self._seen:
            self._seen, self._since_s = beat, now_s
        return now_s - self._since_s


def requests_of(box: Mailbox, silent_s: float) -> "queue.SimpleQueue[tuple[int, bytes]]":
    """The worker's side: numbered requests, found by a thread that ends the process, even in
    mid-training, when the folder goes or the agent has been silent for `silent_s`.

    Ending at once is safe: an update appears by rename, whole or not at all.
    """
    found: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()

    def look() -> None:
        number, beaten_s = 1, 0.0
        silence = Silence(time.monotonic())
        while box.exists():
            now_s = time.monotonic()
            if now_s - beaten_s >= BEAT_S:
                beaten_s = now_s
                with contextlib.suppress(OSError):
                    box.beat(of_agent=False)
                if silence.length_s(box.last_beat(of_agent=True), now_s) > silent_s:
                    break
            data = box.find("request", number)
            if data is None:
                time.sleep(POLL_S)
                continue
            found.put((number, data))
            number += 1
        os._exit(0)

    threading.Thread(target=look, name="mailbox", daemon=True).start()
    return found
