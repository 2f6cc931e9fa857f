"""A coordinator that was restored from a backup takes over from its node what it lost: both
ledgers of one node, over real gRPC."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from coordinator.store import booking, checkpoints, epochs, ledger
from coordinator.store.database import Database
from node_agent.ledger import rollback
from node_agent.session import handing_in
from privacy.entries import GENESIS
from privacy.heads import Head
from privacy.ledger import Statement, append, sign, verify
from protos.errors import FeddpError, Unavailable, WrongPhase
from protos.feddp.v1 import witness_pb2 as pb
from tests.integration.restorable import (
    BACKUP,
    Restorable,
    restorable_bench,  # noqa: F401 - a fixture
)
from tests.integration.test_witness import (
    ACCOUNT,
    ENTRIES,
    FILTER,
    PUBLIC,
    forged,
    raised,
    seen,  # noqa: F401 - a fixture
)
from tests.integration.test_witness import witness_rpc as rpc
from tests.node_agent.samples import LEDGER_KEY, NODE, order


def test_what_the_backup_lacks_is_handed_in(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator's account has spent again what the node's own ledger says; nothing is
    disputed, and the next restoration finds the same."""
    bench.book(3, first=ENTRIES)
    bench.look(monkeypatch)
    spent = bench.posted_units()
    for number in (1, 2):
        bench.put_back(now_s=100.0 * number)
        assert bench.posted_units() < spent
        assert bench.unreconciled() == {ACCOUNT}
        bench.look(monkeypatch)
        assert bench.state.disputes.all() == []
        assert bench.posted_units() == spent == bench.own_units()
        assert bench.unreconciled() == frozenset()
        assert bench.reason() == ""
    chain = bench.chain()
    account = bench.database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert verify(chain, {ACCOUNT: account.verifying_filter}, {NODE: PUBLIC}).ok
    kept = bench.database.read_now(checkpoints.countersigned)
    assert [one.head.seq for one in kept] == [ENTRIES, ENTRIES + 6]
    bench.look(monkeypatch)
    assert len(bench.chain()) == ENTRIES + 6, "the same again changes nothing"


