"""Whether this node's ledger may lack something that happened here: it was put back from a copy, or
is an old one.

A void says that the data was never opened, and gives budget back. A ledger that may have forgotten
cannot say it: what it does not know then counts as spent. SQLite is used by the caller's thread,
within its transaction.
"""

import json
from collections.abc import Iterable
from typing import Final

from node_agent.notes import RESTORED_NOTE, ROLLED_BACK_NOTE, Notes

_COPY: Final = "was_a_copy"
"""Set for ever."""

_OPEN: Final = "open_at_copy"
"""Attempts that the coordinator's chain held reserved when this ledger, a copy, had read it, and
that it did not know; as JSON."""


class Memory:
    """Kept in the ledger's notes."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def become_copy(self) -> None:
        """This ledger was put back from a copy; until the coordinator's chain was read once, nobody
        knows what it lacks."""
        self._notes.keep(RESTORED_NOTE, "yes")
        self._notes.keep(_COPY, "yes")

    @property
    def was_copy(self) -> bool:
        """Whether it ever was put back from one."""
        return bool(self._notes.read(_COPY))

    @property
    def is_rolled_back(self) -> bool:
        """Whether the node has signed what this ledger lacks. Nothing is booked in it any more: a
        newer copy must hold all of it, to take its place."""
        return bool(self._notes.read(ROLLED_BACK_NOTE))

    @property
    def has_gap(self) -> bool:
        """Whether something may have come here that nobody can name yet."""
        return self.is_rolled_back or bool(self._notes.read(RESTORED_NOTE))

    def may_have_come(self, attempt_id: str) -> bool:
        """Whether an attempt that this ledger does not hold may have been worked at here."""
        return self.has_gap or attempt_id in self._open()

    def note_open(self, attempt_ids: Iterable[str]) -> None:
        """These were ordered before the coordinator's chain was read by this copy."""
        self._notes.keep(_OPEN, json.dumps(sorted({*self._open(), *attempt_ids})))

    def _open(self) -> frozenset[str]:
        text = self._notes.read(_OPEN)
        return frozenset(json.loads(text)) if text else frozenset()
