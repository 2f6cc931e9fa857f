"""Bugs that the histories must find: each puts a wrong function in the place of a right one.

Nothing of this is in the product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from node_agent.ledger import epochs_seen
from node_agent.ledger.disputes import Disputes
from node_agent.ledger.gaps import Memory
from node_agent.policy.admission import Admission, Decision, Refused
from node_agent.policy.orders import Order
from privacy.canonical import COUNT_MAX
from privacy.epochs import Epoch
from tests.histories import claims


@dataclass(frozen=True, slots=True)
class Planted:
    """A bug, and where it shows.

    Attributes:
        seeds: of `mode`; each is wrong with the bug, and none is without it.
        told: words of what is then wrong.
    """

    plant: Callable[[pytest.MonkeyPatch], None]
    mode: str
    seeds: tuple[int, ...]
    told: str


def part_at_the_new_line_alone(patch: pytest.MonkeyPatch) -> None:
    """Two histories are taken to have in common what the new one found at its restorations: what
    an older backup had cut off before is taken to stand."""

    def bad(line: Sequence[Epoch], told: Sequence[Epoch]) -> int:
        known = {one.hash for one in line}
        new = [one for one in told if one.hash not in known]
        return min((one.checkpoint_number for one in new), default=COUNT_MAX)

    patch.setattr(epochs_seen, "parting", bad)


def never_doubt(patch: pytest.MonkeyPatch) -> None:
    """A copy takes itself for whole."""
    patch.setattr(Memory, "may_have_come", lambda self, attempt_id: False)


def sign_void_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """A copy refuses what it may have forgotten as if it had never been worked at."""
    decide = Admission.decide

    def bad(self: Admission, order: Order) -> Decision:
        decision = decide(self, order)
        if isinstance(decision, Refused) and decision.reason == "LEDGER_CATCHING_UP":
            return replace(decision, signature=self._state.signature(order, "void"))
        return decision

    patch.setattr(Admission, "decide", bad)


def unseeing(patch: pytest.MonkeyPatch) -> None:
    """Nodes dispute nothing, and officers do not compare."""
    patch.setattr(Disputes, "add", lambda self, dispute: dispute)
    patch.setattr(claims, "faults", lambda *args, **named: [])


PLANTED = {
    "part-at-the-new-line-alone": Planted(
        part_at_the_new_line_alone, "deep-plain", (7, 10, 11), "disputes"
    ),
    "never-doubt": Planted(never_doubt, "again", (0, 6), "worked at a second time"),
    "sign-void-in-doubt": Planted(sign_void_in_doubt, "again", (0, 5), "opened, and signed void"),
}