def test_without_an_epoch_it_is_a_dispute(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ever: nobody has said that it was a backup."""
    bench.book(3, first=ENTRIES)
    bench.look(monkeypatch)
    bench.put_back(declared=False)
    bench.look(monkeypatch)
    assert ACCOUNT in {one.account for one in bench.state.disputes.all()}
    assert bench.reason() == "LEDGER_DISPUTED"


def test_a_dispute_of_before_the_declaration_is_the_stewards_to_end(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that was put back by hand, and then properly: what was disputed is handed in once it
    is settled."""
    bench.book(3, first=ENTRIES)
    bench.look(monkeypatch)
    spent = bench.posted_units()
    bench.put_back(declared=False)
    bench.reserve_there("x")
    for _ in range(2):
        bench.look(monkeypatch)
    assert bench.reason() == "LEDGER_DISPUTED"
    bench.put_back()
    bench.look(monkeypatch)
    assert bench.reason() == "LEDGER_DISPUTED"
    assert bench.unreconciled() == {ACCOUNT}
    for one in bench.state.disputes.all():
        bench.state.settle(one.account)
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.reason() == ""
    assert bench.unreconciled() == frozenset()
    assert bench.posted_units() == spent == bench.own_units()


def test_what_never_reached_the_node_is_void_and_its_order_stays_refused(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node signs that, and a coordinator that orders it after all gets nothing."""
    bench.reserve_there("lost")
    bench.back_up()
    bench.put_back()
    bench.look(monkeypatch)
    last = bench.chain()[-1]
    assert isinstance(last.statement, Statement)
    assert (last.statement.attempt_id, last.statement.kind) == ("lost", "void")
    assert last.node_signature == sign(LEDGER_KEY, last.statement)
    assert bench.state.epochs.is_closed("lost")
    assert bench.unreconciled() == frozenset()


def test_an_account_waits_while_an_attempt_is_under_way(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed in once it has ended, and its post with it; nothing is charged twice."""
    one = order("late", job_id="job-late")
    bench.database.write_now(lambda c: booking.book(c, one.statement(NODE, "reserve")))
    bench.state.reserve(one, FILTER)
    bench.state.open("late", 1.0, 1.0)
    bench.back_up()
    bench.put_back()
    bench.look(monkeypatch)
    assert bench.unreconciled() == {ACCOUNT}
    assert bench.reason() == "LEDGER_RECONCILING"
    assert bench.state.disputes.all() == []
    bench.state.close_attempt("late", "post")
    bench.look(monkeypatch)
    assert bench.unreconciled() == frozenset()
    assert bench.posted_units() == bench.own_units()
    assert [e.statement.kind for e in bench.chain()][ENTRIES:] == ["reserve", "post"]


def test_an_epoch_erases_nothing(bench: Restorable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an operator cuts off and declares to be a backup comes back from the node."""
    spent = bench.posted_units()
    bench.database.write_now(
        lambda c: epochs.raise_epoch(c, bench.key, now_s=100.0, backup_made_at_s=50.0)
    )
    short = bench.chain()[: ENTRIES // 2]
    bench.write(short)
    bench.database.write_now(
        lambda c: c.exec_driver_sql("UPDATE accounts SET posted_units = posted_units / 2")
    )
    bench.database.write_now(lambda c: c.exec_driver_sql("DELETE FROM countersignatures"))
    bench.look(monkeypatch)
    assert bench.posted_units() == spent
    assert bench.state.disputes.all() == []


@pytest.mark.parametrize("k", [1, ENTRIES // 2, ENTRIES])
def test_what_a_restored_chain_says_otherwise_than_the_node_is_a_dispute(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    """An epoch excuses what is missing, and nothing that is there; also below what was seen."""
    bench.write(forged(bench.chain(), k, lambda one: replace(one, project="another")))
    bench.database.write_now(
        lambda c: epochs.raise_epoch(c, bench.key, now_s=100.0, backup_made_at_s=50.0)
    )
    bench.look(monkeypatch)
    assert [one.account for one in bench.state.disputes.all()] == [ACCOUNT]
    assert bench.reason() == "LEDGER_DISPUTED"
    assert bench.unreconciled() == {ACCOUNT}


class Forgets(rpc.WitnessService):
    """Says that it has booked what is handed in, and has not."""

    async def HandIn(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return pb.HandInResponse(booked=len(request.statements))


def test_a_coordinator_that_takes_and_does_not_book_is_disputed(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node reads its chain again after it has handed in."""
    bench.book(1, first=ENTRIES)
    bench.look(monkeypatch)
    bench.put_back()
    bench.look(monkeypatch, Forgets)
    assert [one.account for one in bench.state.disputes.all()] == [ACCOUNT]
    assert bench.reason() == "LEDGER_DISPUTED"


def test_a_release_that_came_from_the_chain_alone_is_looked_for_as_well(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that was itself read from the coordinator's chain once has no order of it."""
    bench.book(1, first=ENTRIES)
    bench.look(monkeypatch)
    with contextlib.closing(sqlite3.connect(bench.folder / "state.db")) as opened:
        opened.execute("DELETE FROM attempts WHERE attempt_id = ?", (f"a{ENTRIES}",))
        opened.commit()
    bench.put_back()
    bench.look(monkeypatch, Forgets)
    (one,) = bench.state.disputes.all()
    assert one.text == "what this node has handed in was taken, and is not in the chain"


def test_what_the_node_has_signed_before_is_no_roll_back_of_its_own(bench: Restorable) -> None:
    """The coordinator tells at the greeting what was countersigned, and the chain is yet to be
    read anew."""
    bench.put_back()
    told = bench.database.read_now(epochs.all_of)
    assert bench.state.handing_in.meet(told, b"", 1.0).kind == "later"
    head, _ = bench.database.read_now(lambda c: checkpoints.signed_last(c, ACCOUNT))
    assert head is not None
    assert head.head.seq == ENTRIES
    signed = rollback.Signed((head.head, head.signature), ())
    assert rollback.look(bench.state, NODE, PUBLIC, [signed]) == ""
    newer = Head(ACCOUNT, ENTRIES + 1, "a" * 64)
    signed = rollback.Signed((newer, LEDGER_KEY.sign(newer.canonical())), ())
    assert "this node has signed entry 21" in rollback.look(bench.state, NODE, PUBLIC, [signed])


def test_an_older_copy_is_not_looked_at(bench: Restorable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is compared, taken or signed once a later restoration was seen."""
    bench.put_back(now_s=200.0)
    bench.look(monkeypatch)
    before = bench.state.witnessed.heads()
    for declared in (False, True):
        bench.put_back(now_s=100.0, declared=declared)
        if not declared:  # it would go on as if nothing had been
            bench.book(1, first=ENTRIES)
        bench.look(monkeypatch)
        assert bench.state.witnessed.heads() == before
        assert bench.state.disputes.all() == []


def test_an_epoch_of_another_key_is_a_dispute(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only who holds the coordinator's ledger key may declare a restoration."""
    bench.put_back()
    bench.database.write_now(lambda c: c.exec_driver_sql("DROP TRIGGER epochs_are_kept") and None)
    bench.database.write_now(
        lambda c: c.exec_driver_sql("UPDATE epochs SET backup_made_at_s = 1") and None
    )
    bench.look(monkeypatch)
    assert [one.account for one in bench.state.disputes.all()] == ["*"]
    assert bench.state.epochs.all() == []


def test_a_restoration_that_names_another_checkpoint_is_a_dispute(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stood before the backup is no secret to nodes, and not excused."""
    other = append(order("x").statement(NODE, "reserve"), None)
    bench.database.write_now(lambda c: c.exec_driver_sql("DELETE FROM checkpoints") and None)
    bench.write([other])
    bench.database.write_now(lambda c: checkpoints.renew(c, bench.key, 5.0))
    bench.database.write_now(
        lambda c: epochs.raise_epoch(c, bench.key, now_s=100.0, backup_made_at_s=50.0)
    )
    bench.look(monkeypatch)
    assert "*" in {one.account for one in bench.state.disputes.all()}


def test_nothing_is_reserved_before_it_is_handed_in(bench: Restorable) -> None:
    """By the booking itself, whoever asks for it."""
    bench.put_back()
    with pytest.raises(WrongPhase) as caught:
        bench.reserve_there("x")
    assert caught.value.reason == "LEDGER_RECONCILING"


def test_an_account_of_a_later_date_than_the_backup_is_handed_in(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator opens it by the terms that its node has signed."""
    bench.database.write_now(
        lambda c: ledger.open_account(c, f"{NODE}/others", NODE, "gdp", 0, 10.0, 1.0e-5)
    )
    bench.book(2, first=ENTRIES, account="others")
    bench.look(monkeypatch)
    bench.put_back()
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == frozenset()
    others = bench.database.read_now(lambda c: ledger.read_account(c, f"{NODE}/others"))
    assert others.entries == 4


def test_what_was_released_with_another_coordinator_is_not_handed_in(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator's chain holds its own releases, restored or not."""
    old = order("elsewhere", job_id="job-elsewhere")
    bench.state.reserve(old, FILTER)
    bench.state.open("elsewhere", 1.0, 1.0)
    bench.state.lose("elsewhere")
    bench.state.close_attempt("elsewhere", "post")
    bench.state.witnessed.begin_anew()
    bench.put_back()
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == frozenset()
    assert len(bench.chain()) == ENTRIES


def test_a_coordinator_that_refuses_what_is_handed_in_is_asked_again(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account stays closed to orders, and nothing is lost."""
    bench.book(1, first=ENTRIES)
    bench.look(monkeypatch)
    bench.put_back()

    class Refuses(rpc.WitnessService):
        async def HandIn(self, request: Any, context: Any) -> Any:  # noqa: N802
            raise WrongPhase("LEDGER_DAMAGED", "the chain is damaged")

    bench.look(monkeypatch, Refuses)
    assert bench.state.disputes.all() == []
    assert bench.reason() == "LEDGER_RECONCILING"
    assert bench.state.handing_in.waits()
    bench.look(monkeypatch)
    assert bench.reason() == ""
    assert bench.posted_units() == bench.own_units()


def test_what_was_refused_halfway_is_no_dispute_and_is_handed_in_later(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came in two calls, of which the second was refused. The coordinator has said so, and holds
    what it took: that the rest is not in its chain is nothing that it hides."""
    bench.book(2, first=ENTRIES)
    bench.look(monkeypatch)
    bench.put_back()
    monkeypatch.setattr(handing_in, "STATEMENTS_MAX", 2)
    refusing = _answering(lambda: WrongPhase("LEDGER_DAMAGED", "the chain is damaged"), after=1)
    bench.look(monkeypatch, refusing)
    assert bench.state.disputes.all() == []
    assert len(bench.chain()) == ENTRIES + 2
    assert bench.reason() == "LEDGER_RECONCILING"
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.reason() == ""
    assert bench.posted_units() == bench.own_units()


def test_a_raise_that_is_booked_during_the_handing_in_is_handed_in_later(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stewards may raise a limit at any moment: it is not in the chain that was just read."""
    bench.book(1, first=ENTRIES)
    bench.look(monkeypatch)
    bench.put_back()
    change = raised(bench, [Ed25519PrivateKey.generate() for _ in range(2)])

    class Beside(rpc.WitnessService):
        async def HandIn(self, request: Any, context: Any) -> Any:  # noqa: N802
            answer = await super().HandIn(request, context)
            if not bench.state.ledger.raises(ACCOUNT):
                with bench.state.raising() as own:
                    own.record(change)
            return answer

    bench.look(monkeypatch, Beside)
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == {ACCOUNT}
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == frozenset()
    assert bench.chain()[-1].statement == change


def test_a_coordinator_that_is_away_has_refused_nothing(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look ends there, and nobody is told to compare ledgers."""
    bench.book(1, first=ENTRIES)
    bench.look(monkeypatch)
    bench.put_back()
    away = _answering(lambda: Unavailable("DRAINING", "it ends"), after=0)
    with capture_logs() as logs, pytest.raises(grpc.RpcError):
        bench.look(monkeypatch, away)
    assert logs == []
    assert bench.state.handing_in.waits()


def _answering(refusal: Callable[[], FeddpError], after: int) -> type[rpc.WitnessService]:
    """A coordinator that takes so many calls, and then refuses each."""
    calls = iter(range(1 << 30))

    class Refuses(rpc.WitnessService):
        async def HandIn(self, request: Any, context: Any) -> Any:  # noqa: N802
            if next(calls) >= after:
                raise refusal()
            return await super().HandIn(request, context)

    return Refuses


def test_another_coordinator_is_met_as_one_that_was_never_seen(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its restorations are its own: that it has none is no sign of an older copy."""
    bench.put_back()
    bench.look(monkeypatch)
    assert bench.state.epochs.latest() is not None
    bench.state.leave()
    bench.database.close()
    (bench.folder / "other").mkdir()
    shutil.copyfile(bench.folder / BACKUP, bench.folder / "other" / "coordinator.db")
    bench.database = Database(f"sqlite:///{bench.folder / 'other' / 'coordinator.db'}")
    bench.key = Ed25519PrivateKey.generate()
    bench.write([], head=GENESIS)
    empty = "UPDATE accounts SET posted_units = 0"
    bench.database.write_now(lambda c: c.exec_driver_sql(empty) and None)
    for table in ("checkpoints", "countersignatures"):
        delete = f"DELETE FROM {table}"  # noqa: S608 - names of our own
        bench.database.write_now(lambda c, delete=delete: c.exec_driver_sql(delete) and None)
    bench.look(monkeypatch)
    assert bench.state.epochs.all() == []
    assert bench.state.disputes.all() == []
    bench.database.write_now(
        lambda c: epochs.raise_epoch(c, bench.key, now_s=50.0, backup_made_at_s=1.0)
    )
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == frozenset()
    assert bench.chain() == [], "what was released with the other one was handed in here"
