"""The port on which every replica serves the bytes of models and updates, whether it leads or not.

A replica that does not lead answers from what it reads: the journal at each call, and who may call
as soon as the database signals a change, and each second in any case. What it takes whole is in the
shared store before it says so. It decides nothing, and what it cannot know it leaves to whoever
leads: it refuses as unavailable, and the node asks there. With the bytes at hand it does work for
whoever leads (`coordinator.shared_work`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import grpc
import structlog

from coordinator.blobs import BlobStore
from coordinator.identities import Identities
from coordinator.ports import DRAIN_S, bind, server_behind
from coordinator.replicas.followed_rounds import FollowedRounds
from coordinator.replicas.shared_work import WorkTaker
from coordinator.rpc.gate import Gate
from coordinator.rpc.transfer import Jobs, TransferService
from coordinator.server_certificate import ServerCertificate
from coordinator.store.signals import WHO_MAY_CALL, WORK, listen
from protos.errors import FeddpError
from protos.frames import add_transfer

log = structlog.get_logger(__name__)

LOOK_S: Final = 1.0
"""Between looks at who may call; see `coordinator.identities.BELIEVED_S`."""

TIDY_S: Final = 15.0
"""Between looks at what the folder holds for nothing, and at the certificate's files."""

COMPLAIN_S: Final = 30.0


@dataclass(slots=True)
class TransferPort:
    """One port, from the start of the process to its end.

    Args:
        port: 0 for none; then every method does nothing.
        database_url: whose signals are listened to.
        service: the one that the main port serves as well, so that calls of one upload meet.
        followed: the rounds that `service` has until this replica leads.
        work: what this replica does for the one that leads.
    """

    host: str
    port: int
    gate: Gate
    service: TransferService
    followed: FollowedRounds
    identities: Identities
    certificate: ServerCertificate
    blobs: BlobStore
    database_url: str
    work: WorkTaker
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _server: grpc.aio.Server | None = None
    _following: list[asyncio.Task[None]] = field(default_factory=list)
    _nowhere_else: set[str] = field(default_factory=set)
    _complained_at_s: float = field(default=float("-inf"))

    async def open(self) -> None:
        """Listen, and follow whoever leads.

        Raises:
            Malformed: PORT_IN_USE.
        """
        if not self.port or self._server is not None:
            return
        # Its host may be new, and then is not in the certificate yet.
        await asyncio.to_thread(self.certificate.refresh)
        server = server_behind(self.gate)
        add_transfer(self.service, server)
        bind(server, self.host, self.port, self.certificate.mutual())
        await server.start()
        self._server = server
        if self.service.rounds is self.followed:
            self.service.taken = self.work.check
            told = {WHO_MAY_CALL: self._changed, WORK: self.work.told}
            # Apart: to look after files may take long, and who may call is not to wait for it.
            self._following = [
                asyncio.create_task(listen(self.database_url, told)),
                asyncio.create_task(self._forever(self._follow, LOOK_S, self._changed)),
                asyncio.create_task(self._forever(self._tidy, TIDY_S, asyncio.Event())),
                asyncio.create_task(self._forever(self.work.take, LOOK_S, self.work.told)),
            ]
        log.info("transfer_served", port=self.port)

    def leads(self, rounds: Jobs) -> None:
        """This replica leads: from now on it answers from what it decides itself."""
        self.service.rounds, self.service.taken = rounds, None

    async def close(self) -> None:
        """End what is served, after a while for calls under way."""
        await self.stop_following()
        if self._server is not None:
            await self._server.stop(DRAIN_S)

    async def stop_following(self) -> None:
        """Nobody else leads any more: what the folder holds is needed from now on."""
        for one in self._following:
            one.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        self._following = []

    async def _follow(self) -> None:
        self._changed.clear()  # before it is read: what changes meanwhile is read once more
        await self.identities.follow()

    async def _forever(
        self, work: Callable[[], Awaitable[None]], every_s: float, sooner: asyncio.Event
    ) -> None:
        while True:
            try:
                await work()
            except FeddpError as error:
                self._complain(error.reason)
            except Exception:
                log.exception("follower_failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await sooner.wait()

    async def _tidy(self) -> None:
        """Files of the certificate first: whoever does not lead shows it, too."""
        await self.followed.catch_up()
        await _to_the_end(self._tidy_now, self.followed.awaited_attempts())
        needed = self.followed.models() | self._nowhere_else
        for digest in await asyncio.to_thread(self.blobs.models_beside, needed):
            if not await asyncio.to_thread(self.blobs.drop_copy, digest):
                self._nowhere_else.add(digest)  # from before there was a shared store

    def _tidy_now(self, attempts: frozenset[str]) -> None:
        self.certificate.refresh()
        self.blobs.keep_attempts(attempts)

    def _complain(self, reason: str) -> None:
        """Say it once in a while: it is tried again every second."""
        if time.monotonic() - self._complained_at_s >= COMPLAIN_S:
            self._complained_at_s = time.monotonic()
            log.warning(
                "leader_not_followed", reason=reason, do="nodes move their bytes at the leader"
            )


async def _to_the_end(work: Callable[..., None], *args: object) -> None:
    """In a thread; whoever is cancelled still waits for its end."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise
