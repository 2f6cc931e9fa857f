"""A coordinator's backup beside a node's ledger that is a copy itself, and older backups restored
before newer ones: both ledgers of one node, over real gRPC."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coordinator.store import booking, checkpoints, epochs
from coordinator.store.database import Database
from node_agent.state.notes import ROLLED_BACK_NOTE
from privacy.ledger import Statement, append, sign
from tests.integration.restorable import (
    BACKUP,
    Restorable,
    restorable_bench,  # noqa: F401 - a fixture
)
from tests.integration.test_restored_history import exported, file_of, found
from tests.integration.test_witness import (
    ACCOUNT,
    ENTRIES,
    FILTER,
    seen,  # noqa: F401 - a fixture
)
from tests.node_agent.samples import LEDGER_KEY, NODE, order


def reserve_signed(bench: Restorable, attempt_id: str) -> None:
    """The chain holds a reservation that the node accepted, and the node's own ledger does not."""
    one = order(attempt_id, job_id="job-there").statement(NODE, "reserve")
    bench.database.write_now(lambda c: booking.book(c, one, sign(LEDGER_KEY, one)))


def reserve_unsigned(bench: Restorable, attempt_id: str) -> None:
    """The order went out before the backup; whether it was accepted after it, nobody knows any
    more: the node's ledger was put back from a copy."""
    bench.reserve_there(attempt_id)
    bench.state.become_copy()


def reserve_unsigned_and_read(bench: Restorable, attempt_id: str) -> None:
    """The copy had read the coordinator's chain since, which held it open."""
    reserve_unsigned(bench, attempt_id)
    with pytest.MonkeyPatch.context() as patch:
        bench.look(patch)


@pytest.mark.parametrize("reserve", [reserve_signed, reserve_unsigned, reserve_unsigned_and_read])
def test_what_a_node_may_have_worked_at_is_spent_and_never_given_back(
    bench: Restorable,
    monkeypatch: pytest.MonkeyPatch,
    reserve: Callable[[Restorable, str], None],
) -> None:
    """A void needs that this ledger cannot have lost the attempt; else it is posted whole, signed,
    in both ledgers, and its order stays refused."""
    before = bench.own_units()
    reserve(bench, "lost")
    bench.back_up()
    bench.put_back()
    bench.look(monkeypatch)
    last = bench.chain()[-1]
    assert isinstance(last.statement, Statement)
    assert (last.statement.attempt_id, last.statement.kind) == ("lost", "post")
    assert last.node_signature == sign(LEDGER_KEY, last.statement)
    cost = FILTER.cost_units(last.statement.release)
    assert bench.own_units() == before + cost == bench.posted_units()
    assert bench.state.epochs.is_closed("lost")
    assert bench.state.memory.may_have_come("lost"), "no void answers its order, booked or not"
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == frozenset()
    bench.look(monkeypatch)
    assert bench.own_units() == before + cost, "once"


def test_what_a_copy_holds_reserved_is_spent_unless_the_node_had_given_it_back(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been opened after the copy was made. What the node had signed void since is void
    in the chain, posted in its own ledger, and no dispute."""
    before = bench.own_units()
    for attempt_id in ("opened", "given-back"):
        bench.state.reserve(order(attempt_id, job_id=f"job-{attempt_id}"), FILTER)
        one = order(attempt_id, job_id=f"job-{attempt_id}").statement(NODE, "reserve")
        bench.database.write_now(lambda c, one=one: booking.book(c, one, sign(LEDGER_KEY, one)))
    void = order("given-back", job_id="job-given-back").statement(NODE, "void")
    bench.database.write_now(lambda c: booking.book(c, void, sign(LEDGER_KEY, void)))
    bench.back_up()
    bench.state.become_copy()
    assert bench.state.recover() == ["opened", "given-back"]
    for attempt_id in ("opened", "given-back"):
        bench.state.close_attempt(attempt_id, "void")
    bench.put_back()
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == frozenset()
    kinds = {e.statement.attempt_id: e.statement.kind for e in bench.chain()}
    assert (kinds["opened"], kinds["given-back"]) == ("post", "void")
    cost = FILTER.cost_units(void.release)
    assert (bench.posted_units(), bench.own_units()) == (before + cost, before + 2 * cost)


def test_a_void_that_the_chain_holds_of_an_update_that_left_is_a_dispute(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ever, where this ledger is no copy."""
    one = order("left", job_id="job-left")
    bench.state.reserve(one, FILTER)
    bench.state.open("left", 1.0, 1.0)
    bench.state.lose("left")
    for kind in ("reserve", "void"):
        said = replace(one.statement(NODE, "reserve"), kind=kind)
        bench.database.write_now(lambda c, said=said: booking.book(c, said, sign(LEDGER_KEY, said)))
    bench.look(monkeypatch)
    assert "void there and posted here" in bench.state.disputes.all()[0].text


def test_a_copy_knows_what_was_open_before_it_and_has_not_forgotten_what_is_over(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what lies below the head that it had seen; what is ordered later is no doubt."""
    reserve_signed(bench, "open")
    bench.reserve_there("given-back")
    void = order("given-back", job_id="job-there").statement(NODE, "void")
    bench.database.write_now(lambda c: booking.book(c, void, sign(LEDGER_KEY, void)))
    bench.look(monkeypatch)
    bench.state.become_copy()
    assert bench.state.memory.may_have_come("later"), "until the chain was read"
    bench.look(monkeypatch)
    for attempt_id, doubted in (("open", True), ("given-back", False), ("later", False)):
        assert bench.state.memory.may_have_come(attempt_id) == doubted
    assert bench.state.disputes.all() == []


@pytest.mark.parametrize(
    "terms",
    [
        {"release_mechanism": "none", "release_noise_multiplier": None},
        {"release_noise_multiplier": 0.1},
        {"release_noise_multiplier": 1e-6, "release_steps": 1000},
    ],
)
@pytest.mark.parametrize("caught_up", [True, False])
def test_the_coordinators_word_alone_spends_no_more_than_an_order_could(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch, terms: dict[str, Any], caught_up: bool
) -> None:
    """It reserves what no node has heard of, without noise or beyond the limit, and declares a
    restoration: a ledger that was a copy books none of it."""
    before = bench.own_units()
    bench.state.become_copy()
    if caught_up:
        bench.look(monkeypatch)
    bench.database.write_now(
        lambda c: c.exec_driver_sql("UPDATE accounts SET epsilon_limit_highest = 1e9") and None
    )
    one = order("invented", job_id="job-invented", **terms).statement(NODE, "reserve")
    chain = bench.chain()
    bench.write([*chain, append(one, chain[-1])])
    bench.back_up()
    bench.put_back()
    bench.look(monkeypatch)
    assert bench.own_units() == before
    account = bench.state.ledger.account(ACCOUNT)
    assert account is not None
    assert account.guarantee


def test_a_release_that_the_coordinators_budget_does_not_hold_is_a_dispute(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unsigned charge of the newer backup stands in its place. It fails closed, and the steward
    who has settled it ends that: the hospital's own ledger holds both."""
    fill(bench, room_for=2)
    shelf = Shelf(bench)
    shelf.back_up("older")
    for kind in ("reserve", "post"):
        said = order("never-came", job_id="job-there").statement(NODE, kind)
        bench.database.write_now(lambda c, said=said: booking.book(c, said))
    bench.look(monkeypatch)
    shelf.back_up("newer")
    shelf.put_back("older", 100.0)
    bench.look(monkeypatch)
    bench.book(2, first=1000)
    bench.look(monkeypatch)
    spent = bench.own_units()
    shelf.put_back("newer", 200.0)
    bench.look(monkeypatch)
    (dispute,) = bench.state.disputes.all()
    assert "does not take what this node has released" in dispute.text
    assert bench.unreconciled() == {ACCOUNT}
    bench.state.settle(ACCOUNT)
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == frozenset()
    assert bench.own_units() == spent


def fill(bench: Restorable, room_for: int) -> None:
    """Spend the account but for so many more releases."""
    cost = FILTER.cost_units(order("any").release)
    left = (FILTER.limit_units - bench.own_units()) // cost
    bench.book(left - room_for, first=500)


def test_a_void_of_a_newer_backup_is_no_dispute_with_what_a_copy_had_spent(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node had refused the order, lost its ledger, and posted the order whole when an older
    backup showed it reserved."""
    shelf = Shelf(bench)
    bench.reserve_there("refused")
    shelf.back_up("older")
    void = order("refused", job_id="job-there").statement(NODE, "void")
    bench.database.write_now(lambda c: booking.book(c, void, sign(LEDGER_KEY, void)))
    shelf.back_up("newer")
    shelf.put_back("older", 100.0)
    bench.state.become_copy()
    bench.look(monkeypatch)
    assert "post" in {one.kind for one in bench.state.ledger.statements_of("refused")}
    shelf.put_back("newer", 200.0)
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.unreconciled() == frozenset()


def test_nothing_is_booked_in_an_old_ledger_before_a_newer_copy_has_taken_its_place(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy holds the same entries, maybe in another order, and would be refused as older."""
    before = bench.state.ledger.entries()
    for kind in ("reserve", "post"):
        said = order("lost", job_id="job-there").statement(NODE, kind)
        bench.database.write_now(lambda c, said=said: booking.book(c, said, sign(LEDGER_KEY, said)))
    bench.state.notes.keep(ROLLED_BACK_NOTE, "it lacks lost")
    bench.look(monkeypatch)
    assert bench.state.ledger.entries() == before
    bench.state.notes.keep(ROLLED_BACK_NOTE, "")
    bench.state.become_copy()
    bench.look(monkeypatch)
    assert len(bench.state.ledger.entries()) == len(before) + 2


class Shelf:
    """Backups of one coordinator, of several moments."""

    def __init__(self, bench: Restorable) -> None:
        self._bench = bench

    def back_up(self, name: str) -> None:
        """Keep one more."""
        self._bench.back_up()
        shutil.copyfile(self._bench.folder / BACKUP, self._bench.folder / name)

    def put_back(self, name: str, now_s: float) -> None:
        """Restore one of them at a moment."""
        shutil.copyfile(self._bench.folder / name, self._bench.folder / BACKUP)
        self._bench.put_back(now_s=now_s)


@pytest.mark.parametrize("third", ["newer", "older", "between"])
def test_an_older_backup_may_be_restored_first_and_a_newer_one_after_it(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch, third: str
) -> None:
    """The newer one knows nothing of the first restoration, and holds checkpoints whose numbers the
    ended history had as well: none is another than the node has seen in that history."""
    shelf = Shelf(bench)
    for number, name in enumerate(("older", "between", "newer")):
        shelf.back_up(name)
        bench.book(2, first=ENTRIES + 2 * number)
        bench.look(monkeypatch)
    spent = bench.own_units()
    for number, name in enumerate(("older", "newer", third)):
        shelf.put_back(name, now_s=100.0 * (number + 1))
        bench.look(monkeypatch)
        assert bench.state.disputes.all() == [], (number, name)
        for more in range(3):
            bench.book(1, first=100 * (number + 1) + more)
            bench.look(monkeypatch)
        assert bench.unreconciled() == frozenset()
        assert bench.posted_units() == bench.own_units() > spent
        assert bench.reason() == ""
        assert found(bench, exported(bench), file_of(bench)) == [], "officers find no fault either"


def test_a_newer_backup_that_was_rewritten_is_found_after_an_older_one_as_well(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the node saw of that history before the first restoration is held against it."""
    shelf = Shelf(bench)
    for number, name in enumerate(("older", "between")):
        shelf.back_up(name)
        bench.book(2, first=ENTRIES + 2 * number)
        bench.look(monkeypatch)
    shelf.put_back("older", 100.0)
    bench.look(monkeypatch)
    for more in range(3):
        bench.book(1, first=100 + more)
        bench.look(monkeypatch)
    bench.database.close()
    shutil.copyfile(bench.folder / "between", bench.folder / "coordinator.db")
    bench.database = Database(f"sqlite:///{bench.folder / 'coordinator.db'}")
    bench.reserve_there("instead")
    bench.database.write_now(lambda c: checkpoints.renew(c, bench.key, 150.0))
    bench.database.write_now(
        lambda c: epochs.raise_epoch(c, bench.key, now_s=200.0, backup_made_at_s=50.0)
    )
    bench.look(monkeypatch)
    assert "names another checkpoint 3" in bench.state.disputes.all()[0].text
    assert found(bench, exported(bench), file_of(bench)) != []


def test_a_node_that_came_back_hands_in_what_it_released_here_before(
    bench: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had moved away meanwhile: what it finds in this chain again is of this coordinator, and
    not of another one."""
    bench.back_up()
    bench.book(2, first=ENTRIES)
    bench.look(monkeypatch)
    spent = bench.own_units()
    bench.state.witnessed.begin_anew()  # at another coordinator
    bench.state.witnessed.begin_anew()  # and back
    bench.look(monkeypatch)
    bench.put_back()
    assert bench.posted_units() < spent
    bench.look(monkeypatch)
    assert bench.posted_units() == spent == bench.own_units()
    assert bench.state.disputes.all() == []
