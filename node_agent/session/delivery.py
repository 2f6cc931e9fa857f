"""Takes a finished attempt's update to the coordinator, and keeps what became of it."""

import asyncio
import errno
from collections.abc import Callable
from typing import Final

import structlog

from node_agent.connection.transfer import Transfers
from node_agent.policy.admission import Admission
from node_agent.session import commands as c
from node_agent.session import events as e
from node_agent.session.attempts import Attempt
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.kept_attempts import AttemptRow, Fate
from node_agent.state.spool import Spool
from node_agent.state.state import State
from protos.errors import FeddpError

log = structlog.get_logger(__name__)

READ_AGAIN_S: Final = 30.0
"""Before a spooled update that could not be read is read again."""

_CLOSED: Final = frozenset({"ATTEMPT_CLOSED", "ATTEMPT_UNKNOWN", "UPDATE_INVALID"})
"""Refusals of a coordinator that has booked the attempt, or never will. After any other, bytes that
are not those of the update say, it waits and has booked nothing: one that is taken for done would
be missed in its chain, which is a dispute."""


class Delivery:
    """Each update is on its way once at a time.

    Args:
        dispatch: takes the events that answer `UploadAndSubmit`.
        find: an attempt that the coordinator has not closed.
    """

    def __init__(
        self,
        transfers: Transfers,
        state: State,
        ledger: LedgerThread,
        admission: Admission,
        spool: Spool,
        *,
        dispatch: Callable[[e.Event], None],
        find: Callable[[str], Attempt | None],
    ) -> None:
        self._transfers = transfers
        self._state = state
        self._ledger = ledger
        self._admission = admission
        self._spool = spool
        self._dispatch = dispatch
        self._find = find
        self._handing_in: set[str] = set()
        self._fates: dict[str, Fate] = {}

    def begins(self, attempt_id: str) -> bool:
        """Whether an update is to be handed in now; False while it is on its way."""
        if attempt_id in self._handing_in:
            return False
        self._handing_in.add(attempt_id)
        return True

    async def hand_in(self, command: c.UploadAndSubmit) -> None:
        """Upload and submit an update for which `begins` was true."""
        attempt_id = command.attempt_id
        attempt = self._find(attempt_id)
        try:
            # It may be of while the agent was away, or of since the last look at the files.
            # Two looks at files: here, as the ledger's thread would cost more than they do.
            if attempt is not None and self._admission.is_withdrawn(attempt.order):
                await self.withdraw(attempt_id, command.digest)
            await self._taken(command)
        except FileNotFoundError:
            # After a restart only the row tells that it was the policy that removed it.
            row = await self._ledger.run(self._state.attempts.find, attempt_id)
            if row is not None and row.reason == "UPDATE_WITHDRAWN":
                log.info("update_withdrawn", attempt_id=attempt_id)
            else:
                log.error("update_vanished", attempt_id=attempt_id)
                self._fates[attempt_id] = "UPDATE_VANISHED"
            self._dispatch(e.UpdateVanished(attempt_id))
        except FeddpError as error:
            log.error(
                "update_rejected", attempt_id=attempt_id, reason=error.reason, detail=error.message
            )
            self._fates[attempt_id] = "UPDATE_REJECTED"
            is_closed = error.reason in _CLOSED
            self._dispatch((e.UpdateRejected if is_closed else e.UpdateVanished)(attempt_id))
        else:
            log.info("update_submitted", attempt_id=attempt_id)
            self._fates[attempt_id] = "UPDATE_ACKNOWLEDGED"
            self._dispatch(e.UpdateAcknowledged(attempt_id))
        finally:
            self._handing_in.discard(attempt_id)

    async def _taken(self, command: c.UploadAndSubmit) -> None:
        """Hand in; a disk that does not give the update is asked again until the coordinator closes
        the attempt, and the agent's other work goes on meanwhile.

        Raises:
            FileNotFoundError: the update is gone.
            FeddpError: the coordinator will never take it.
        """
        attempt_id = command.attempt_id
        while True:
            try:
                await self._transfers.hand_in(
                    attempt_id, command.digest, command.signature, command.accepted
                )
            except FileNotFoundError:
                raise
            except OSError as error:
                log.error(
                    "update_not_read",
                    attempt_id=attempt_id,
                    error=errno.errorcode.get(error.errno or 0, "OSError"),
                    do="look at the disk under spool/ (`dmesg`) and at the file's owner; the agent "
                    f"tries again every {READ_AGAIN_S:.0f} s until the round is over",
                )
                await asyncio.sleep(READ_AGAIN_S)
            else:
                return

    async def withdraw(self, attempt_id: str, digest: str) -> None:
        """Remove an update whose data set was withdrawn before it left."""
        self._fates[attempt_id] = "UPDATE_WITHDRAWN"
        await self._ledger.run(self._state.note_withdrawn, attempt_id)
        await self._ledger.run(self._spool.drop_update, digest)

    async def close(self, attempt_id: str, outcome: e.Outcome) -> None:
        """Book what the coordinator booked, with what became of the update, which may go now."""
        row = await self._ledger.soon(self._close_now, attempt_id, outcome)
        if row is None:
            log.warning("closed_attempt_unknown", attempt_id=attempt_id)
        elif row.state == "opened" and outcome == "void":
            log.error("void_of_opened_attempt", attempt_id=attempt_id)

    def _close_now(self, attempt_id: str, outcome: e.Outcome) -> AttemptRow | None:
        fate = self._fates.pop(attempt_id, None)
        row = self._state.close_attempt(attempt_id, outcome, fate)
        digest = row.update_digest if row is not None else ""
        if digest and not self._state.attempts.others_have(digest, attempt_id):
            self._spool.drop_update(digest)
        return row
