"""Turns against a real database: many events, one transaction, and nothing by halves."""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from certs.mandates import sign
from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import parse_job
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine, turn_taker
from coordinator.rounds.answers import Answers
from coordinator.rounds.live import LiveJob, job_to_json, plan_of, replay
from coordinator.rounds.phases import Aggregating, Course, Ended, Selecting, Training
from coordinator.rounds.turn_taker import TurnTaker
from coordinator.rounds.turns import Turn, take_turn
from coordinator.sessions import Sessions
from coordinator.store import epochs, jobs, ledger, people
from coordinator.store.booking import Books
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from protos.errors import InvariantBroken, NotFound
from protos.feddp.v1 import federation_pb2 as federation
from protos.feddp.v1.mandates_pb2 import SignedMandate
from tests.attackers import drop_guards
from tests.certs.test_mandates import KEY, MANDATE

NODES = ("a", "b", "c", "d")
HASH = "f" * 64
SPEC = b"""
name: small
task: "null"
dataset: cohort
federation: {rounds: 2}
"""


class World:
    """A database with four nodes that are connected, and one job."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.migrate()
        self.sessions = Sessions(30.0, 10.0)
        self.answers = Answers(self.sessions, lambda _live, _node: None)
        self.writes = 0
        for node in NODES:
            self.database.write_now(lambda x, n=node: self._add_node(x, n))
            self.sessions.open(node)
        job = parse_job(SPEC, CoordinatorConfig())
        record = JobRecord(
            "j", "default", "small", "u", "r", SPEC, job_to_json(job), HASH, "running", 0.0
        )
        first = e.JobSubmitted("m0")
        phase, _ = machine.start(plan_of(job), first, 0.0)
        self.live = LiveJob(record, job, phase, 1)

        def begin(connection: Connection) -> None:
            jobs.add(connection, record)
            jobs.append(connection, "j", 0, 0.0, first)

        self.database.write_now(begin)

    def _add_node(self, connection: Connection, node: str) -> None:
        people.invite(
            connection, node, "edge", node, spiffe_id=f"x/{node}", now_s=0.0, expires_at_s=9.0
        )
        hello = federation.Hello(
            data_sets=[
                federation.DataSet(
                    name="cohort", account="patients", declared_n=50, tasks=[f"null@{HASH}"]
                )
            ],
            accounts=[
                federation.Account(
                    name="patients",
                    filter="gdp",
                    delta=1e-5,
                    epsilon_limit=1.0,
                    epsilon_per_job_max=1.0,
                    noise_multiplier_min=1.0,
                )
            ],
        )
        people.keep_hello(connection, node, hello, 0.0)
        ledger.open_account(connection, f"{node}/patients", node, "gdp", 0, 1.0, 1e-5)

    def turn(self, *inputs: Any) -> Turn:
        """One turn; memory follows."""
        turn = self.database.write_now(lambda x: take_turn(x, self.live, inputs, self.answers, 5.0))
        self.live.phase, self.live.steps = turn.phase, turn.steps
        return turn

    def attempts(self) -> list[str]:
        """Ids of the round's attempts."""
        phase: Any = self.live.phase
        return [one.attempt_id for one in phase.round.attempts]

    def reload(self) -> object:
        """The phase that the journal adds up to."""
        steps = self.database.read_now(lambda x: jobs.history(x, "j"))
        return replay(plan_of(self.live.job), steps)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(f"sqlite:///{tmp_path / 'c.db'}")
    yield made
    made.database.close()


def update(attempt_id: str) -> e.UpdateReceived:
    return e.UpdateReceived(attempt_id, "d" * 64, 400, b"post")


def test_from_a_survey_to_the_orders_in_one_transaction(world: World) -> None:
    """Survey, selection and reservations follow from each other inside the database."""
    turn = world.turn(c.Survey())
    assert [type(one.event).__name__ for one in turn.taken] == ["NodesSurveyed", "BudgetsReserved"]
    assert isinstance(world.live.phase, Training)
    assert turn.taken[-1].asked == tuple(c.SendOrder(one) for one in world.attempts())
    assert turn.booked == {"reserve": 4}
    assert world.reload() == (world.live.phase, world.live.steps)


