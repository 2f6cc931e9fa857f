"""A node whose old certificate is shown after the new one is in use is shut out altogether.

Somebody else holds its key: a thief, a copy of its folder, a machine that was rolled back. Which
of the two is the hospital's, the coordinator cannot tell, so neither goes on until a person has
looked.
"""

import asyncio
import time
from typing import Final

import structlog
from sqlalchemy import Connection

from certs.peer import Peer
from coordinator.identities import Identities, quarantined
from coordinator.sessions import Sessions
from coordinator.store import joins
from coordinator.store.database import Database

__all__ = ["GRACE_S", "Quarantine", "quarantined"]

log = structlog.get_logger(__name__)

GRACE_S: Final = 60.0
"""After the newer certificate came into use: a call that was on its way then is nobody's crime.
It is refused all the same."""


class Quarantine:
    """Shuts nodes out."""

    def __init__(self, database: Database, identities: Identities, sessions: Sessions) -> None:
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
