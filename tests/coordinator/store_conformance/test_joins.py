"""Joins that wait, and nodes that are shut out."""

import pytest
from sqlalchemy import Connection

from certs.spiffe import SpiffeId
from coordinator.store import certificates, joins, people
from coordinator.store.database import Database
from protos.errors import Conflict, FeddpError, NotAllowed, NotFound, WrongPhase
from tests.coordinator.store_conformance.samples import NODE, PUBLIC, SPIFFE
from tests.coordinator.store_conformance.test_renewals import issued

KEY = "0123456789abcdef" * 4
SPOKEN = "0123-4567-89AB-cdef:0123 4567 89ab cdef"


@pytest.fixture
def waiting(database: Database) -> Database:
    """The token "s" was redeemed by a key that waits."""
    wait(database, confirming=False)
    return database


def wait(database: Database, *, confirming: bool) -> None:
    def work(connection: Connection) -> None:
        people.redeem(connection, "s", KEY, 10.0)
        joins.wait(connection, "s", confirming=confirming)

    database.write_now(work)


def approval(database: Database, now_s: float = 20.0) -> str:
    """What a redemption by the waiting key finds."""
    return database.write_now(lambda c: people.redeem(c, "s", KEY, now_s)).approval


def reason(act: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(FeddpError) as caught:
        act(*args, **kwargs)  # type: ignore[operator]
    return caught.value.reason


def test_a_token_that_needs_approval_says_so(database: Database) -> None:
    """Whoever redeems it first; it is that key's from then on, and no other's."""
    how = {"spiffe_id": SPIFFE, "now_s": 0.0, "expires_at_s": 1000.0}
    database.write_now(lambda c: people.invite(c, NODE, "hpc", "s2", **how, approval=True))
    won = database.write_now(lambda c: people.redeem(c, "s2", KEY, 10.0))
    assert won.approval == "needed"


def test_without_a_key_whichever_machine_waits_is_let_in(database: Database) -> None:
    """Nothing is compared; one that has to prove that it joined before is not let in so."""
    wait(database, confirming=True)

    def approve() -> joins.WaitingJoin:
        return database.write_now(lambda c: joins.approve(c, NODE, by="operator", steward="Ada"))

    assert reason(approve) == "CONFIRMATION_REQUIRED"
    database.write_now(lambda c: joins.wait(c, "s", confirming=False))
    approve()
    assert approval(database) == "approved"


def test_the_operator_lets_in_the_key_that_was_read_out(waiting: Database) -> None:
    """However it is written; another one is refused, and nothing has changed then."""

    def approve(key: str) -> joins.WaitingJoin:
        return waiting.write_now(lambda c: joins.approve(c, NODE, key, by="operator"))

    assert waiting.read_now(joins.waiting)[NODE].key_digest == KEY
    assert reason(approve, "f" * 32) == "KEY_MISMATCH"
    assert reason(approve, "0123") == "KEY_INVALID"
    assert reason(approve, "not a key") == "KEY_INVALID"
    assert approval(waiting) == "waiting"
    approve(SPOKEN)
    assert approval(waiting) == "approved"
    assert waiting.read_now(joins.waiting) == {}
    assert reason(approve, SPOKEN) == "JOIN_UNKNOWN"


def test_a_known_name_needs_key_and_steward(database: Database) -> None:
    """Either alone does not do; who it was stays in the database."""
    wait(database, confirming=True)

    def approve(key: str, steward: str) -> None:
        database.write_now(lambda c: joins.approve(c, NODE, key, steward, "operator"))

    for key, steward in (("", ""), (KEY, ""), (KEY, "  "), ("", "Dr. Meier")):
        assert reason(approve, key, steward) == "CONFIRMATION_REQUIRED"
    assert reason(approve, KEY, "x" * 101) == "STEWARD_INVALID"
    assert reason(approve, KEY, "a\nb") == "STEWARD_INVALID"
    approve(KEY, "Dr. Meier")
    assert approval(database) == "confirmed"


def test_a_rejected_key_is_refused_for_good(waiting: Database) -> None:
    """Also by a later approval: nothing waits any more."""
    waiting.write_now(lambda c: joins.reject(c, NODE))
    with pytest.raises(NotAllowed) as caught:
        approval(waiting)
    assert caught.value.reason == "JOIN_REJECTED"
    with pytest.raises(NotFound):
        waiting.write_now(lambda c: joins.approve(c, NODE))


def test_a_key_waits_two_weeks_and_then_has_fifteen_minutes_for_its_reply(
    waiting: Database,
) -> None:
    """The time for a lost reply runs from the certificate, not from the first question."""
    late_s = 10.0 + people.WAITING_S
    assert approval(waiting, late_s) == "waiting"
    assert reason(approval, waiting, late_s + 1) == "TOKEN_USED"
    waiting.write_now(lambda c: joins.approve(c, NODE))
    waiting.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain", late_s))
    again = waiting.write_now(lambda c: people.redeem(c, "s", KEY, late_s + people.REPLY_LOST_S))
    assert again.chain == b"chain"
    assert reason(approval, waiting, late_s + people.REPLY_LOST_S + 1) == "TOKEN_USED"


def test_a_new_token_voids_a_waiting_join(waiting: Database) -> None:
    """A node has at most one that waits."""
    how = {"spiffe_id": SPIFFE, "now_s": 0.0, "expires_at_s": 1000.0}
    waiting.write_now(lambda c: people.invite(c, NODE, "hpc", "t", **how))
    assert waiting.read_now(joins.waiting) == {}
    assert reason(approval, waiting) == "TOKEN_INVALID"


@pytest.mark.parametrize("decided", ["approved", "confirmed"])
def test_tokens_that_are_void_let_in_nobody_who_was_approved(
    database: Database, decided: str
) -> None:
    """The machine has not asked again since; nobody else's token changes."""
    wait(database, confirming=decided == "confirmed")
    how = {"spiffe_id": "s/other", "now_s": 0.0, "expires_at_s": 1000.0}
    database.write_now(lambda c: people.invite(c, "other", "hpc", "t", **how))
    database.write_now(lambda c: joins.approve(c, NODE, KEY, "Dr. Meier"))
    assert approval(database) == decided
    database.write_now(lambda c: people.void_tokens(c, NODE))
    assert reason(approval, database) == "TOKEN_INVALID"
    assert database.write_now(lambda c: people.redeem(c, "t", KEY, 10.0)).node == "other"


def test_a_quarantine_is_said_once_and_ends_with_a_person_or_a_join(database: Database) -> None:
    """The first reason stays; a token may be made meanwhile."""
    quarantine = joins.quarantine
    assert database.write_now(lambda c: quarantine(c, NODE, "a copy runs"))
    assert not database.write_now(lambda c: quarantine(c, NODE, "again"))
    assert database.read_now(people.all_quarantines) == {NODE: "a copy runs"}
    database.write_now(lambda c: joins.release(c, NODE))
    assert database.read_now(people.all_quarantines) == {}
    with pytest.raises(WrongPhase, match="nothing to release"):
        database.write_now(lambda c: joins.release(c, NODE))
    with pytest.raises(NotFound):
        database.write_now(lambda c: joins.release(c, "nobody"))
    database.write_now(lambda c: quarantine(c, NODE, "a copy runs"))
    assert database.write_now(lambda c: people.redeem(c, "s", KEY, 10.0)).quarantined
    database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))
    assert database.read_now(people.all_quarantines) == {}


