"""A node whose old certificate is shown after the new one is in use is shut out altogether; and one
whose certificate a restored registry has lost, see `lost_certificates`.

Somebody else holds its key: a thief, a copy of its folder, a machine that was rolled back. Which
of the two is the hospital's, the coordinator cannot tell, so neither goes on until a person has
looked.
"""

import asyncio
import time
from typing import Final

import structlog
from sqlalchemy import Connection

from certs.authority import Authority
from certs.enrolment import spoken
from certs.peer import Peer
from coordinator.identities import Identities, quarantined
from coordinator.restoring.lost_certificates import Lost, lost_of, shut_out, window_of
from coordinator.sessions import Sessions
from coordinator.store import joins
from coordinator.store.database import Database

__all__ = ["GRACE_S", "Quarantine", "quarantined"]

log = structlog.get_logger(__name__)

GRACE_S: Final = 60.0
"""After the newer certificate came into use: a call that was on its way then is nobody's crime.
It is refused all the same."""


class Quarantine:
    """Shuts nodes out.

    Attributes:
        authority: what issues now.
    """

    def __init__(
        self,
        database: Database,
        identities: Identities,
        sessions: Sessions,
        authority: Authority,
    ) -> None:
        self.authority = authority
        self._asked: set[str] = set()
        self._database = database
        self._identities = identities
        self._sessions = sessions
        self._tasks: set[asyncio.Task[None]] = set()

    def seen(self, peer: Peer) -> None:
        """A superseded certificate was shown. Called on the event loop; returns at once."""
        node = peer.spiffe_id.name
        since_s = time.time() - self._identities.superseded_at(peer)
        if peer.spiffe_id.kind != "node" or since_s < GRACE_S:
            return
        if self._identities.quarantine_of(node):
            return
        task = asyncio.create_task(self._shut_out(node, self._identities.generation(peer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lost(self, pem: bytes, peer: Peer) -> None:
        """A certificate that is not registered was shown. Called on the event loop; returns at
        once.

        Args:
            pem: the certificate; TLS has checked who signed it.
        """
        node = peer.spiffe_id.name
        if peer.spiffe_id.kind != "node" or not self._identities.restored or node in self._asked:
            return
        if self._identities.quarantine_of(node):
            return
        shown = lost_of(pem, peer.spiffe_id)
        if shown.fingerprint != peer.fingerprint:
            return  # a gateway's connection: what it was shown is not here
        self._asked.add(node)
        task = asyncio.create_task(self._shut_out_lost(shown))
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._asked.discard(node))
        task.add_done_callback(self._tasks.discard)

    async def _shut_out_lost(self, shown: Lost) -> None:
        if window_of(shown, self._identities.restored) is None:
            return
        authority = self.authority
        if not await self._database.write(lambda inside: shut_out(inside, authority, shown)):
            return
        await self._identities.reload()
        node = shown.identity.name
        log.error(
            "node_quarantined",
            node=node,
            certificate=spoken(shown.fingerprint),
            do="it was issued after the backup that this coordinator was restored from: compare it "
            "with what `feddp agent status` shows at the hospital, then `feddp node release "
            f"{node}`",
        )

    async def _shut_out(self, node: str, generation: int) -> None:
        why = (
            f"its certificate of generation {generation} was shown after a newer one was in use: "
            "a copy or a restored backup of its folder runs, or a key was stolen"
        )

        def work(connection: Connection) -> bool:
            return joins.quarantine(connection, node, why)

        if not await self._database.write(work):
            return
        await self._identities.reload()
        self._sessions.cut(node)
        log.error(
            "node_quarantined",
            node=node,
            generation=generation,
            do=f"ask the hospital; then `feddp node release {node}` if only its own machine is "
            "left, or a new token and the steward's confirmation if a key may be stolen",
        )
