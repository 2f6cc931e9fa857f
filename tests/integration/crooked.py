"""A coordinator in the wrong hands: the real one, with its ports, certificates and sessions. But it
holds back the orders of its jobs, and sends what a test makes of them instead."""

import asyncio
import copy
import itertools
import queue
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.mandates import Mandate, parse, sign
from coordinator import server
from coordinator.config.config import load_config
from coordinator.rounds.effects import Effects
from coordinator.rounds.live import LiveJob
from coordinator.rpc.federation import FederationService
from coordinator.store.booking import book
from feddp.signing import load_key
from node_agent.policy.orders import Order
from privacy.ledger import Statement
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1.mandates_pb2 import SignedMandate
from tests.integration.federation import Federation

WAIT_S = 30.0
T = TypeVar("T")


class _Held:
    """Takes the place of `Sessions` where orders are sent."""

    def __init__(self, sessions: Any, orders: dict[tuple[str, str], pb.WorkOrder]) -> None:
        self._sessions = sessions
        self._orders = orders

    def send(self, node: str, message: pb.CoordinatorMessage) -> bool:
        if message.WhichOneof("message") == "work_order":
            order = message.work_order
            self._orders[node, order.job_id] = order
            return True
        return bool(self._sessions.send(node, message))


class _HoldsBack(Effects):
    """The real effects; an order stays where it is."""

    def _send_order(self, live: LiveJob, attempt_id: str) -> None:
        Effects._send_order(replace(self, sessions=_Held(self.sessions, ORDERS)), live, attempt_id)


class _Listens(FederationService):
    """The real service; a test hears what nodes say of orders that no book of ours holds."""

    async def _take(self, node: str, message: pb.AgentMessage) -> None:
        if message.WhichOneof("message") in ("order_accepted", "order_refused", "no_update"):
            HEARD.put((node, message))
        await super()._take(node, message)

    async def SubmitUpdate(self, request: Any, context: Any) -> Any:  # noqa: N802
        reserved = BOOKED.pop(request.attempt_id, None)
        if reserved is not None:
            post, signature = reserved.resolved("post"), request.post_signature
            await self.database.write(lambda inside: book(inside, post, signature))
        HEARD.put(("", request))
        return pb.SubmitUpdateResponse()


ORDERS: dict[tuple[str, str], pb.WorkOrder] = {}
BOOKED: dict[str, Statement] = {}
"""Attempts that the ledger holds, though no job does."""

HEARD: "queue.Queue[tuple[str, Any]]" = queue.Queue()


class Crooked:
    """It runs in a thread of this process; its agents are processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.federation = Federation(folder)
        self.federation.configure(min_participants=2)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        effects, service = server.Effects, server.FederationService
        server.Effects, server.FederationService = _HoldsBack, _Listens  # type: ignore[misc]
        try:
            config = load_config(self.federation.installation.config, {})
            self.coordinator = server.Coordinator(config)
            self._run(self.coordinator.start())
        finally:
            server.Effects, server.FederationService = effects, service  # type: ignore[misc]
        self._numbers = itertools.count()

    def stop(self) -> None:
        """End the agents, then this."""
        self.federation.stop()
        self._run(self.coordinator.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def order_of(self, node: str, job_id: str) -> pb.WorkOrder | None:
        """What the coordinator would have sent by its own books."""
        return copy.deepcopy(ORDERS.get((node, job_id)))

    def send(self, node: str, **message: Any) -> None:
        """Say something on the node's session."""
        said = pb.CoordinatorMessage(**message)
        self._loop.call_soon_threadsafe(self.coordinator.sessions.send, node, said)

    def order(
        self, node: str, order: pb.WorkOrder, *, again: bool = False, booked: bool = False
    ) -> tuple[str, str]:
        """Order; (reason, sentence) of the node's refusal, both empty if it did the work.

        Args:
            again: under the attempt's own id, instead of a new one.
            booked: write the attempt into the ledger here, so that the node, which reads it, finds
                no fault there.
        """
        if not again:
            order.attempt_id = f"crooked{next(self._numbers)}"
        if booked:
            reserve = BOOKED[order.attempt_id] = Order.from_wire(order).statement(node, "reserve")
            self._run(self.coordinator.database.write(lambda inside: book(inside, reserve)))
        self.send(node, work_order=order)
        while True:
            who, message = HEARD.get(timeout=WAIT_S)
            if not who and message.attempt_id == order.attempt_id:
                return "", ""
            if who != node or isinstance(message, pb.SubmitUpdateRequest):
                continue
            refused = message.order_refused
            if message.HasField("order_refused") and refused.attempt_id == order.attempt_id:
                return refused.reason, refused.message
            if message.no_update.attempt_id == order.attempt_id:
                return "", ""


def engineer_key(federation: Federation) -> Ed25519PrivateKey:
    """Of whoever submits the jobs."""
    key = load_key(federation.installation.profile)
    assert key is not None
    return key


def signed_by(
    key: Ed25519PrivateKey, order: pb.WorkOrder, change: Callable[[Mandate], Mandate]
) -> pb.WorkOrder:
    """The order under a changed text that `key` has signed; the text names that key."""
    public = key.public_key().public_bytes_raw().hex()
    mandate = replace(change(parse(order.mandate.body)), public_key=public)
    signed = sign(key, mandate)
    order.mandate.CopyFrom(SignedMandate(body=signed.body, signature=signed.signature))
    return order
