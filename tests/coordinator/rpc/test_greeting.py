"""What a node says first: a raise that does not hold stops nothing else of it."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from coordinator.rpc.greeting import CATCHES_UP, check_hello, greet
from coordinator.store import booking, checkpoints, ledger
from coordinator.store.database import Database
from privacy.heads import signed_by
from privacy.ledger import sign
from privacy.wire import limit_to_wire
from protos.errors import Malformed
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import ledger_pb2
from tests.coordinator.store_conformance.samples import (
    ACCOUNT,
    KEY,
    NODE,
    PUBLIC,
    kinds,
    statement,
    with_account,
)
from tests.coordinator.store_conformance.test_limits import change


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """With a node, whose ledger key is known, and its account of epsilon 1."""
    made = Database(f"sqlite:///{tmp_path / 'c.db'}")
    made.migrate()
    with_account(made)
    made.write_now(lambda c: c.exec_driver_sql("UPDATE nodes SET ledger_public_key = ?", (PUBLIC,)))
    made.write_now(lambda c: booking.book(c, statement("a1")))  # from here on the limit is promised
    return made


def hello(*limits: ledger_pb2.LedgerEntry, announced: float = 1.0) -> pb.Hello:
    """A Hello with one account and these raises."""
    account = pb.Account(
        name="patients",
        filter="gdp",
        epsilon_limit=announced,
        delta=1e-5,
        epsilon_per_job_max=1.0,
        noise_multiplier_min=0.1,
    )
    return pb.Hello(accounts=[account], limits=limits)


def raise_(number: int, old: float, new: float) -> ledger_pb2.LedgerEntry:
    one = change(old, new, number)
    return limit_to_wire(one, sign(KEY, one))


@pytest.mark.parametrize(("refuses", "sound"), [("", 1), ("LEDGER_DISPUTED", 1), ("<b>", 0)])
def test_a_reason_to_refuse_orders_is_a_reason_and_no_text(refuses: str, sound: int) -> None:
    """It goes to people; an agent that knows none says none."""
    message = hello()
    message.accounts[0].refuses = refuses
    of_data = pb.Hello(data_sets=[pb.DataSet(name="heart", declared_n=9, unavailable=refuses)])
    for one in (message, of_data):
        with contextlib.nullcontext() if sound else pytest.raises(Malformed):
            check_hello(one)


MOST: dict[str, Callable[[pb.Hello, int], object]] = {
    "data sets": lambda h, more: h.data_sets.extend([h.data_sets[0]] * (255 + more)),
    "accounts": lambda h, more: h.accounts.extend([h.accounts[0]] * (255 + more)),
    "shares": lambda h, more: h.accounts[0].shares.extend([h.accounts[0].shares[0]] * (255 + more)),
    "tasks": lambda h, more: [h.tasks.add() for _ in range(256 + more)],
    "open attempts": lambda h, more: h.open_attempts.extend(["a"] * (256 + more)),
    "raises": lambda h, more: h.limits.extend([raise_(1, 1.0, 2.0)] * (256 + more)),
    "instance": lambda h, more: setattr(h, "instance_id", "i" * (64 + more)),
    "records": lambda h, more: setattr(h.data_sets[0], "declared_n", 10**12 + more),
    "no records": lambda h, less: setattr(h.data_sets[0], "declared_n", 1 - less),
    "noise": lambda h, less: setattr(h.accounts[0], "noise_multiplier_min", -0.5 * less),
}


@pytest.mark.parametrize("what", MOST)
def test_a_hello_holds_as_much_as_it_may_and_no_more(what: str) -> None:
    """The most that is taken, and one more."""
    for over in (0, 1):
        message = full_hello()
        MOST[what](message, over)
        with pytest.raises(Malformed) if over else contextlib.nullcontext():
            check_hello(message)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_hello_has_no_numbers_that_no_policy_has(value: float) -> None:
    """They would make what is compared with them hold, or never hold."""
    for which in ("epsilon_per_job_max", "noise_multiplier_min", "epsilon_limit"):
        message = full_hello()
        account = message.accounts[0]
        setattr(account.shares[0] if which == "epsilon_limit" else account, which, value)
        is_sound = which == "noise_multiplier_min" and value == 0.0
        with contextlib.nullcontext() if is_sound else pytest.raises(Malformed):
            check_hello(message)


def test_what_a_hello_names_has_a_name() -> None:
    """Nothing is kept for what nobody could ask for."""
    check_hello(full_hello())
    for nameless in (
        lambda h: h.data_sets[0],
        lambda h: h.accounts[0],
        lambda h: h.accounts[0].shares[0],
    ):
        message = full_hello()
        nameless(message).name = ""
        with pytest.raises(Malformed):
            check_hello(message)


def full_hello() -> pb.Hello:
    """With one of everything that has a name."""
    message = hello()
    message.data_sets.add(name="heart", declared_n=9)
    message.accounts[0].shares.add(name="p", epsilon_limit=0.5)
    return message


def say(database: Database, message: pb.Hello) -> tuple[dict[str, float], int, list[str]]:
    """(the limits that are answered, raises appended, what was logged)."""
    with structlog.testing.capture_logs() as logs:
        welcome, raised = database.write_now(lambda c: greet(c, NODE, message, 1.0))
    said = {one.account: one.epsilon_limit for one in welcome.limits}
    return said, raised, [one["event"] for one in logs]


def test_raises_are_taken_in_order_and_once(database: Database) -> None:
    """Two that an agent has recorded since; then the same again."""
    two = (raise_(1, 1.0, 2.0), raise_(2, 2.0, 3.0))
    assert say(database, hello(*two, announced=3.0)) == (
        {"patients": 3.0},
        2,
        ["limit_raised", "limit_raised"],
    )
    assert say(database, hello(*two, announced=3.0)) == ({"patients": 3.0}, 0, [])
    assert kinds(database)[-2:] == ["limit", "limit"]


def test_a_node_hears_the_highest_limit_that_an_account_ever_had(tmp_path: Path) -> None:
    """Its ledger may have been restored; nothing was promised before the first entry."""
    database = Database(f"sqlite:///{tmp_path / 'c.db'}")
    database.migrate()
    with_account(database)
    database.write_now(
        lambda c: c.exec_driver_sql("UPDATE nodes SET ledger_public_key = ?", (PUBLIC,))
    )

    def highest(message: pb.Hello) -> list[float]:
        welcome, _ = database.write_now(lambda c: greet(c, NODE, message, 1.0))
        return [one.epsilon_limit_highest for one in welcome.limits]

    assert highest(hello(announced=0.9)) == [0.0]
    assert highest(hello(raise_(1, 0.9, 2.0), announced=0.5)) == [2.0]
    assert highest(hello(announced=0.4)) == [2.0]


def test_a_policy_that_was_lowered_since_a_raise_counts(database: Database) -> None:
    """Both come with one Hello: what is announced is of now, the raise is of before."""
    said = say(database, hello(raise_(1, 1.0, 2.0), announced=0.5))
    assert said == ({"patients": 0.5}, 1, ["limit_raised"])
    assert kinds(database)[-1] == "limit"


def test_a_raise_goes_on_from_before_its_hello_lowers_an_account_without_entries(
    tmp_path: Path,
) -> None:
    """Else it would go on from more than there is, and be refused for ever."""
    database = Database(f"sqlite:///{tmp_path / 'c.db'}")
    database.migrate()
    with_account(database)
    database.write_now(
        lambda c: c.exec_driver_sql("UPDATE nodes SET ledger_public_key = ?", (PUBLIC,))
    )
    said = say(database, hello(raise_(1, 1.0, 2.0), announced=0.5))
    assert said == ({"patients": 0.5}, 1, ["limit_raised"])


def test_a_node_that_was_put_back_keeps_its_raise_until_it_has_caught_up(
    database: Database,
) -> None:
    """The coordinator's log says that nothing is to be done; afterwards the steward's lower limit
    counts, since it comes with the number of raises that the chain holds."""
    say(database, hello(raise_(1, 1.0, 2.0), announced=2.0))
    message = hello(announced=1.0)
    message.accounts[0].raises = 0
    with structlog.testing.capture_logs() as logs:
        welcome, _ = database.write_now(lambda c: greet(c, NODE, message, 1.0))
    assert [one.epsilon_limit for one in welcome.limits] == [2.0]
    assert [one["do"] for one in logs] == [CATCHES_UP]
    message.accounts[0].raises = 1
    assert say(database, message) == ({"patients": 1.0}, 0, [])


def test_a_raise_between_two_reads_of_a_hello_is_not_undone_by_it(database: Database) -> None:
    """The number of raises was read before the policy: it is of before the raise that comes along,
    and so may be the limit."""
    message = hello(raise_(1, 1.0, 2.0), announced=1.0)
    message.accounts[0].raises = 0
    said = say(database, message)
    assert said == ({"patients": 2.0}, 1, ["limit_raised", "account_limits_differ"])


def test_a_coordinator_that_lost_an_account_takes_its_raise_at_once(database: Database) -> None:
    """One that was restored from a copy from before it; the account comes with the same Hello."""
    message = hello(announced=2.0)
    message.accounts[0].name = "others"
    one = change(1.0, 2.0, account=f"{NODE}/others")
    message.limits.append(limit_to_wire(one, sign(KEY, one)))
    assert say(database, message) == ({"others": 2.0}, 1, ["limit_raised"])


def test_a_higher_announcement_alone_raises_nothing(database: Database) -> None:
    """The answer says what counts."""
    assert say(database, hello(announced=9.0)) == (
        {"patients": 1.0},
        0,
        ["account_limits_differ"],
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one.ClearField("limit"),
        lambda one: setattr(one, "node_signature", b"x" * 64),
        lambda one: setattr(one, "account", "b/patients"),
        lambda one: setattr(one.limit, "epsilon_limit_new", float("nan")),
        lambda one: setattr(one.limit, "agreed_by", "anna"),
        lambda one: setattr(one, "kind", "post"),
    ],
)
def test_a_raise_that_does_not_hold_is_logged_and_the_session_goes_on(
    database: Database, spoil: Callable[[ledger_pb2.LedgerEntry], None]
) -> None:
    """Nothing of it is kept; a good one after it is."""
    bad = raise_(1, 1.0, 2.0)
    spoil(bad)
    said, raised, logs = say(database, hello(bad))
    assert (said, raised, logs) == ({"patients": 1.0}, 0, ["limit_refused"])
    assert say(database, hello(bad, raise_(1, 1.0, 2.0), announced=2.0))[:2] == (
        {"patients": 2.0},
        1,
    )
    account = database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    assert account.filter.epsilon_limit == 2.0


def test_a_node_is_told_what_it_has_signed_last(database: Database) -> None:
    """The head that it countersigned, and the posts after it that carry its signature."""

    def signed() -> pb.Signed:
        welcome, _ = database.write_now(lambda c: greet(c, NODE, hello(), 1.0))
        (one,) = welcome.signed
        return one

    assert signed() == pb.Signed()
    posted = statement("a1").resolved("post")
    database.write_now(lambda c: booking.book(c, posted, sign(KEY, posted)))
    assert [one.attempt_id for one in signed().posted] == ["a1"]
    assert not signed().HasField("head")
    head = database.read_now(lambda c: checkpoints.heads(c, NODE))[0]
    countersigned = [checkpoints.Countersigned(head, KEY.sign(head.canonical()))]
    database.write_now(lambda c: checkpoints.countersign(c, NODE, PUBLIC, countersigned))
    told = signed()
    assert (told.head.seq, told.head.hash, list(told.posted)) == (head.seq, head.hash, [])
    assert signed_by(PUBLIC, head, told.head.node_signature)