def test_what_arrived_together_is_journalled_together(world: World) -> None:
    """Acceptances and updates of all nodes, then the fold to the next round's orders."""
    world.turn(c.Survey())
    ids = world.attempts()
    accepted = [e.OrderWasAccepted(one, b"reserve") for one in ids]
    turn = world.turn(*accepted, *(update(one) for one in ids))
    assert len(turn.taken) == 8
    assert turn.booked == {"post": 4}
    assert isinstance(world.live.phase, Aggregating)
    folded = e.UpdatesFolded(1, "m1", 400, None, None, False)
    turn = world.turn(lambda _connection, _live: folded)
    assert [type(one.event).__name__ for one in turn.taken] == [
        "UpdatesFolded",
        "ModelPublished",
        "NodesSurveyed",
        "BudgetsReserved",
    ]
    assert isinstance(world.live.phase, Training)
    assert world.live.phase.round.number == 2
    assert c.ForgetUpdates(1) in turn.taken[1].asked
    assert world.reload() == (world.live.phase, world.live.steps)
    listed = world.database.read_now(jobs.models_of)
    assert [(one.kind, one.round, one.digest) for one in listed] == [("round", 1, "m1")]
    signed = world.database.read_now(
        lambda x: [
            (one.statement.kind, one.node_signature)
            for node in NODES
            for one in ledger.chain(x, f"{node}/patients")
            if one.statement.round == 1
        ]
    )
    assert sorted(signed) == [("post", b"post")] * 4 + [("reserve", b"reserve")] * 4


def test_an_input_that_the_phase_does_not_know_harms_no_other(world: World) -> None:
    """It is told to whoever gave it; the turn goes on."""
    turn = world.turn(e.AnswerWritten("x"), c.Survey())
    assert list(turn.faults) == [0]
    assert isinstance(turn.faults[0], InvariantBroken)
    assert isinstance(world.live.phase, Training)


def test_a_turn_that_fails_has_not_happened(world: World) -> None:
    """A reply that raises takes back what was booked before it."""

    def broken(_connection: Connection, _live: LiveJob) -> None:
        raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        world.turn(c.Survey(), broken)
    assert isinstance(world.live.phase, Selecting)
    assert world.reload() == (world.live.phase, 1)
    accounts = world.database.read_now(ledger.all_accounts)
    assert all(one.entries == 0 and not one.balance.pending for one in accounts)


class Taker:
    """A turn taker on a loop of its own; counts the transactions."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.turns: list[Turn] = []
        self.caught_up = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.taker = TurnTaker(
            world.database,
            world.answers,
            self._keep,
            lambda _live, turn: self.turns.append(turn),
            self._catch_up,
        )

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _catch_up(self, _live: LiveJob) -> None:
        self.caught_up += 1


def test_events_that_arrive_during_a_turn_share_the_next(world: World) -> None:
    """Whatever their number, two transactions are enough."""
    world.turn(c.Survey())
    ids = world.attempts()

    async def scene() -> None:
        taker = Taker(world)
        for one in ids:
            taker.taker.note(world.live, e.OrderWasAccepted(one, b"reserve"))
        await asyncio.gather(*(taker.taker.take(world.live, update(one)) for one in ids))
        assert len(taker.turns) <= 2
        assert sum(len(turn.taken) for turn in taker.turns) == 8

    asyncio.run(scene())
    assert isinstance(world.live.phase, Aggregating)


def test_one_input_that_the_ledger_refuses_fails_alone(world: World) -> None:
    """The others of its turn are taken as if it had not been there."""
    world.turn(c.Survey())
    ids = world.attempts()

    def refused(_connection: Connection, _live: LiveJob) -> None:
        raise NotFound("ATTEMPT_UNKNOWN", "there is no such attempt")

    async def scene() -> list[Any]:
        taker = Taker(world)
        inputs = [update(ids[0]), refused, update(ids[1])]
        return await asyncio.gather(
            *(taker.taker.take(world.live, one) for one in inputs), return_exceptions=True
        )

    first, second, third = asyncio.run(scene())
    assert (first, third) == (None, None)
    assert isinstance(second, NotFound)
    phase: Any = world.live.phase
    assert len(phase.round.received) == 2
    assert world.reload() == (world.live.phase, world.live.steps)


def damage(world: World, node: str) -> None:
    """Change an account's head, as a broken disk or somebody with the file does."""
    change = "UPDATE accounts SET head_hash = 'x' WHERE node = ?"
    world.database.write_now(lambda x: x.exec_driver_sql(change, (node,)))


