"""What is shown of accounts and refused of jobs, from a real store."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from coordinator import views
from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import Job, parse_job
from coordinator.store import ledger, people
from coordinator.store.database import Database
from coordinator.store.schema import accounts, entries
from coordinator.submissions import check_delta
from privacy.accounting import epsilon_spent
from privacy.entries import GENESIS
from privacy.ledger import Statement
from privacy.releases import Release
from protos.errors import Malformed, NotFound
from protos.feddp.v1 import budgets_pb2
from protos.feddp.v1 import federation_pb2 as federation

ACCOUNT = "a/patients"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A store with one node and one account of epsilon 5."""
    opened = Database(f"sqlite:///{tmp_path / 'c.db'}")
    opened.migrate()
    opened.write_now(
        lambda c: people.invite(
            c, "a", "hpc", "s", spiffe_id="spiffe://t/node/a", now_s=0.0, expires_at_s=9.0
        )
    )
    opened.write_now(lambda c: ledger.open_account(c, ACCOUNT, "a", "gdp", 0, 5.0, 1e-5))
    yield opened
    opened.close()


def post(database: Database, releases: list[Release]) -> None:
    """A reserve and a post for each; nothing here looks at hashes."""
    rows = []
    for number, one in enumerate(releases):
        for step, kind in enumerate(("reserve", "post")):
            statement = Statement(
                kind,  # type: ignore[arg-type]
                f"t{number}",
                "default",
                "a",
                ACCOUNT,
                "heart" if number % 2 else "lungs",
                "j",
                1,
                "patient",
                199,
                one.mechanism,
                one.noise_multiplier,
                one.sample_rate,
                one.steps,
            )
            seq = 2 * number + step + 1
            fixed = {"seq": seq, "prev_hash": GENESIS, "hash": GENESIS, "node_signature": b""}
            rows.append({**statement.fields(), **fixed})
    database.write_now(lambda c: c.execute(entries.insert(), rows))


def shown(database: Database, data_set: str = "") -> list[budgets_pb2.BudgetAccount]:
    return database.read_now(lambda c: views.accounts(c, data_set))


def test_an_accounts_figures_are_those_of_its_posts(database: Database) -> None:
    """Equal releases for two data sets are counted together, and each mechanism is."""
    used = [Release("gaussian", 20.0, 1.0, 5)] * 3 + [Release("laplace", 15.0, 1.0, 2)]
    post(database, used)
    (account,) = shown(database)
    assert list(account.data_sets) == ["heart", "lungs"]
    assert account.epsilon_spent == epsilon_spent(used, 1e-5)
    assert 0 < account.efficiency <= 1 + 1e-6
    assert account.efficiency == pytest.approx(
        min(account.epsilon_spent, account.epsilon_booked) / account.epsilon_booked
    )
    assert account.booked_to_naive == pytest.approx(account.epsilon_booked / account.epsilon_naive)
    assert shown(database, "kidneys") == []


def test_a_lowered_limit_is_shown_beside_the_guarantee_that_it_does_not_lower(
    database: Database,
) -> None:
    """The account promised 5 before; with a release that is not accounted for it has none."""
    post(database, [Release("gaussian", 20.0, 1.0, 5)])
    database.write_now(lambda c: c.execute(update(accounts).values(entries=2)))
    database.write_now(lambda c: ledger.open_account(c, ACCOUNT, "a", "gdp", 0, 1.5, 1e-5))
    (account,) = shown(database)
    assert (account.epsilon_limit, account.epsilon_guarantee) == (1.5, 5.0)
    database.write_now(lambda c: c.execute(update(accounts).values(guarantee=False)))
    (account,) = shown(database)
    assert not account.HasField("epsilon_guarantee")


def test_an_account_without_guarantee_has_no_figures(database: Database) -> None:
    """One release that was not accounted for, and none of them means anything."""
    post(database, [Release("gaussian", 20.0, 1.0, 5), Release("none", None, 1.0, 5)])
    (account,) = shown(database)
    for name in ("epsilon_spent", "epsilon_booked", "epsilon_naive", "efficiency"):
        assert not account.HasField(name)


