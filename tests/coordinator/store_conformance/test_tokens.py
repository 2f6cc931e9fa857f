"""Nodes and their join tokens."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection

from coordinator.store import people
from coordinator.store.database import Database
from coordinator.store.joins import quarantine
from coordinator.store.schema import certificates
from protos.errors import Conflict, NotAllowed, Unauthenticated
from protos.feddp.v1 import federation_pb2 as federation
from tests.coordinator.store_conformance.samples import NODE, PUBLIC, SPIFFE, invite


def test_a_hundred_redemptions_of_one_token_have_one_winner(database: Database) -> None:
    """Many keys race for a token; one conditional UPDATE lets one of them in."""

    def attempt(number: int) -> bool:
        try:
            database.write_now(lambda c: people.redeem(c, "s", f"key{number}", 10.0))
        except Unauthenticated as error:
            assert error.reason == "TOKEN_USED"
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(100))) == 1


def test_the_same_key_may_redeem_again_for_fifteen_minutes(database: Database) -> None:
    """A lost reply locks nobody out: the first answer is given again, then the token is used up."""
    database.write_now(lambda c: people.redeem(c, "s", "key", 10.0))
    database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))
    again = database.write_now(lambda c: people.redeem(c, "s", "key", 10.0 + people.REPLY_LOST_S))
    assert again.chain == b"chain"
    with pytest.raises(Unauthenticated) as caught:
        database.write_now(lambda c: people.redeem(c, "s", "key", 11.0 + people.REPLY_LOST_S))
    assert caught.value.reason == "TOKEN_USED"
    assert f"`feddp node token {NODE}`, with --rejoin while" in caught.value.message


@pytest.mark.parametrize(
    ("secret", "now_s", "reason"), [("x", 10.0, "TOKEN_INVALID"), ("s", 1001.0, "TOKEN_EXPIRED")]
)
def test_wrong_and_expired_tokens_are_told_apart(
    database: Database, secret: str, now_s: float, reason: str
) -> None:
    """Each refusal has its own reason, and leaves the token as it was."""
    with pytest.raises(Unauthenticated) as caught:
        database.write_now(lambda c: people.redeem(c, secret, "key", now_s))
    assert caught.value.reason == reason


def joined(database: Database) -> None:
    """The node joins, with a certificate that is valid until 500."""
    database.write_now(lambda c: people.redeem(c, "s", "key", 10.0))
    database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))
    row = {"fingerprint": "f", "spiffe_id": SPIFFE, "not_before": 0, "not_after": 500}
    database.write_now(lambda c: c.execute(certificates.insert().values(**row, revoked=False)))


def test_a_node_that_can_still_connect_cannot_be_invited_again(database: Database) -> None:
    """Two machines under one name would share an identity."""
    joined(database)
    with pytest.raises(Conflict) as caught:
        invite(database, "t", now_s=499)
    assert caught.value.reason == "NODE_EXISTS"


def test_a_node_whose_certificate_has_ended_may_join_again_as_itself(database: Database) -> None:
    """The new token knows the ledger key that must be shown again; nothing is reset."""
    joined(database)
    invite(database, "t", now_s=501)
    again = database.write_now(lambda c: people.redeem(c, "t", "new key", 510.0))
    assert (again.ledger_public_key, again.chain) == (PUBLIC, b"")


def test_a_node_disabled_before_it_joined_can_be_let_in_again(database: Database) -> None:
    """Enabling makes it "invited": it has no key yet."""
    database.write_now(lambda c: people.set_status(c, NODE, "disabled"))
    with pytest.raises(Conflict):
        invite(database, "t")
    assert database.write_now(lambda c: people.set_status(c, NODE, "enrolled")).status == "invited"
    invite(database, "t")


def test_a_disabled_node_joins_with_no_token(database: Database) -> None:
    """Neither for the first time nor again, and the token is as it was once the node is enabled."""

    def redeemed() -> str:
        try:
            database.write_now(lambda c: people.redeem(c, "s", "key", 10.0))
        except NotAllowed as error:
            return error.reason
        return ""

    for enabled in ("invited", "enrolled"):
        database.write_now(lambda c: people.set_status(c, NODE, "disabled"))
        assert redeemed() == "NODE_DISABLED"
        node = database.write_now(lambda c: people.set_status(c, NODE, "enrolled"))
        assert node.status == enabled
        assert redeemed() == ""
        database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))


def test_a_quarantined_node_is_invited_like_one_that_has_gone(database: Database) -> None:
    """Its certificate is valid, and lets it in no more."""
    joined(database)
    database.write_now(lambda c: quarantine(c, NODE, "a copy runs"))
    invite(database, "t", now_s=499)
    assert database.write_now(lambda c: people.redeem(c, "t", "new key", 499.5)).quarantined


def test_what_a_node_said_last_and_when_it_was_heard_is_kept(database: Database) -> None:
    """Of those who are known; nobody heard changes nothing."""
    hello = federation.Hello(protocol_version=7)
    database.write_now(lambda c: people.keep_hello(c, NODE, hello, 5.0))
    known = database.read_now(lambda c: people.node(c, NODE))
    assert (known.hello, known.last_seen_at) == (hello, 5.0)
    database.write_now(lambda c: people.keep_seen(c, {NODE: 7.5, "nobody": 8.5}))
    database.write_now(lambda c: people.keep_seen(c, {}))
    (known,) = database.read_now(people.all_nodes)
    assert (known.hello, known.last_seen_at) == (hello, 7.5)


def test_a_new_token_voids_the_unused_one_before(database: Database) -> None:
    """Of two tokens for one name only the newest works."""
    invite(database, "t")
    with pytest.raises(Unauthenticated, match="does not know"):
        database.write_now(lambda c: people.redeem(c, "s", "key", 10.0))
    assert database.write_now(lambda c: people.redeem(c, "t", "key", 10.0)).node_class == "hpc"


def invited(database: Database, name: str) -> None:
    """A name that nobody has joined with yet; its token's secret is the name."""
    database.write_now(
        lambda c: people.invite(
            c, name, "edge", name, spiffe_id=f"s/{name}", now_s=1.0, expires_at_s=1000.0
        )
    )


