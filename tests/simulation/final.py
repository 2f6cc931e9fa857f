"""What can be said only at the end of a seed, when nothing has gone wrong for a long time."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from coordinator.rounds import commands as c
from coordinator.rounds import turns
from coordinator.rounds.phases import Ended, Phase, Selecting, Training
from privacy.ledger import Entry, from_json, to_json
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
    checker.limits.at_end()
    for node in world.nodes.values():
        _node_ledger(world, checker, node)
    for job_id, phase in checker.shadows.items():
        if isinstance(phase, Ended):
            _no_open_charge(checker, job_id)
            names = any(f"{node}: " in phase.message for node in world.nodes)
            if phase.status == "budget_exhausted" and not names:
                raise Broken("ends-or-waits", f"{job_id} names no budget: {phase.message}")
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
    entries = _exported(entry for one in accounts for entry in store.chain(one.account))
    filters = {one.account: one.verifying_filter for one in accounts}
    found = verify(entries, filters, world.public_keys)
    for problem in found.problems:
        raise Broken("chain", f"{problem.account} {problem.seq}: {problem.text}")


def _exported(entries: Iterable[Entry]) -> list[Entry]:
    """Entries as whoever has the file reads them."""
    return [from_json(json.loads(json.dumps(to_json(one)))) for one in entries]


def _replay(world: "World", checker: "Checker") -> None:
    store = world.coordinator.store
    for record in store.jobs():
        phase = world.coordinator.reload(record).phase
        if phase != checker.shadows[record.job_id]:
            raise Broken("reload-equals-memory", f"the journal of {record.job_id} was rewritten")


def _node_ledger(world: "World", checker: "Checker", node: "Node") -> None:
    entries = _exported(node.disk_.entries())
    kept = {one.account: one for one in node.disk_.state.ledger.accounts()}
    filters = {name: one.filter(one.epsilon_limit_highest) for name, one in kept.items()}
    found = verify(entries, filters, world.public_keys)
    for problem in found.problems:
        raise Broken("chain", f"{node.name} {problem.account} {problem.seq}: {problem.text}")
    statements = node.disk_.statements()
    ends: dict[str, str] = {one.attempt_id: one.kind for one in statements}
    for statement in statements:
        attempt_id = statement.attempt_id
        known = checker.reserved.get(attempt_id)
        if known is None or known.digest() != statement.digest():
            raise Broken("ledgers-agree", f"{attempt_id} at {node.name} is not the coordinator's")
    for attempt_id, kind in ends.items():
        job_id = checker.reserved[attempt_id].job_id
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
    for row in node.disk_.state.attempts.live():
        if isinstance(checker.shadows[row.order.job_id], Ended):
            attempt_id = row.order.attempt_id
            raise Broken("ledgers-agree", f"{node.name} still holds {attempt_id}: {row.state}")
    for attempt_id, kind in ends.items():
        job_id = checker.reserved[attempt_id].job_id
        if kind == "reserve" and isinstance(checker.shadows[job_id], Ended):
            raise Broken("ledgers-agree", f"{attempt_id} is open at {node.name} for ever")


def _no_open_charge(checker: "Checker", job_id: str) -> None:
    for attempt_id, statement in checker.reserved.items():
        if statement.job_id == job_id and attempt_id not in checker.ended:
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
    spent = {one.node for one in waiting if one.reason == "BUDGET"}
    if isinstance(phase, Selecting) and spent & _could_pay(world, job_id):
        raise Broken("ends-or-waits", f"{job_id} waits for budgets that there are")


def _could_pay(world: "World", job_id: str) -> set[str]:
    """Nodes that a survey of now would take."""
    coordinator = world.coordinator
    live = coordinator.live.get(job_id)
    if live is None or not coordinator.serving:
        return set()
    with coordinator.store.transaction() as connection:
        surveyed = coordinator.answer(turns.Books(connection), live, c.Survey())  # type: ignore[arg-type]
    return {offer.node for offer in surveyed.offers}  # type: ignore[union-attr]
