"""How far this node had followed coordinators that it left, kept in its notes.

A node that comes back to a coordinator is told what it has signed there last. What it knew of that
chain was put aside when it came to another; without it, coming back would look like a ledger that
went back in time, and a ledger that did go back could not be told from coming back.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from node_agent.state.notes import Notes

ANY_ENTRY: Final = 2**63 - 1
"""More than any chain has."""

_LEFT: Final = "heads_left"
"""{coordinator's raw key in hexadecimal: {account: seq}}, as JSON; "" for one whose key this node
had not learned yet."""

_HERE: Final = "heads_here"
"""{account: seq} of earlier stays with the present coordinator, as JSON."""


class FormerHeads:
    """Within the caller's transaction, if there is one."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def here(self, account: str) -> int:
        """The last entry of "NODE/NAME" that this node knew at the present coordinator before it
        left it for another; 0 for none."""
        return int(self._read(_HERE).get(account, 0))

    def keep(self, coordinator_key: bytes, heads: Mapping[str, int]) -> None:
        """The node leaves a coordinator's chains at these entries, by account.

        Args:
            coordinator_key: raw; empty if the node has not learned it.
        """
        left = self._read(_LEFT)
        key = coordinator_key.hex()
        left[key] = _higher(left.get(key, {}), heads)
        self._notes.keep(_LEFT, json.dumps(left))

    def arrive(self, coordinator_key: bytes) -> None:
        """This is the coordinator from now on; what was known of it, if it was known, counts."""
        left = self._read(_LEFT)
        # One whose key was not learned may be this one.
        known = _higher(left.get(coordinator_key.hex(), {}), left.get("", {}))
        self._notes.keep(_HERE, json.dumps(known))

    def _read(self, key: str) -> dict[str, Any]:
        text = self._notes.read(key)
        return dict(json.loads(text)) if text else {}


def _higher(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {*one, *other}}
