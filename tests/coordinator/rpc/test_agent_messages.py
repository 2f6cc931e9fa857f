"""What a node says of its orders: only its own ledger key's word books anything."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.rounds.driver import Rounds
from coordinator.rpc import federation
from coordinator.rpc.federation import FederationService, statement_of
from coordinator.store import ledger, people
from privacy.ledger import Statement, sign
from protos.content import digest_of
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb
from tests.coordinator.rounds.test_rounds_driver import Table, training
from tests.coordinator.rounds.test_turns import NODES

UPDATE = b"an update"
KEYS = {node: Ed25519PrivateKey.from_private_bytes(node.encode() * 32) for node in NODES}
UNUSED = cast(Any, None)

Said = Callable[[Statement], pb.AgentMessage | pb.SubmitUpdateRequest]
"""What node "a" says of the order with this reserve statement."""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """A round with orders to four nodes, whose ledger keys are known."""
    made = Table(tmp_path)
    for node, key in KEYS.items():
        public = key.public_key().public_bytes_raw()
        made.world.database.write_now(
            lambda inside, node=node, public=public: people.enrol(inside, node, node, public, b"c")
        )
    training(made)
    monkeypatch.setattr(federation, "caller", lambda: SimpleNamespace(node="a"))
    monkeypatch.setattr(federation, "traceparent", lambda _context: "")
    monkeypatch.setattr(federation, "check_update", lambda *_: None)
    yield made
    made.world.database.close()


def say(table: Table, said: Said, of: str = "a") -> str:
    """Node "a" speaks of the order of a node: the reason for which it is not heard; empty else."""
    reasons = []

    async def scene(rounds: Rounds) -> None:
        world = table.world
        service = FederationService(
            world.database, table.effects.blobs, world.sessions, rounds, UNUSED, 5
        )
        live = await rounds.job("j")
        record, attempt = next(
            (one, found) for one in live.rounds() for found in one.attempts if found.node == of
        )
        message = said(statement_of(live, record, attempt))
        try:
            if isinstance(message, pb.SubmitUpdateRequest):
                await service.SubmitUpdate(message, UNUSED)
            else:
                await service._take("a", message)
        except FeddpError as error:
            reasons.append(error.reason)
        # What nobody waits for is in the journal by the end of the next turn.
        await rounds.node_arrived("a")

    table.play(scene)
    table.reopen()
    return "".join(reasons)


def booked(table: Table, node: str = "a") -> list[tuple[str, bool]]:
    """The node's entries: their kinds, and whether the node has signed them."""
    entries = table.world.database.read_now(lambda x: list(ledger.chain(x, f"{node}/patients")))
    public = KEYS[node].public_key().public_bytes_raw()
    return [
        (
            one.statement.kind,
            ledger.signature_ok(public, one.statement, one.node_signature),
        )
        for one in entries
    ]


def accepted(order: Statement, reserve: bytes) -> pb.AgentMessage:
    said = pb.OrderAccepted(attempt_id=order.attempt_id, reserve_signature=reserve)
    return pb.AgentMessage(order_accepted=said)


def refused(order: Statement, void: bytes) -> pb.AgentMessage:
    said = pb.OrderRefused(attempt_id=order.attempt_id, reason="WHY", void_signature=void)
    return pb.AgentMessage(order_refused=said)


def empty(order: Statement, post: bytes, reserve: bytes = b"") -> pb.AgentMessage:
    said = pb.NoUpdate(attempt_id=order.attempt_id, post_signature=post, reserve_signature=reserve)
    return pb.AgentMessage(no_update=said)


def update(order: Statement, post: bytes, reserve: bytes = b"") -> pb.SubmitUpdateRequest:
    return pb.SubmitUpdateRequest(
        attempt_id=order.attempt_id,
        digest=digest_of(UPDATE),
        data=UPDATE,
        post_signature=post,
        reserve_signature=reserve,
    )


def by(key: Ed25519PrivateKey, statement: Statement, kind: str) -> bytes:
    return sign(key, statement if kind == "reserve" else statement.resolved(cast(Any, kind)))


def mine(statement: Statement, kind: str) -> bytes:
    return by(KEYS["a"], statement, kind)


def others(statement: Statement, kind: str) -> bytes:
    return by(KEYS["b"], statement, kind)


FORGED: dict[str, Said] = {
    "accepts by another's key": lambda s: accepted(s, others(s, "reserve")),
    "accepts unsigned": lambda s: accepted(s, b""),
    "gives back by another's key": lambda s: refused(s, others(s, "void")),
    "gives back with another word": lambda s: refused(s, mine(s, "post")),
    "gives another round's back": lambda s: refused(s, mine(replace(s, round=2), "void")),
    "has nothing by another's key": lambda s: empty(s, others(s, "post")),
    "has nothing, unsigned": lambda s: empty(s, b""),
    "has nothing, accepted by another's key": lambda s: empty(
        s, mine(s, "post"), others(s, "reserve")
    ),
    "hands in by another's key": lambda s: update(s, others(s, "post")),
    "hands in, unsigned": lambda s: update(s, b""),
    "hands in, accepted by another's key": lambda s: update(
        s, mine(s, "post"), others(s, "reserve")
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_the_nodes_key_has_not_signed_books_nothing(table: Table, what: str) -> None:
    """Its reservation stands as it was, and the attempt is open to the right word."""
    assert say(table, FORGED[what]) == "SIGNATURE_INVALID"
    assert booked(table) == [("reserve", False)]
    assert say(table, lambda s: empty(s, mine(s, "post"))) == ""
    assert booked(table) == [("reserve", False), ("post", True)]


SIGNED: dict[str, tuple[Said, list[tuple[str, bool]], list[str]]] = {
    "accepts": (lambda s: accepted(s, mine(s, "reserve")), [("reserve", True)], []),
    "gives back": (
        lambda s: refused(s, mine(s, "void")),
        [("reserve", False), ("void", True)],
        ["void"],
    ),
    "gives back without proof": (
        lambda s: refused(s, b""),
        [("reserve", False), ("post", False)],
        ["post"],
    ),
    "has nothing": (
        lambda s: empty(s, mine(s, "post"), mine(s, "reserve")),
        [("reserve", True), ("post", True)],
        ["post"],
    ),
    "hands in": (
        lambda s: update(s, mine(s, "post"), mine(s, "reserve")),
        [("reserve", True), ("post", True)],
        [],
    ),
}


@pytest.mark.parametrize("what", SIGNED)
def test_what_the_nodes_key_has_signed_is_booked(table: Table, what: str) -> None:
    """With its signatures; an order that nobody proves unopened is charged. The node is told how,
    and lets go of the attempt."""
    said, entries, outcomes = SIGNED[what]
    assert say(table, said) == ""
    assert booked(table) == entries
    assert told(table) == outcomes


def told(table: Table) -> list[str]:
    """How the node's attempts were closed, as it was told in its session."""
    messages = table.world.sessions._open["a"]._messages
    found = [messages.get_nowait() for _ in range(messages.qsize())]
    return [one.attempt_closed.outcome for one in found if one and one.HasField("attempt_closed")]


def test_no_node_speaks_of_anothers_order(table: Table) -> None:
    """Whatever it says, and however it is signed."""
    for said, *_ in SIGNED.values():
        assert say(table, said, of="b") == "ATTEMPT_UNKNOWN"
    assert booked(table, "b") == [("reserve", False)]
