"""Histories that nobody has thought of: whatever happens to both ledgers, and whenever backups are
made and put back, nothing that a node has released is ever missing once it was handed in."""

import random
from pathlib import Path

import pytest

from coordinator.store import booking, ledger, limits
from node_agent.ledger.own_ledger import OwnLedger
from privacy.filters import make_filter
from privacy.ledger import LimitChange, Statement, sign, verify
from tests.coordinator.store_conformance.test_limits import change
from tests.integration.restorable import (
    Restorable,
    restorable_bench,  # noqa: F401 - a fixture
)
from tests.integration.test_restored_history import exported, file_of, found
from tests.integration.test_witness import (
    ACCOUNT,
    PUBLIC,
    seen,  # noqa: F401 - a fixture
)
from tests.node_agent.samples import LEDGER_KEY, NODE, order

SEEDS = 30
STEPS = 25
FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)


class History:
    """One seed."""

    def __init__(self, bench: Restorable, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.dice = random.Random(seed)
        self.patch = patch
        self.now_s = 100.0
        self.attempts = 0
        self.unheard: list[str] = []
        self.raises = 0
        self.copied_raises = 0

    def play(self) -> None:
        """Some steps, and a last restoration."""
        steps = (
            *(self.release, self.release, self.refuse, self.never_arrives, self.unheard_of),
            *(self.heard, self.raise_limit, self.charge_too_many, self.look, self.back_up),
            self.restore,
        )
        for _ in range(STEPS):
            self.dice.choice(steps)()
            assert self.bench.state.disputes.all() == []
        self.restore()

    # Steps

    def release(self) -> None:
        """An order that ends as it should."""
        self._begin(self._new())

    def _begin(self, attempt_id: str, *, heard: bool = True) -> None:
        state = self.bench.state
        wanted = order(attempt_id, job_id=f"job-{attempt_id}")
        self._book(wanted.statement(NODE, "reserve"))
        state.reserve(wanted, FILTER)
        state.open(attempt_id, 1.0, 1.0)
        state.lose(attempt_id)
        if heard:
            self._book(wanted.statement(NODE, "post"))
            state.close_attempt(attempt_id, "post")
        else:
            self.unheard.append(attempt_id)

    def refuse(self) -> None:
        """One that the node takes back before it has opened the data."""
        attempt_id = self._new()
        wanted = order(attempt_id, job_id=f"job-{attempt_id}")
        self._book(wanted.statement(NODE, "reserve"))
        self.bench.state.reserve(wanted, FILTER)
        self.bench.state.withdraw(attempt_id, "R", "m")
        self._book(wanted.statement(NODE, "void"))

    def never_arrives(self) -> None:
        """One that the node never hears of, as the connection broke."""
        attempt_id = self._new()
        self._book(order(attempt_id, job_id="job-there").statement(NODE, "reserve"))

    def unheard_of(self) -> None:
        """One whose outcome does not reach the coordinator."""
        self._begin(self._new(), heard=False)

    def heard(self) -> None:
        """It does after all."""
        if self.unheard:
            attempt_id = self.unheard.pop()
            self._book(order(attempt_id, job_id=f"job-{attempt_id}").statement(NODE, "post"))
            self.bench.state.close_attempt(attempt_id, "post")

    def charge_too_many(self) -> None:
        """The coordinator waits no longer for one that the node never had."""
        statement = order(self._new(), job_id="job-there").statement(NODE, "reserve")
        for one in (statement, statement.resolved("post")):
            self.bench.database.write_now(lambda c, one=one: booking.book(c, one))

    def raise_limit(self) -> None:
        """Two people raise the limit, and the node says so at its next greeting."""
        number = self.raises + 1
        made = change(9.0 + number, 10.0 + number, number, account=ACCOUNT, node=NODE)
        signature = sign(LEDGER_KEY, made)

        def record(own: OwnLedger) -> None:
            own.record(made)

        with self.bench.state.raising() as own:
            record(own)
        self.raises = number
        self.bench.database.write_now(lambda c: limits.record(c, NODE, PUBLIC, made, signature))

    def look(self) -> None:
        """The node follows the chain."""
        self.bench.look(self.patch)

    def back_up(self) -> None:
        """A backup takes the place of the one before."""
        self.bench.back_up()

    def restore(self) -> None:
        """It is put back, and the node meets it."""
        self.now_s += 10.0
        self.bench.put_back(now_s=self.now_s)
        for attempt_id in self.unheard:  # as the session does with what was ordered before
            self.bench.state.close_attempt(attempt_id, "post")
        self.unheard.clear()
        self.look()
        self.holds()

    def _new(self) -> str:
        self.attempts += 1
        return f"h{self.attempts}"

    def _book(self, statement: Statement) -> None:
        signature = sign(LEDGER_KEY, statement)
        self.bench.database.write_now(lambda c: booking.book(c, statement, signature))

    # What holds after each restoration

    def holds(self) -> None:
        """Nothing is missing, nothing is charged twice, and officers find nothing."""
        bench = self.bench
        assert bench.state.disputes.all() == []
        assert bench.unreconciled() == frozenset()
        assert bench.reason() == ""
        chain = bench.chain()
        said = [one.statement for one in chain]
        posted = [s.attempt_id for s in said if isinstance(s, Statement) and s.kind == "post"]
        own = [one.statement for one in bench.state.ledger.entries()]
        released = {s.attempt_id for s in own if isinstance(s, Statement) and s.kind == "post"}
        assert released <= set(posted)
        assert len(posted) == len(set(posted))
        assert sum(isinstance(one, LimitChange) for one in said) == self.raises
        assert bench.posted_units() >= bench.own_units()
        account = bench.database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
        assert account.balance.pending == ()
        checked = verify(chain, {ACCOUNT: account.verifying_filter}, {NODE: PUBLIC})
        assert checked.ok, checked.problems
        assert found(bench, exported(bench), file_of(bench)) == []


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_that_was_released_is_missing_after_any_history(
    bench: Restorable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seed: int,
) -> None:
    """Releases, refusals, lost orders and answers, raises, backups and restorations, in any
    order."""
    History(bench, seed, monkeypatch).play()
