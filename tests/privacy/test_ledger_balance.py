"""Balances: never above the limit, each attempt resolved once, repeats change nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ledger_samples import ACCOUNT, FILTER, FILTERS, KEY, KEYS, statement

from privacy.ledger import Balance, Entry, Statement, append, sign, verify
from protos.errors import BudgetRefused, Conflict, NotFound


def test_a_reservation_that_meets_the_limit_fits_and_one_unit_more_does_not() -> None:
    """Equality fits; what is pending counts as spent."""
    cost = FILTER.cost_units(statement().release)
    room = FILTER.limit_units - cost
    assert Balance(FILTER, posted_units=room).reserve(statement()).remaining_units == 0
    with pytest.raises(BudgetRefused) as caught:
        Balance(FILTER, posted_units=room + 1).reserve(statement())
    assert caught.value.reason == "BUDGET_REFUSED"
    half = Balance(FILTER, posted_units=room - cost).reserve(statement("a1"))
    full = half.reserve(statement("a2"))
    assert full.remaining_units == 0
    with pytest.raises(BudgetRefused):
        full.reserve(statement("a3"))
    assert full.void("a1").reserve(statement("a3")).remaining_units == 0


def test_repeats_change_nothing() -> None:
    """The same reserve, post or void again gives the very same balance."""
    reserved = Balance(FILTER).reserve(statement())
    assert reserved.reserve(statement()) is reserved
    for resolve in (Balance.post, Balance.void):
        once = resolve(reserved, "a1")
        assert resolve(once, "a1") is once


def test_an_attempt_has_one_statement_and_one_end() -> None:
    """Another statement, the other end, an unknown attempt, a finished attempt: refused."""
    reserved = Balance(FILTER).reserve(statement())
    with pytest.raises(Conflict, match="another statement") as caught:
        reserved.reserve(statement(round=2))
    assert caught.value.reason == "ATTEMPT_CONFLICT"
    with pytest.raises(Conflict) as caught:
        reserved.apply(statement(kind="post", steps=2))
    assert caught.value.reason == "ATTEMPT_CONFLICT"
    for first, second in ((Balance.post, Balance.void), (Balance.void, Balance.post)):
        with pytest.raises(Conflict) as caught:
            second(first(reserved, "a1"), "a1")
        assert caught.value.reason == "ATTEMPT_RESOLVED"
        with pytest.raises(Conflict) as caught:
            first(reserved, "a1").reserve(statement())
        assert caught.value.reason == "ATTEMPT_RESOLVED"
        with pytest.raises(NotFound) as missing:
            first(reserved, "a9")
        assert missing.value.reason == "ATTEMPT_UNKNOWN"


def test_a_release_without_accounting_ends_the_guarantee_when_posted() -> None:
    """For ever, at no cost in units; not while it is only reserved, not when it is void."""
    bare = statement(mechanism="none", noise_multiplier=None)
    reserved = Balance(FILTER).reserve(bare)
    assert reserved.guarantee
    assert reserved.void("a1").guarantee
    posted = reserved.post("a1")
    assert not posted.guarantee
    assert posted.posted_units == 0
    assert not posted.reserve(statement("a2")).post("a2").guarantee


def test_reading_no_data_is_free_on_a_spent_account() -> None:
    """A spent account can still be probed with work that reads nothing."""
    idle = statement(mechanism="no_data", noise_multiplier=None, steps=0, declared_n=0)
    spent = Balance(FILTER, posted_units=FILTER.limit_units + 5)
    assert spent.remaining_units == 0
    assert spent.reserve(idle).post("a1").posted_units == FILTER.limit_units + 5


def test_a_store_can_rebuild_a_balance_from_its_rows() -> None:
    """Posted units, open rows and the end of the attempt at hand are all that is needed."""
    whole = Balance(FILTER)
    for attempt in ("a1", "a2", "a3"):
        whole = whole.reserve(statement(attempt))
    whole = whole.post("a1")
    rows = [tuple(one) for one in whole.pending]
    rebuilt = Balance(
        FILTER,
        posted_units=whole.posted_units,
        pending=tuple(type(whole.pending[0])(*row) for row in rows),
        posted=frozenset({"a1"}),
    )
    assert rebuilt == whole
    assert rebuilt.post("a1") == whole
    assert rebuilt.void("a2") == whole.void("a2")


class LedgerMachine(RuleBasedStateMachine):
    """Any order of calls on one account, beside a plain model of what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.balance = Balance(FILTER)
        self.ends: dict[str, str] = {}
        self.costs: dict[str, int] = {}
        self.entries: list[Entry] = []

    def attempt(self, kind: str, one: Statement) -> bool:
        """Apply; True if the balance changed."""
        before = self.balance
        try:
            self.balance = before.apply(one)
        except (BudgetRefused, Conflict, NotFound):
            assert self.balance is before
            return False
        if self.balance is before:
            return False
        self.entries.append(append(one, self.entries[-1] if self.entries else None, sign(KEY, one)))
        return True

    @rule(n=st.integers(0, 12), steps=st.integers(1, 4))
    def reserve(self, n: int, steps: int) -> None:
        one = statement(f"a{n}", steps=steps)
        cost = FILTER.cost_units(one.release)
        held = sum(c for a, c in self.costs.items() if self.ends.get(a) != "void")
        may = f"a{n}" not in self.costs and held + cost <= FILTER.limit_units
        assert self.attempt("reserve", one) == may
        if may:
            self.costs[f"a{n}"] = cost

    @rule(n=st.integers(0, 12), kind=st.sampled_from(["post", "void"]))
    def resolve(self, n: int, kind: str) -> None:
        attempt_id = f"a{n}"
        reserved = next(
            (e.statement for e in self.entries if e.statement.attempt_id == attempt_id),
            statement(attempt_id),
        )
        may = attempt_id in self.costs and attempt_id not in self.ends
        assert self.attempt(kind, reserved.resolved(kind)) == may  # type: ignore[arg-type]
        if may:
            self.ends[attempt_id] = kind

    @invariant()
    def sums_are_those_of_the_model(self) -> None:
        posted = sum(c for a, c in self.costs.items() if self.ends.get(a) == "post")
        pending = sum(c for a, c in self.costs.items() if a not in self.ends)
        assert (self.balance.posted_units, self.balance.pending_units) == (posted, pending)
        assert posted + pending <= FILTER.limit_units

    def teardown(self) -> None:
        found = verify(self.entries, FILTERS, KEYS)
        assert found.ok
        if self.entries:
            assert found.balances[ACCOUNT].posted_units == self.balance.posted_units
            assert found.balances[ACCOUNT].pending == self.balance.pending


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(8)), st.permutations(range(8)))
def test_sums_do_not_depend_on_the_order(first: list[int], second: list[int]) -> None:
    """Two sides that learn of the same events in different orders hold the same sums."""

    def folded(order: list[int]) -> Balance:
        balance = Balance(FILTER)
        for n in order:
            balance = balance.reserve(statement(f"a{n}", noise_multiplier=40.0 + n))
        for n in reversed(order):
            balance = balance.post(f"a{n}") if n % 2 else balance.void(f"a{n}")
        return balance

    assert folded(first) == folded(second)
