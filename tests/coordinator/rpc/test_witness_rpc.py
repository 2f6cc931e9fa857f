"""What one node may read and sign of the ledger here: of its own accounts, and so much at once."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.rpc import witness
from coordinator.rpc.witness import HEADS_MAX, STATEMENTS_MAX, WitnessService
from coordinator.store import booking, checkpoints
from coordinator.store.database import Database
from privacy.wire import head_to_wire
from protos.errors import FeddpError
from protos.feddp.v1 import ledger_pb2
from protos.feddp.v1 import witness_pb2 as pb
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    KEY,
    NODE,
    PUBLIC,
    statement,
    with_account,
)

NO_CONTEXT = cast(Any, None)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """With a node and more entries of its account than one call or message carries."""
    made = Database(f"sqlite:///{tmp_path / 'c.db'}")
    made.migrate()
    with_account(made)
    made.write_now(lambda c: c.exec_driver_sql("UPDATE nodes SET ledger_public_key = ?", (PUBLIC,)))
    for number in range(3):
        made.write_now(lambda c, number=number: booking.book(c, statement(f"a{number}")))
    yield made
    made.close()


@pytest.fixture
def asked(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls the service as some node; the answers, or the reason for which there are none."""
    service = WitnessService(database, KEY)

    async def answers(call: Any) -> list[Any]:
        return [one async for one in call] if hasattr(call, "__aiter__") else [await call]

    def ask(method: str, request: Any, node: str = NODE) -> list[Any] | str:
        monkeypatch.setattr(witness, "caller", lambda: SimpleNamespace(node=node))
        try:
            return asyncio.run(answers(getattr(service, method)(request, NO_CONTEXT)))
        except FeddpError as error:
            return error.reason

    return ask


def test_a_node_reads_the_entries_of_its_own_accounts_from_where_it_ended(
    asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order and each once, however they are cut; another's account is there for nobody else."""
    monkeypatch.setattr(witness, "BATCH", 2)

    def read(after: int, **who: str) -> Any:
        return asked("ReadEntries", pb.ReadEntriesRequest(account=ACCOUNT, after_seq=after), **who)

    for most, batches in ((5_000, [[1, 2], [3]]), (2, [[1, 2]])):
        monkeypatch.setattr(witness, "ENTRIES_MAX", most)
        assert [[one.seq for one in batch.entries] for batch in read(0)] == batches
    assert [[one.seq for one in batch.entries] for batch in read(2)] == [[3]]
    assert read(3) == []
    assert read(0, node="b") == "ACCOUNT_UNKNOWN"


def test_a_node_signs_heads_of_its_own_accounts_and_so_many_at_once(
    asked: Callable[..., Any], database: Database
) -> None:
    """With its own key: a head that somebody else signed, or signs, is not kept."""
    head = database.read_now(lambda c: checkpoints.heads(c, NODE))[0]
    signed = head_to_wire(head, KEY.sign(head.canonical()))
    unsigned = head_to_wire(head, b"x" * 64)

    def sign(*heads: Any, **who: str) -> Any:
        return asked("Countersign", pb.CountersignRequest(heads=heads), **who)

    assert sign(unsigned) == "SIGNATURE_INVALID"
    assert sign(*[signed] * (HEADS_MAX + 1)) == "TOO_MANY"
    assert database.read_now(checkpoints.countersigned) == []
    assert sign(*[signed] * HEADS_MAX) == [pb.CountersignResponse()]
    assert [one.head for one in database.read_now(checkpoints.countersigned)] == [head]


def test_a_node_hands_in_so_much_at_once(asked: Callable[..., Any]) -> None:
    """Before any of it is looked at."""
    for number, reason in ((STATEMENTS_MAX + 1, "TOO_MANY"), (0, "EPOCH_PAST")):
        request = pb.HandInRequest(
            account=ACCOUNT, epoch=1, statements=[ledger_pb2.LedgerEntry()] * number
        )
        assert asked("HandIn", request) == reason
