"""Ed25519 signatures checked by several processes at once, while their giver goes on.

One check takes 40 us of CPU with libsodium, more than all else about a ledger entry together, and
60 us with OpenSSL, whose word counts: see `privacy.quick_signatures`.
"""

import multiprocessing
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from privacy.entries import is_signed

Signed = tuple[int, bytes, bytes, bytes]
"""A place that the giver chose, a public key, what was signed, the signature."""

BATCH: Final = 2000
"""About 1 MB to hand over, for 0.1 s of work."""

WAITING_MAX: Final = 4
"""Batches a process that may wait for one; then the giver waits, and memory stays bounded."""


@dataclass(slots=True)
class SignaturePool:
    """Checks what it is given in processes of its own, which end with the `with`.

    They are started anew and not forked: the giver may have threads.
    """

    processes: int
    _executor: ProcessPoolExecutor = field(init=False)
    _batch: list[Signed] = field(default_factory=list)
    _running: "deque[Future[list[int]]]" = field(default_factory=deque)
    _wrong: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(self.processes, mp_context=spawn)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def add(self, place: int, public_key: bytes, canonical: bytes, signature: bytes) -> None:
        """Have a signature checked, soon."""
        self._batch.append((place, public_key, canonical, signature))
        if len(self._batch) >= BATCH:
            self._send()

    def wrong(self) -> frozenset[int]:
        """The places whose signature is not the key's over what was given; waits for all.

        Raises:
            BrokenProcessPool: a process was killed; nothing is known then.
        """
        self._send()
        while self._running:
            self._wrong.update(self._running.popleft().result())
        return frozenset(self._wrong)

    def _send(self) -> None:
        self._running.append(self._executor.submit(_wrong_of, self._batch))
        self._batch = []
        while len(self._running) > WAITING_MAX * self.processes:
            self._wrong.update(self._running.popleft().result())


def _wrong_of(batch: list[Signed]) -> list[int]:
    from privacy.quick_signatures import surely_signed  # not in an agent, which starts no pool

    return [place for place, *signed in batch if not (surely_signed(*signed) or is_signed(*signed))]
