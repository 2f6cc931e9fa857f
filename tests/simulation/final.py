"""What can be said only at the end of a seed, when nothing has gone wrong for a long time."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coordinator.rounds.phases import Ended, Phase, Selecting, Training
from privacy.verification import verify
from tests.simulation.truth import Broken

if TYPE_CHECKING:
    from tests.simulation.invariants import Checker
    from tests.simulation.node_side import Node
    from tests.simulation.world import World

_MENDABLE = {"OFFLINE", "TRAINING", "BUSY", "ROUND_NOT_ADVANCING", "MODEL_UNAVAILABLE"}
"""Reasons that pass by themselves once a node is there and nothing goes wrong."""


def check_end(world: "World", checker: "Checker") -> None:
    """Both ledgers verify and agree, the journals add up, and no job hangs."""
    _verify_central(world)
    _replay(world, checker)
    for node in world.nodes.values():
        _node_ledger(world, checker, node)
    for job_id, phase in checker.shadows.items():
        if isinstance(phase, Ended):
            _no_open_charge(checker, job_id)
        else:
            _waits_for_a_reason(world, job_id, phase)
    if len(checker.shadows) < len(world.jobs):
        raise Broken("ends-or-waits", "a job that was submitted is unknown")


def job_endings(shadows: Mapping[str, Phase]) -> list[str]:
    """How each job ended."""
    return [p.status if isinstance(p, Ended) else "waiting" for _, p in sorted(shadows.items())]


def _verify_central(world: "World") -> None:
    store = world.coordinator.store
    accounts = store.accounts()
    entries = [entry for one in accounts for entry in store.chain(one.account)]
    filters = {one.account: one.verifying_filter for one in accounts}
    found = verify(entries, filters, world.public_keys)
    for problem in found.problems:
        raise Broken("chain", f"{problem.account} {problem.seq}: {problem.text}")


def _replay(world: "World", checker: "Checker") -> None:
    store = world.coordinator.store
    for record in store.jobs():
        phase = world.coordinator.reload(record).phase
        if phase != checker.shadows[record.job_id]:
            raise Broken("reload-equals-memory", f"the journal of {record.job_id} was rewritten")


def _node_ledger(world: "World", checker: "Checker", node: "Node") -> None:
    entries = node.disk_.entries()
    kept = {one.account: one for one in node.disk_.state.ledger.accounts()}
    filters = {name: one.filter(one.epsilon_limit_highest) for name, one in kept.items()}
    found = verify(entries, filters, world.public_keys)
    for problem in found.problems:
        raise Broken("chain", f"{node.name} {problem.account} {problem.seq}: {problem.text}")
    ends = {x.statement.attempt_id: x.statement.kind for x in entries}
    for entry in entries:
        attempt_id = entry.statement.attempt_id
        known = checker.reserved.get(attempt_id)
        if known is None or known.statement.digest() != entry.statement.digest():
            raise Broken("ledgers-agree", f"{attempt_id} at {node.name} is not the coordinator's")
    for attempt_id, kind in ends.items():
        job_id = checker.reserved[attempt_id].statement.job_id
        has_ended = isinstance(checker.shadows[job_id], Ended)
        if kind == "post" and has_ended and checker.ended.get(attempt_id) != "post":
            raise Broken("ledgers-agree", f"{attempt_id} is posted at {node.name} alone")
    for attempt_id, name in checker.truth.trained_attempts.items():
        live = not node.up and ends.get(attempt_id) == "reserve"
        if name == node.name and ends.get(attempt_id) != "post" and not live:
            raise Broken(
                "ledgers-agree", f"{attempt_id} was trained, {node.name} has not posted it"
            )
    if node.up:
        _nothing_held(checker, node, ends)


def _nothing_held(checker: "Checker", node: "Node", ends: dict[str, str]) -> None:
    """A node that is there holds nothing of a job that has ended."""
    for row in node.disk_.state.live():
        if isinstance(checker.shadows[row.order.job_id], Ended):
            attempt_id = row.order.attempt_id
            raise Broken("ledgers-agree", f"{node.name} still holds {attempt_id}: {row.state}")
    for attempt_id, kind in ends.items():
        job_id = checker.reserved[attempt_id].statement.job_id
        if kind == "reserve" and isinstance(checker.shadows[job_id], Ended):
            raise Broken("ledgers-agree", f"{attempt_id} is open at {node.name} for ever")


def _no_open_charge(checker: "Checker", job_id: str) -> None:
    for attempt_id, entry in checker.reserved.items():
        if entry.statement.job_id == job_id and attempt_id not in checker.ended:
            raise Broken("resolved-once", f"{attempt_id} is open though its job has ended")


def _waits_for_a_reason(world: "World", job_id: str, phase: Phase) -> None:
    """It names who is missing and why, and what it names is so."""
    waiting = phase.waiting if isinstance(phase, Selecting | Training) else ()
    known = len(world.coordinator.store.all_nodes())
    if isinstance(phase, Selecting) and phase.surveyed and len(phase.ready) == known:
        return  # so few nodes ever joined; it says how many more it needs
    if not waiting:
        raise Broken("ends-or-waits", f"{job_id} hangs in {type(phase).__name__}")
    missing = [one for one in waiting if world.nodes[one.node].up or one.reason not in _MENDABLE]
    for one in missing:
        if one.reason in _MENDABLE:
            text = f"{job_id} waits for {one.node} ({one.reason}), which is there"
            raise Broken("ends-or-waits", text)