def test_a_damaged_account_leaves_its_node_out_and_no_other(world: World) -> None:
    """Known before anything is ordered; the reason says whose account and what to do."""
    damage(world, "b")
    world.turn(c.Survey())
    phase: Any = world.live.phase
    assert sorted(one.node for one in phase.round.attempts) == ["a", "c", "d"]
    (left_out,) = phase.round.left_out
    assert (left_out.node, left_out.reason, left_out.for_good) == ("b", "LEDGER_DAMAGED", False)
    assert "b/patients" in left_out.message
    assert "feddp budget verify" in left_out.message


def test_an_account_that_is_damaged_after_the_survey_is_refused_at_the_reservation(
    world: World,
) -> None:
    """The others are reserved for in the same transaction."""

    def late(books: Books, live: LiveJob, command: c.InsideCommand) -> e.Event | None:
        if isinstance(command, c.ReserveBudgets):
            change = "UPDATE accounts SET head_hash = 'x' WHERE node = 'b'"
            books.connection.exec_driver_sql(change)
        return world.answers(books, live, command)

    turn = world.database.write_now(lambda x: take_turn(x, world.live, [c.Survey()], late, 5.0))
    phase: Any = turn.phase
    assert sorted(one.node for one in phase.round.attempts) == ["a", "c", "d"]
    assert [(one.node, one.reason) for one in phase.round.left_out] == [("b", "LEDGER_DAMAGED")]


def test_reservations_below_quorum_are_not_made(world: World) -> None:
    """Two of at least three: a round that could never end charges nobody, nor leaves a reservation
    that belongs to no round."""

    def late(books: Books, live: LiveJob, command: c.InsideCommand) -> e.Event | None:
        if isinstance(command, c.ReserveBudgets):
            change = "UPDATE accounts SET head_hash = 'x' WHERE node IN ('b', 'd')"
            books.connection.exec_driver_sql(change)
        return world.answers(books, live, command)

    turn = world.database.write_now(lambda x: take_turn(x, world.live, [c.Survey()], late, 5.0))
    assert isinstance(turn.phase, Selecting)
    assert turn.booked == {}
    accounts = world.database.read_now(ledger.all_accounts)
    assert all(one.entries == 0 and not one.balance.pending_units for one in accounts)


def test_of_what_a_node_said_it_can_do_the_least_counts(world: World) -> None:
    """It may be as busy again; an order that it refuses costs a round its time."""
    world.turn(c.Survey())
    attempt_id = world.attempts()[0]
    phase: Any = world.live.phase
    node = phase.round.attempts[0].node
    world.turn(e.OrderWasRefused(attempt_id, "STEPS_TOO_MANY", "m", b"v", 2))
    phase = world.live.phase
    second = replace(phase.round.attempts[0], attempt_id="second", steps_possible=5)
    record = replace(phase.round, attempts=(*phase.round.attempts, second))
    world.live.phase = replace(phase, round=record)
    assert world.live.steps_possible(node) == 2


def test_a_jobs_row_says_how_it_stands(world: World) -> None:
    """By it a start finds the jobs that go on."""

    def status() -> str:
        return world.database.read_now(lambda x: jobs.job(x, "j")).status

    world.turn(c.Survey())
    world.turn(e.StepFailed("a disk"))
    assert status() == "failed"
    world.turn(e.ResumeRequested("operator", "r1"))
    assert status() == jobs.RUNNING
    world.turn(e.CancelRequested("operator"))
    assert status() == "cancelled"


def test_a_job_that_lacks_nodes_for_damaged_accounts_waits_and_says_so(world: World) -> None:
    """It does not end: the database may be restored."""
    damage(world, "b")
    damage(world, "d")
    world.turn(c.Survey())
    phase = world.live.phase
    assert isinstance(phase, Selecting)
    waiting = {one.node: one.reason for one in phase.waiting}
    assert waiting == {"b": "LEDGER_DAMAGED", "d": "LEDGER_DAMAGED"}


def test_a_job_whose_model_is_gone_from_the_disk_reserves_nothing(world: World) -> None:
    """What is reserved for an order that cannot be sent would be charged whole, and each resumption
    of the job charged every hospital once more. It is resumed when the file is back."""
    gone = {"m0"}
    world.answers = replace(world.answers, is_gone=gone.__contains__)
    for one in (c.Survey(), e.ResumeRequested("operator", "r1")):
        assert not world.turn(one).booked
        phase = world.live.phase
        assert isinstance(phase, Ended)
        assert phase.status == "failed"
        assert "put the file back from a backup" in phase.message
        assert "MODEL_DAMAGED" in phase.message
    assert world.reload() == (world.live.phase, world.live.steps)
    gone.clear()
    assert world.turn(e.ResumeRequested("operator", "r2")).booked == {"reserve": 4}


