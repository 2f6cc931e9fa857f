"""Who takes part in a round, how long one is waited for, and who is left out again and again.

Pure; decides by what the coordinator saw on the wire: who was ordered, and when each answered.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Final

from coordinator.rounds.events import Absence, Offer
from coordinator.rounds.phases import Attempt, AttemptState, Course, RoundRecord, Training

PATIENCE_S_MIN = 10.0
"""Nobody is given up sooner than this, however fast it was before."""

HISTORY_ROUNDS = 5
LEFT_OUT_ROUNDS = 3
"""A hospital that is left out of so many rounds in a row is warned about."""

NOT_CHOSEN = "NOT_CHOSEN"
NOT_NEEDED = "NOT_NEEDED"
BUSY = "BUSY"

_VERBS: Final = frozenset({"begins", "gets", "had", "has", "is", "refuses", "took", "was", "works"})
"""With which a reason goes on from the node's name; the others have a subject of their own."""


def choose(
    course: Course, offers: tuple[Offer, ...]
) -> tuple[tuple[Offer, ...], tuple[Absence, ...]]:
    """(offers that are ordered, the others with their reason).

    With `participants`, those that have paid least and longest ago come first, so that every
    hospital has its turn and no budget is used up before the others', even where over-selection
    charges one for nothing.
    """
    if not course.plan.participants:
        return offers, ()
    most, ranked = _wanted(course), in_turn(offers, _rounds_paid(course))
    others = tuple(
        Absence(o.node, NOT_CHOSEN, f"{most} of {len(offers)} nodes are chosen in turn, by the job")
        for o in ranked[most:]
    )
    return tuple(ranked[:most]), others


def choose_more(
    course: Course,
    record: RoundRecord,
    offers: tuple[Offer, ...],
    counted_on: int,
    first: Collection[str],
) -> tuple[Offer, ...]:
    """Of those that could be ordered besides, as many as are missing. Whoever is ordered pays.

    Args:
        counted_on: updates that are here, and attempts that may still give one.
        first: nodes that go before the others; of these, those that the round has not asked yet.
    """
    if not course.plan.participants:
        return offers
    asked = {attempt.node for attempt in record.attempts}
    ranked = in_turn(offers, _rounds_paid(course))
    ranked.sort(key=lambda one: (one.node not in first, one.node in asked))
    return tuple(ranked[: max(0, _wanted(course) - counted_on)])


def wanted(participants: int, over_selection: float) -> int:
    """Nodes that are ordered in a round; 0 of a job that does not say how many it wants.

    In whole numbers of what was written: as floats, 10 and 0.1 above it would be 12.
    """
    return math.ceil(participants * (1 + Fraction(str(over_selection))))


def _wanted(course: Course) -> int:
    return wanted(course.plan.participants, course.plan.over_selection)


def _rounds_paid(course: Course) -> dict[str, list[int]]:
    """The rounds that each node was charged for, with an update or without, ascending."""
    found: dict[str, list[int]] = {}
    for one in course.done:
        for node in {a.node for a in one.attempts if a.state is not AttemptState.REFUSED}:
            found.setdefault(node, []).append(one.number)
    return found


def in_turn(offers: Sequence[Offer], rounds_by_node: Mapping[str, Sequence[int]]) -> list[Offer]:
    """Those that have paid least first, of these the ones whose last round is longest ago.

    Args:
        rounds_by_node: the rounds that each was charged for, ascending.
    """

    def turn(offer: Offer) -> tuple[int, int, str]:
        before = rounds_by_node.get(offer.node, ())
        return len(before), before[-1] if before else 0, offer.node

    return sorted(offers, key=turn)


def gives_up_at_s(phase: Training, attempt: Attempt) -> float:
    """When a round that has its quorum stops waiting for an attempt.

    Its own history decides: `grace_factor` times the slowest of the node's last rounds, so that a
    slow hospital is given its own time and not that of the fast ones. Without a history, or with
    a factor of 0, the deadline.
    """
    factor = phase.course.plan.grace_factor
    took_s = _took_s(phase.course, attempt.node)
    if not factor or not took_s:
        return phase.deadline_at_s
    began_s = max(attempt.ordered_at_s, phase.counted_from_s)
    return min(phase.deadline_at_s, began_s + max(PATIENCE_S_MIN, factor * max(took_s)))


def _took_s(course: Course, node: str) -> list[float]:
    """Seconds from order to update in the node's last rounds, newest first."""
    took: list[float] = []
    for one in reversed(course.done):
        took += [a.ended_at_s - a.ordered_at_s for a in one.received if a.node == node]
        if len(took) >= HISTORY_ROUNDS:
            break
    return took


def left_out(course: Course) -> dict[str, int]:
    """How many rounds in a row, up to the last one that was its turn, each node was left out of;
    without those that took part then."""
    return {node: len(whys) for node, whys in _streaks(course).items()}


def warnings(course: Course) -> tuple[str, ...]:
    """A sentence for each hospital that was left out of the last rounds that were its turn."""
    said = []
    for node, whys in sorted(_streaks(course).items()):
        if len(whys) < LEFT_OUT_ROUNDS:
            continue
        reasons = sorted({reason for reason, _ in whys})
        learns = "The model learns nothing from its patients"
        if NOT_NEEDED in reasons:
            learns += (
                ", who are charged all the same: a job with more `participants`, or without "
                "`over_selection`, waits for it"
            )
        said.append(
            f"{node} was left out of the last {len(whys)} rounds ({', '.join(reasons)}); "
            f"{_last_time(whys[0][1])}. {learns}"
        )
    return tuple(said)


def _last_time(text: str) -> str:
    """What was said then: a predicate or a clause of ours, or sentences of the node's own."""
    text = text.rstrip(".")
    if not text[:1].islower():
        return f'the last time it said: "{text}"'
    is_predicate = text.partition(" ")[0] in _VERBS
    return f"last time it {text}" if is_predicate else f"last time: {text}"


def _streaks(course: Course) -> dict[str, list[tuple[str, str]]]:
    """Why each node was left out of its last rounds in a row, newest first. A round in which it was
    not its turn is none of them, and does not end them."""
    found: dict[str, list[tuple[str, str]]] = {}
    standing: set[str] | None = None
    for one in reversed(course.done):
        missing = _missing(one)
        here = missing.keys() | {a.node for a in one.left_out if a.reason == NOT_CHOSEN}
        standing = here if standing is None else standing & here
        if not standing:
            break
        for node in standing & missing.keys():
            found.setdefault(node, []).append(missing[node])
    return found


def _missing(one: RoundRecord) -> dict[str, tuple[str, str]]:
    """Nodes whose update the round does not hold, with reason and sentence; without those whose
    turn it was not, but with those that worked for nothing."""
    there = {a.node for a in one.received}
    missing = {a.node: (a.reason, a.message) for a in one.left_out if a.reason != NOT_CHOSEN} | {
        a.node: (a.reason or a.state.value.upper(), a.message)
        for a in one.attempts
        if a.state is not AttemptState.RECEIVED
    }
    return {node: why for node, why in missing.items() if node not in there}
