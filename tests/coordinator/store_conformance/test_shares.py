"""What is left of a node's limits within an account: its own figures, and what was booked since."""

from dataclasses import replace

import pytest
from sqlalchemy import Connection

from coordinator.store import booking, jobs, ledger, shares
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from privacy.calibration import units_for
from privacy.filters import make_filter
from privacy.ledger import Kind, Statement
from protos.feddp.v1 import federation_pb2 as federation
from tests.coordinator.store_conformance.samples import ACCOUNT, statement

HELLO = federation.Hello(
    tasks=[
        federation.Task(name="learn", content_hash="1" * 64, purpose="training"),
        federation.Task(name="judge", content_hash="2" * 64, purpose="evaluation"),
    ]
)
COST = make_filter("gdp", 0, 1.0, 1e-5).cost_units(statement("x").release)
SAID = 11
"""Units that the node says are used of each share."""


def told() -> federation.Account:
    """The account with a limit for one project and one for each purpose."""
    names = (("project", "default"), ("purpose", "training"), ("purpose", "evaluation"))
    return federation.Account(
        name="patients",
        shares=[
            federation.Share(kind=kind, name=name, epsilon_limit=0.9, used_units=SAID)
            for kind, name in names
        ],
    )


@pytest.fixture(autouse=True)
def _two_jobs(database: Database) -> None:
    """A job that learns, and one that judges."""

    def work(connection: Connection) -> None:
        for job_id, task, digest in (("learns", "learn", "1"), ("judges", "judge", "2")):
            resolved = f'{{"task": "{task}"}}'
            made = (job_id, "default", job_id, "u", job_id, b"", resolved, digest * 64)
            jobs.add(connection, JobRecord(*made, "running", 0.0))

    database.write_now(work)


def book(
    database: Database, attempt: str, *kinds: Kind, job: str = "learns", project: str = "default"
) -> None:
    """Some of an attempt's entries."""
    one: Statement = replace(statement(attempt), job_id=job, project=project)
    for kind in kinds:
        database.write_now(lambda c, kind=kind: booking.book(c, one.resolved(kind)))


def heard(database: Database, *open_attempts: str) -> federation.Account:
    """What is kept of a greeting now."""
    account = told()
    kept = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    shares.hear(kept, account, open_attempts)
    return account


def used(database: Database, account: federation.Account) -> list[int]:
    """Attempts that are counted beside what the node said: project, training, evaluation."""

    def work(connection: Connection) -> tuple[shares.Share, ...]:
        kept = ledger.read_account(connection, ACCOUNT)
        return shares.shares_of(connection, kept, account, HELLO)

    found = database.read_now(work)
    assert [str(one) for one in found] == [f"{x.kind} {x.name}" for x in account.shares]
    assert {one.limit_units for one in found} == {units_for("gdp", 0, 0.9, 1e-5)}
    assert all((one.used_units - SAID) % COST == 0 for one in found)
    return [(one.used_units - SAID) // COST for one in found]


def test_what_is_booked_after_a_greeting_is_added_to_it(database: Database) -> None:
    """Reserved or posted, by the project and the purpose of its job; what is void is not."""
    book(database, "before", "reserve", "post")
    account = heard(database)
    assert used(database, account) == [0, 0, 0]
    book(database, "posted", "reserve", "post")
    book(database, "open", "reserve", job="judges")
    book(database, "void", "reserve", "void")
    book(database, "elsewhere", "reserve", "post", project="other")
    assert used(database, account) == [2, 2, 1]
    assert used(database, heard(database, "open")) == [0, 0, 0]


def test_an_order_that_has_not_reached_the_node_is_not_in_its_figures(database: Database) -> None:
    """Reserved before the greeting and unknown to the node: counted. Known to it: in its figures,
    and taken off when it turns out void."""
    book(database, "known", "reserve")
    book(database, "on-its-way", "reserve")
    account = heard(database, "known")
    assert used(database, account) == [1, 1, 0]
    book(database, "on-its-way", "post")
    assert used(database, account) == [1, 1, 0]
    book(database, "known", "void")
    assert used(database, account) == [0, 0, 0]


def test_a_job_whose_task_is_gone_counts_for_every_purpose(database: Database) -> None:
    """Nobody knows which it was: less is ordered, never more."""
    account = heard(database)
    book(database, "x", "reserve", job="unheard-of")
    assert used(database, account) == [1, 1, 1]


def test_an_agent_that_tells_no_limits_has_none(database: Database) -> None:
    """As those of 0.1.0."""
    account = federation.Account(name="patients")
    kept = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    shares.hear(kept, account, [])
    assert database.read_now(lambda c: shares.shares_of(c, kept, account, HELLO)) == ()


def test_a_limit_that_no_filter_can_count_by_is_a_fault_and_no_error(database: Database) -> None:
    """The policy of one node must not stop a job's turn."""
    account = heard(database)
    account.shares[0].epsilon_limit = 1e-9
    kept = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    found = database.read_now(lambda c: shares.shares_of(c, kept, account, HELLO))
    assert (found[0].limit_units, bool(found[0].fault)) == (0, True)
    assert not found[1].fault