def test_a_round_under_way_orders_nobody_again_whose_model_is_gone(world: World) -> None:
    """It waits with that reason; what its nodes still hand in counts."""
    world.turn(c.Survey())
    world.answers = replace(world.answers, is_gone=lambda _: True)
    ids = world.attempts()
    for one in ids[:2]:
        assert not world.turn(e.OrderWasRefused(one, "BUSY", "m", b"v")).booked.get("reserve")
    phase = world.live.phase
    assert isinstance(phase, Training)
    assert world.turn(update(ids[2])).booked == {"post": 1}


@pytest.mark.parametrize("gone", [False, True])
def test_a_round_under_way_goes_on_where_an_account_is_damaged(world: World, gone: bool) -> None:
    """What its node did counts; its charge stays reserved, and is named for the log."""
    world.turn(c.Survey())
    ids = world.attempts()
    phase: Any = world.live.phase
    lost = next(one.attempt_id for one in phase.round.attempts if one.node == "b")
    damage(world, "b")
    if gone:
        drop = "DELETE FROM entries WHERE node = 'b'"
        world.database.write_now(lambda x: drop_guards(x.connection.cursor()))
        world.database.write_now(lambda x: x.exec_driver_sql(drop))
    turn = world.turn(*(update(one) for one in ids))
    assert isinstance(world.live.phase, Aggregating)
    assert turn.faults == {}
    assert turn.booked == {"post": 3}
    assert turn.unbooked == [lost]
    account = world.database.read_now(lambda x: ledger.read_account(x, "b/patients"))
    assert [one.attempt_id for one in account.balance.pending] == [lost]
    assert world.reload() == (world.live.phase, world.live.steps)


def forgets_one_commit(world: World) -> None:
    """The database commits, and the connection is gone before it says so."""
    write, failures = world.database.write, iter([True])

    async def forgetful(work: Any) -> Any:
        done = await write(work)
        if next(failures, False):
            raise OSError("the connection is gone")
        return done

    world.database.write = forgetful  # type: ignore[method-assign]


