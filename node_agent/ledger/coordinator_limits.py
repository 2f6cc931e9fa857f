"""What the coordinator holds this node's accounts to, as it said last; kept among the notes.

A node's limit is the lower of both sides': the coordinator may have heard a lower one of which the
answer was lost here, or this ledger may be a copy from before.
"""

import math
from collections.abc import Mapping
from typing import Final

from node_agent.state.notes import Notes

_SAID: Final = "coordinator_limit:"

_HIGHEST: Final = "highest_there:"
"""Kept for ever, of a coordinator that the node has left as well: what was promised stays so."""


class CoordinatorLimits:
    """Within the caller's transaction, if there is one."""

    def __init__(self, notes: Notes, node: str) -> None:
        self._notes = notes
        self._node = node

    def of(self, account: str) -> float | None:
        """The limit of "NODE/NAME" that the coordinator said last; None if it never did."""
        said = self._notes.read(f"{_SAID}{account}")
        return float(said) if said else None

    def bound_of(self, account: str) -> float:
        """The same for what takes the lower of two limits: infinite if it never did."""
        said = self.of(account)
        return math.inf if said is None else said

    def highest_of(self, account: str) -> float:
        """The highest limit of "NODE/NAME" that a coordinator's chain ever showed; 0 if none."""
        return float(self._notes.read(f"{_HIGHEST}{account}") or 0.0)

    def keep(self, limits: Mapping[str, float], highest: Mapping[str, float] | None = None) -> None:
        """Note what the coordinator holds accounts to, which are named without the node.

        Args:
            highest: the highest limit that its chain shows, for accounts with entries there.
        """
        for account, limit in limits.items():
            self._notes.keep(f"{_SAID}{self._node}/{account}", repr(limit))
        for account, limit in (highest or {}).items():
            if limit > self.highest_of(f"{self._node}/{account}"):
                self._notes.keep(f"{_HIGHEST}{self._node}/{account}", repr(limit))

    def forget(self, account: str) -> None:
        """What the coordinator said before a raise of "NODE/NAME" says nothing about after it."""
        self._notes.keep(f"{_SAID}{account}", "")

    def forget_all(self) -> None:
        """Another coordinator has said nothing yet."""
        self._notes.forget_all(_SAID)
