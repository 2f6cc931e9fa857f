"""What takes a node long: training an attempt, and handing its update in."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from node_agent.outcome_time import outcome_after_s
from node_agent.policy.judgement import Refusal
from node_agent.policy.orders import Order
from node_agent.session import commands as c
from node_agent.session import events as e
from node_agent.session.training import Impossible, Training
from protos.content import digest_of
from protos.errors import FeddpError
from tests.simulation.network import LOST
from tests.simulation.process import Work

if TYPE_CHECKING:
    from tests.simulation.node_side import Node


def train(node: "Node", order: Order, due_at_s: float) -> Work:
    """Prepare, rehearse, open, train, spool: one attempt at a time, in its job's worker."""
    attempt_id, job_id, dice = order.attempt_id, order.job_id, node.world.random
    while node.training:
        yield node.sleep(0.1)
    if node.agent.find(attempt_id) is None:
        return
    node.training = True
    terms = yield node.disk(lambda: node.admission.terms(order))
    worker = node.worker_lives[job_id]
    late = node.strike("worker_starts_late")
    yield node.sleep(dice.uniform(60.0, 280.0) if late else dice.uniform(0.1, 4.0))
    rehearsal_s = node.step_s * order.release.steps * dice.uniform(0.9, 1.1)
    try:
        if isinstance(terms, Refusal):
            raise Impossible(terms.reason, terms.message)
        if node.worker_lives[job_id] != worker or node.strike("worker_died"):
            raise Impossible("WORKER_FAILED", "it ended before it began")
        # The product's own arithmetic; it needs nothing of the object around it.
        until_due_s = due_at_s - node.clock()
        Training._check_time(node, order, terms.tick_s, rehearsal_s, until_due_s)  # type: ignore[arg-type]
    except Impossible as error:
        node.training = False
        possible = error.steps_possible
        node.dispatch(e.WorkImpossible(attempt_id, error.reason, error.message, possible))
        return
    outcome_s = outcome_after_s(terms.tick_s, rehearsal_s)
    at_s = node.clock()
    # The product's own: the terms once more, and the opening, in one go.
    shell: Any = SimpleNamespace(_admission=node.admission, _state=node.disk_)
    opened = yield node.disk(lambda: Training._open(shell, order, terms, at_s, outcome_s))
    if isinstance(opened, Refusal):
        node.training = False
        node.dispatch(e.WorkImpossible(attempt_id, opened.reason, opened.message, 0))
        return
    if not opened:
        node.training = False
        node.worker_lives[job_id] += 1
        return
    node.world.checker.data_opened(node, order)
    node.dispatch(e.DataOpened(attempt_id, at_s, outcome_s))
    if not node.up:
        return
    worker = node.worker_lives[job_id]
    yield node.sleep(min(outcome_s * 0.9, rehearsal_s * dice.uniform(0.5, 2.0)))
    digest = ""
    if node.worker_lives[job_id] == worker and not node.strike("worker_died"):
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


def hand_in(node: "Node", command: c.UploadAndSubmit) -> Work:
    """Upload and submit until the coordinator says that it is booked, or that it never will be."""
    call, coordinator = node.world.network.call, node.world.coordinator
    attempt_id, digest, signature = command.attempt_id, command.digest, command.signature
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
                    node.name, attempt_id, digest, signature, reply, command.accepted
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
