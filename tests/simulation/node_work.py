"""What takes a node long: training an attempt, and handing its update in."""

from typing import TYPE_CHECKING

from node_agent.orders import Order
from node_agent.policy import Refusal
from node_agent.session import events as e
from node_agent.session.training import outcome_after_s
from protos.content import digest_of
from protos.errors import FeddpError
from tests.simulation.network import LOST
from tests.simulation.process import Work

if TYPE_CHECKING:
    from tests.simulation.node_side import Node


def train(node: "Node", order: Order) -> Work:
    """Prepare, open, train, spool: one attempt at a time."""
    attempt_id, dice = order.attempt_id, node.world.random
    while node.training:
        yield node.sleep(0.1)
    if node.agent.find(attempt_id) is None:
        return
    node.training = True
    terms = yield node.disk(lambda: node.admission.terms(order))
    worker = node.worker_life
    late = node.strike("worker_starts_late")
    yield node.sleep(dice.uniform(60.0, 280.0) if late else dice.uniform(0.1, 4.0))
    impossible = ("WORKER_FAILED", "it died") if node.strike("worker_died") else None
    if node.worker_life != worker:
        impossible = ("WORKER_FAILED", "it was stopped")
    if isinstance(terms, Refusal):
        impossible = (terms.reason, terms.message)
    if impossible is not None:
        node.training = False
        node.dispatch(e.WorkImpossible(attempt_id, *impossible))
        return
    rehearsal_s = dice.choice([0.5, 1.0, 1.0, 4.0, 20.0])
    outcome_s = outcome_after_s(terms.tick_s, rehearsal_s)  # type: ignore[union-attr]
    at_s = node.clock()
    if not (yield node.disk(lambda: node.disk_.open(attempt_id, at_s, outcome_s))):
        node.training = False
        node.worker_life += 1
        return
    node.world.checker.data_opened(node, order)
    node.dispatch(e.DataOpened(attempt_id, at_s, outcome_s))
    if not node.up:
        return
    worker = node.worker_life
    yield node.sleep(min(outcome_s * 0.9, rehearsal_s * dice.uniform(0.5, 2.0)))
    digest = ""
    if node.worker_life == worker and not node.strike("worker_died"):
        digest = digest_of(f"{node.name} {attempt_id} {dice.random()}".encode())
        damaged = node.strike("update_damaged")
        yield node.disk(lambda: node.disk_.keep_update(attempt_id, digest))
        node.world.checker.trained(node, order, digest, damaged)
    signature = yield node.disk(
        lambda: node.disk_.spool(attempt_id, digest) if digest else node.disk_.lose(attempt_id)
    )
    node.training = False
    if signature is not None:
        node.dispatch(e.TrainingEnded(attempt_id, digest, signature))
    elif digest:
        node.disk_.drop_update(digest)


def hand_in(node: "Node", attempt_id: str, digest: str, signature: bytes) -> Work:
    """Upload and submit until the coordinator says that it is booked, or that it never will be."""
    call, coordinator = node.world.network.call, node.world.coordinator
    while True:
        if digest not in node.disk_.spool_files:
            node.handing_in.discard(attempt_id)
            node.world.checker.vanished(node, attempt_id, digest)
            node.dispatch(e.UpdateVanished(attempt_id))
            return
        node.world.checker.bytes_leave(node, attempt_id, digest)
        if node.strike("impostor"):
            yield from _as_another(node, digest, signature)
        answer = yield call(
            node, lambda reply: coordinator.upload(node.name, attempt_id, digest, reply)
        )
        if answer is not LOST and not isinstance(answer, FeddpError):
            answer = yield call(
                node,
                lambda reply: coordinator.submit_update(
                    node.name, attempt_id, digest, signature, reply
                ),
            )
        if isinstance(answer, FeddpError) and not answer.retryable:
            node.handing_in.discard(attempt_id)
            node.world.note(f"{node.name} update of {attempt_id} rejected: {answer.reason}")
            node.dispatch(e.UpdateRejected(attempt_id))
            return
        if answer is not LOST and not isinstance(answer, FeddpError):
            node.handing_in.discard(attempt_id)
            node.dispatch(e.UpdateAcknowledged(attempt_id))
            return
        yield node.sleep(node.world.random.uniform(0.0, 10.0))


def _as_another(node: "Node", digest: str, signature: bytes) -> Work:
    """A node that lies: it hands its update in for the attempt of another node."""
    call, coordinator = node.world.network.call, node.world.coordinator
    rounds = [one for live in coordinator.running() for one in live.rounds()[-1:]]
    attempts = [a for one in rounds for a in one.attempts if a.node != node.name and a.is_open]
    if attempts:
        other = attempts[0].attempt_id
        yield call(node, lambda reply: coordinator.upload(node.name, other, digest, reply))
        yield call(
            node,
            lambda reply: coordinator.submit_update(node.name, other, digest, signature, reply),
        )