def test_revoked_is_for_good_and_for_one_name(database: Database) -> None:
    """Every generation of it, used or not; the name may be invited again."""
    mine, other = SpiffeId.parse(SPIFFE), SpiffeId("test.example", "node", "other")
    database.write_now(lambda c: certificates.add(c, issued("one"), "k1"))
    database.write_now(lambda c: certificates.add(c, issued("two"), "k2", answered=True))
    database.write_now(lambda c: certificates.add(c, issued("x", other), "k3"))
    known = {"one": "k1", "two": "k2"}
    assert database.read_now(lambda c: certificates.live(c, mine)) == known
    assert database.write_now(lambda c: certificates.revoke(c, mine)) == 2
    assert database.read_now(lambda c: certificates.live(c, mine)) == {}
    found = database.read_now(certificates.records)
    assert {name for name, one in found.items() if one.revoked} == {"one", "two"}
    assert database.write_now(lambda c: certificates.revoke(c, mine)) == 0
    assert database.read_now(certificates.revoked_identities) == {SPIFFE}
    database.write_now(lambda c: people.redeem(c, "s", KEY, 10.0))
    database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))
    how = {"spiffe_id": SPIFFE, "now_s": 0.0, "expires_at_s": 1000.0}
    database.write_now(lambda c: people.invite(c, NODE, "hpc", "t", **how))
    database.write_now(lambda c: certificates.add(c, issued("three"), "k4"))
    assert database.read_now(certificates.revoked_identities) == set()


def test_who_shows_a_certificate_is_told_with_its_roots(database: Database) -> None:
    """The newest in use of each, not one that waits or has ended."""
    now_s = issued("one").not_before.timestamp() + 1
    database.write_now(lambda c: certificates.add(c, issued("one"), "k1"))
    database.write_now(lambda c: certificates.add(c, issued("two"), "k2", answered=True))
    (found,) = database.read_now(lambda c: certificates.in_use(c, now_s))
    assert (found.spiffe_id, found.issuer, found.bundle) == (SPIFFE, "", "")
    assert database.read_now(lambda c: certificates.in_use(c, now_s + 10 * 86_400)) == []


def test_an_invitation_of_a_connected_node_is_for_joining_again_only(database: Database) -> None:
    """Said by who makes it."""
    database.write_now(lambda c: people.redeem(c, "s", KEY, 10.0))
    database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))
    database.write_now(lambda c: certificates.add(c, issued("one"), "k1"))
    how = {"spiffe_id": SPIFFE, "now_s": 0.0, "expires_at_s": 1000.0}
    with pytest.raises(Conflict):
        database.write_now(lambda c: people.invite(c, NODE, "hpc", "t", **how))
    database.write_now(lambda c: people.invite(c, NODE, "hpc", "t", **how, rejoin=True))