def test_a_commit_that_nobody_heard_of_is_looked_for_when_nothing_else_happens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a job that has no further events: one that had failed and was resumed hung else."""
    monkeypatch.setattr(turn_taker, "DOUBT_S", 0.01)
    world.turn(c.Survey())
    world.turn(e.StepFailed("a disk"))

    async def scene() -> int:
        taker = Taker(world)
        forgets_one_commit(world)
        with pytest.raises(OSError, match="gone"):
            await taker.taker.take(world.live, e.ResumeRequested("operator", "r1"))
        assert isinstance(world.live.phase, Ended)
        async with asyncio.timeout(10):
            await asyncio.gather(*taker.tasks)
        return taker.caught_up

    assert asyncio.run(scene()) == 1
    assert isinstance(world.live.phase, Training)
    assert world.reload() == (world.live.phase, world.live.steps)


def test_a_commit_that_nobody_heard_of_is_found_in_the_journal(world: World) -> None:
    """The database went away after the commit: the event is not lost, and not taken twice."""
    world.turn(c.Survey())
    ids = world.attempts()

    async def scene() -> int:
        taker = Taker(world)
        forgets_one_commit(world)
        with pytest.raises(OSError, match="gone"):
            await taker.taker.take(world.live, update(ids[0]))
        await taker.taker.take(world.live, update(ids[0]))  # the node says it again
        return taker.caught_up

    assert asyncio.run(scene()) == 1
    phase: Any = world.live.phase
    assert len(phase.round.received) == 1
    posted = world.database.read_now(lambda x: [s.attempt_id for s in ledger.posted_by(x, "j")])
    assert posted == [ids[0]]


def test_what_a_job_has_spent_is_the_same_in_its_journal_and_in_the_ledger(world: World) -> None:
    """The planner asks the journal; it must never find less than the ledger holds."""
    world.live.job = replace(world.live.job, mechanism="dp", noise_multiplier=20.0)
    world.turn(c.Survey())
    ids = world.attempts()
    world.turn(update(ids[0]), e.OrderWasRefused(ids[1], "BUSY", "m", b"void"))
    for account in world.database.read_now(ledger.all_accounts):
        balance = account.balance
        units, _ = world.live.spent(account.account, account.filter)
        assert units == balance.posted_units + balance.pending_units
    assert (
        sum(a.balance.posted_units > 0 for a in world.database.read_now(ledger.all_accounts)) == 1
    )


def _with_target(world: World, rounds: int) -> None:
    """The same world, with a job that trains on a target and nodes that can pay it."""
    job = replace(world.live.job, mechanism="dp", target_epsilon=0.5, rounds_planned=rounds)
    world.live.job = replace(job, max_grad_norm=1.0)
    world.live.phase = Selecting(Course(plan_of(job), "m0", "m0"), 0.0)


def test_an_attempt_without_update_in_the_last_round_is_not_followed_by_one_of_noise(
    world: World,
) -> None:
    """Two of four open their data and give no update: with one round planned nothing is left for
    them, their accounts keep what they have, and the job ends with the true cause."""
    _with_target(world, 1)
    world.turn(c.Survey())
    ids = world.attempts()
    world.turn(update(ids[2]), update(ids[3]))
    world.turn(e.NoUpdateReceived(ids[0], b"post"))
    turn = world.turn(e.NoUpdateReceived(ids[1], b"post"))
    assert turn.booked == {"post": 1}, "nothing further is reserved"
    phase = world.live.phase
    assert isinstance(phase, Ended)
    assert phase.status == "budget_exhausted"
    for node in "ab":
        assert f"{node}: its data was opened and no update came of it, which stays" in phase.message
    assert "c: " not in phase.message
    assert "the job's own target_epsilon 0.5" in phase.message


def test_with_a_round_in_hand_an_attempt_without_update_is_made_up_for(world: World) -> None:
    """Of two rounds' worth one is gone and two are to do: a half more noise, and on it goes."""
    _with_target(world, 2)
    world.turn(c.Survey())
    ids = world.attempts()
    world.turn(update(ids[2]), update(ids[3]), e.NoUpdateReceived(ids[0], b"post"))
    world.turn(e.NoUpdateReceived(ids[1], b"post"))
    phase = world.live.phase
    assert isinstance(phase, Training)
    noises = [one.offer.noise_multiplier for one in phase.round.attempts]
    assert [one.node for one in phase.round.attempts] == ["a", "b", "c", "d", "a", "b"]
    assert noises[4] == pytest.approx(2**0.5 * (noises[0] or 0.0), rel=1e-3)


def test_a_job_that_was_signed_ends_once_that_is_used_up(world: World) -> None:
    """No node would take its next order, and none is charged for a round without the others."""
    _with_target(world, 2)
    mandate = replace(MANDATE, nodes=NODES, epsilon_max=1e-3, expires_at_s=1 << 40)
    signed = sign(KEY, mandate)
    message = SignedMandate(body=signed.body, signature=signed.signature)
    world.live.record = replace(world.live.record, mandate=message.SerializeToString())
    turn = world.turn(c.Survey())
    assert turn.booked == {}
    phase = world.live.phase
    assert isinstance(phase, Ended)
    assert phase.status == "budget_exhausted"
    assert "a: the job was signed for epsilon 0.001 at one hospital in all" in phase.message


def test_a_job_that_goes_on_after_a_restoration_counts_what_was_handed_in(world: World) -> None:
    """One of four rounds' worth is in the ledger and not in the journal of before: the rest is
    spread over all four, as after an attempt that came to nothing. What nodes would refuse is not
    ordered, and the job does all its rounds."""
    _with_target(world, 4)
    before = world.live.phase
    world.turn(c.Survey())
    phase: Any = world.live.phase
    first = phase.round.attempts[0].offer.noise_multiplier
    world.turn(*(update(one) for one in world.attempts()[:3]))
    world.turn(e.OrderWasRefused(world.attempts()[3], "BUSY", "no", b"void"))
    world.live.phase = before

    def restored(connection: Connection) -> None:
        key = Ed25519PrivateKey.generate()
        made = epochs.raise_epoch(connection, key, now_s=2.0, backup_made_at_s=1.0)
        for node in NODES:
            epochs.reconcile(connection, f"{node}/patients", made.number, 3.0)

    world.database.write_now(restored)
    world.turn(c.Survey())
    phase = world.live.phase
    noise = {one.node: one.offer.noise_multiplier for one in phase.round.attempts}
    assert noise["d"] == first, "it refused, and its order is void"
    for node in "abc":
        assert noise[node] == pytest.approx((4 / 3) ** 0.5 * first, rel=1e-3)