def test_a_post_that_the_filter_never_admitted_has_no_figure_and_no_crash(
    database: Database,
) -> None:
    """The ledger was changed by hand: verifying it names the entry, showing it must still work."""
    post(database, [Release("discrete_gaussian", 20.0, 1.0, 5)])
    (account,) = shown(database)
    assert not account.HasField("epsilon_spent")


def test_ten_thousand_entries_are_shown_within_a_second(database: Database) -> None:
    """The database groups equal releases, so that neither reading nor counting grows with them."""
    post(database, [Release("gaussian", 900.0 + i % 4, 1.0, 5) for i in range(5000)])
    shown(database, "lungs")  # imports the library
    views._figures.cache_clear()
    began = time.process_time()
    (account,) = shown(database)
    assert time.process_time() - began < 1.0
    assert account.epsilon_spent > 0


def job(delta: float) -> Job:
    text = b"name: a\ntask: tabular-classifier\ndataset: heart\nprivacy: {target_epsilon: 1}\n"
    return replace(parse_job(text, CoordinatorConfig()), delta=delta)


def node(name: str, declared_n: int, delta: float) -> people.NodeRecord:
    hello = federation.Hello(
        data_sets=[federation.DataSet(name="heart", account="p", declared_n=declared_n)],
        accounts=[federation.Account(name="p", delta=delta)] if delta else [],
    )
    return people.NodeRecord(name, "edge", "enrolled", b"", 0.0, hello)


def test_a_jobs_delta_of_one_over_n_is_refused() -> None:
    """Where every hospital with that delta is too large for it; else those alone stay out."""
    small, large = node("s", 199, 1e-5), node("l", 100_000, 1e-5)
    check_delta(job(1e-5), [small, large])
    with pytest.raises(Malformed, match=r"l declares 100000 patients.*below 1/100000") as caught:
        check_delta(job(1e-5), [large, node("other", 10, 1e-6)])
    assert caught.value.reason == "DELTA_TOO_LARGE"
    with pytest.raises(Malformed) as caught:
        check_delta(job(1e-7), [small, large])
    assert caught.value.reason == "DELTA_MISMATCH"
    check_delta(replace(job(1e-5), mechanism="none"), [large])


@pytest.mark.parametrize(
    ("delta", "hospitals", "said"),
    [
        (0.01, [("alpha", 199, 1e-5), ("beta", 303, 1e-6)], "of these, 1e-05 at most"),
        (1 / 303, [("beta", 303, 1e-5)], "set privacy.delta to that"),
        # An account whose own delta is too large is not published, and its data set is.
        (0.5, [("beta", 303, 0.0)], "the hospitals' data stewards set it"),
    ],
)
def test_a_delta_of_one_over_n_names_the_hospital_and_what_would_do(
    delta: float, hospitals: list[tuple[str, int, float]], said: str
) -> None:
    """Also where it is no account's delta: that it is too large is the more important half."""
    with pytest.raises(Malformed) as caught:
        check_delta(job(delta), [node(*one) for one in hospitals])
    assert caught.value.reason == "DELTA_TOO_LARGE"
    message = caught.value.message
    assert f"delta is {delta:g}, and beta declares 303 patients" in message
    assert "There delta must be below 1/303" in message
    # One advice, and not two: another figure than the accounts' would be refused in its turn.
    assert ("(0.0033 will do)" in message) == ("set privacy.delta to" not in message)
    assert message.endswith(said)


def test_a_data_set_without_a_valid_account_is_named_as_such() -> None:
    """There is no delta that the engineer could set."""
    with pytest.raises(NotFound, match="`feddp agent status` there says why") as caught:
        check_delta(job(1e-5), [node("beta", 303, 0.0)])
    assert caught.value.reason == "ACCOUNT_UNKNOWN"