def joins(
    connection: Connection,
    name: str,
    key: bytes = PUBLIC,
    redeemed: Callable[[], object] = lambda: None,
) -> None:
    """One that has this ledger key joins, as far as the tables go."""
    people.redeem(connection, name, f"key of {name}", 10.0)
    redeemed()
    people.require_own_ledger_key(connection, name, key)
    people.enrol(connection, name, name, key, b"chain")


def test_a_ledger_key_gets_one_name(database: Database) -> None:
    """A second one is refused, also while the first is disabled, and its token stays as it was."""
    joined(database)
    database.write_now(lambda c: people.set_status(c, NODE, "disabled"))
    invited(database, "second")
    for _ in range(2):
        with pytest.raises(NotAllowed) as caught:
            database.write_now(lambda c: joins(c, "second"))
        assert caught.value.reason == "LEDGER_KEY_OF_ANOTHER"
        assert f"a token for {NODE} (`feddp node token {NODE}`)" in caught.value.message
    database.write_now(lambda c: people.redeem(c, "second", "another key", 10.0))
    database.write_now(lambda c: people.require_own_ledger_key(c, "second", b"its own"))
    database.write_now(lambda c: people.require_own_ledger_key(c, NODE, PUBLIC))


def test_of_two_names_that_ask_at_once_with_one_ledger_key_one_gets_it(
    url: str, database: Database
) -> None:
    """On PostgreSQL both have redeemed their tokens in open transactions before either looks for
    the key; SQLite lets one begin after the other."""
    both = threading.Barrier(2)
    within = database.read_now(lambda c: c.dialect.name) == "postgresql"

    def attempt(name: str) -> bool:
        key = name.partition("-")[2].encode()
        own = Database(url)
        try:
            if not within:
                both.wait(30)
            own.write_now(lambda c: joins(c, name, key, lambda: within and both.wait(30)))
        except NotAllowed:
            return False
        finally:
            own.close()
        return True

    for number in range(10):
        names = (f"first-{number}", f"second-{number}")
        for name in names:
            invited(database, name)
        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(attempt, names)) == [False, True]
