"""Whether this node's ledger may lack something that happened here: it was put back from a copy, or
is an old one.

A void says that the data was never opened, and gives budget back. A ledger that may have forgotten
cannot say it: what it does not know then counts as spent. SQLite is used by the caller's thread,
within its transaction.
"""

import json
from collections.abc import Iterable
from typing import Final

from node_agent.state.notes import RESTORED_NOTE, ROLLED_BACK_NOTE, Notes
from protos.errors import WrongPhase

_OPEN: Final = "open_at_copy"
"""Attempts that the coordinator's chain held reserved when this ledger, a copy, had read it, or
with this node's signature, and that it did not know; as JSON."""


class Memory:
    """Kept in the ledger's notes."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def become_copy(self) -> None:
        """This ledger was put back from a copy; until the coordinator's chain was read once, nobody
        knows what it lacks."""
        self._notes.keep(RESTORED_NOTE, "yes")

    @property
    def is_rolled_back(self) -> bool:
        """Whether the node has signed what this ledger lacks. Nothing is booked in it any more: a
        newer copy must hold all of it, to take its place."""
        return bool(self._notes.read(ROLLED_BACK_NOTE))

    @property
    def has_gap(self) -> bool:
        """Whether something may have come here that nobody can name yet."""
        return self.is_rolled_back or bool(self._notes.read(RESTORED_NOTE))

    def require_whole(self) -> None:
        """Refuse to leave the coordinator that alone can tell what this ledger lacks.

        Raises:
            WrongPhase: LEDGER_ROLLED_BACK, LEDGER_CATCHING_UP.
        """
        if self.is_rolled_back:
            raise WrongPhase(
                "LEDGER_ROLLED_BACK",
                "this ledger lacks what the node has signed, and another coordinator would never "
                "tell what was spent: first `feddp agent ledger import` of the newest copy",
            )
        if self.has_gap:
            raise WrongPhase(
                "LEDGER_CATCHING_UP",
                "this ledger was put back from a copy and has not read yet what the node signed "
                "since, which another coordinator would never tell: first let the agent run until "
                "`feddp agent status` no longer says so",
            )

    def may_have_come(self, attempt_id: str) -> bool:
        """Whether an attempt that this ledger does not hold may have been worked at here."""
        return self.has_gap or attempt_id in self._open()

    def note_open(self, attempt_ids: Iterable[str]) -> None:
        """These may have come here before: see `may_have_come`."""
        self._notes.keep(_OPEN, json.dumps(sorted({*self._open(), *attempt_ids})))

    def _open(self) -> frozenset[str]:
        text = self._notes.read(_OPEN)
        return frozenset(json.loads(text)) if text else frozenset()
