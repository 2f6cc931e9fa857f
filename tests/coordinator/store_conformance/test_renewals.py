"""Generations of a node's certificate: which are accepted, and what a lost reply gets."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection

from certs.authority import IssuedCertificate
from certs.spiffe import SpiffeId
from coordinator.store import certificates
from coordinator.store.database import Database
from protos.errors import Conflict, Unauthenticated
from tests.coordinator.store_conformance.samples import SPIFFE

IDENTITY = SpiffeId.parse(SPIFFE)
OTHER = SpiffeId(IDENTITY.trust_domain, "node", "other")


def issued(fingerprint: str, identity: SpiffeId = IDENTITY) -> IssuedCertificate:
    start, end = datetime(2026, 11, 23, tzinfo=UTC), datetime(2026, 11, 30, tzinfo=UTC)
    return IssuedCertificate(
        f"chain {fingerprint}".encode(), fingerprint, "1", identity, start, end
    )


def renew(database: Database, caller: str, fingerprint: str, key: str) -> certificates.Renewed:
    """As the rpc does it, in one transaction."""

    def work(connection: Connection) -> certificates.Renewed:
        before = certificates.answered_before(connection, caller, IDENTITY, key)
        if before is not None:
            return before
        new = issued(fingerprint)
        generation = certificates.add(connection, new, key, answered=True)
        certificates.drop_unused(connection, caller, fingerprint)
        return certificates.Renewed(fingerprint, generation, new.chain_pem)

    return database.write_now(work)


def use(database: Database, fingerprint: str) -> bool:
    return database.write_now(lambda c: certificates.put_in_use(c, fingerprint, IDENTITY))


def accepted(database: Database) -> set[str]:
    found = database.read_now(certificates.records)
    return {name for name, one in found.items() if not one.superseded}


@pytest.fixture
def joined(database: Database) -> Database:
    """The node has joined and opened a session."""
    assert database.write_now(lambda c: certificates.add(c, issued("one"), "key 1")) == 1
    assert not use(database, "one")
    return database


def test_both_generations_are_accepted_until_the_new_one_is_in_use(joined: Database) -> None:
    """Then the old one is superseded, for ever, and counts upwards."""
    assert renew(joined, "one", "two", "key 2").generation == 2
    assert accepted(joined) == {"one", "two"}
    assert not use(joined, "one")
    assert accepted(joined) == {"one", "two"}
    assert use(joined, "two")
    assert accepted(joined) == {"two"}
    assert not use(joined, "two")
    assert renew(joined, "two", "three", "key 3").generation == 3


def test_the_same_key_gets_the_same_certificate_again(joined: Database) -> None:
    """Its reply was lost; nothing new is issued, however often it asks."""
    first = renew(joined, "one", "two", "key 2")
    assert renew(joined, "one", "never", "key 2") == first
    assert accepted(joined) == {"one", "two"}


def test_another_key_takes_the_place_of_one_that_was_never_used(joined: Database) -> None:
    """A node has at most one certificate that waits, and its number is not given twice."""
    renew(joined, "one", "two", "key 2")
    assert renew(joined, "one", "three", "key 3").generation == 3
    assert accepted(joined) == {"one", "three"}
    with pytest.raises(Unauthenticated) as caught:
        use(joined, "two")
    assert caught.value.reason == "CERTIFICATE_SUPERSEDED"


@pytest.mark.parametrize("key", ["key 1", "key 2"])
def test_a_key_that_is_or_was_in_use_is_not_certified_again(joined: Database, key: str) -> None:
    """A renewal that kept its key would renew nothing."""
    renew(joined, "one", "two", "key 2")
    use(joined, "two")
    with pytest.raises(Conflict) as caught:
        renew(joined, "two", "three", key)
    assert caught.value.reason == "CSR_KEY_USED"


def test_another_nodes_key_is_not_certified(joined: Database) -> None:
    """Nor is its waiting certificate handed out."""
    other = issued("other", OTHER)
    joined.write_now(lambda c: certificates.add(c, other, "key o", answered=True))
    with pytest.raises(Conflict):
        renew(joined, "one", "two", "key o")


def test_a_superseded_certificate_neither_renews_nor_comes_back_into_use(joined: Database) -> None:
    """Also when it was let in just before its successor was seen."""
    renew(joined, "one", "two", "key 2")
    use(joined, "two")
    for act in (lambda: use(joined, "one"), lambda: renew(joined, "one", "three", "key 3")):
        with pytest.raises(Unauthenticated) as caught:
            act()
        assert caught.value.reason == "CERTIFICATE_SUPERSEDED"
    assert accepted(joined) == {"two"}


def test_of_two_that_come_into_use_at_once_the_newer_stays(joined: Database) -> None:
    """However they race, the old one never ends above the new one."""
    renew(joined, "one", "two", "key 2")

    def attempt(fingerprint: str) -> None:
        try:
            use(joined, fingerprint)
        except Unauthenticated as error:
            assert (fingerprint, error.reason) == ("one", "CERTIFICATE_SUPERSEDED")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, ["one", "two"] * 10))
    assert accepted(joined) == {"two"}


def test_the_generations_of_two_nodes_are_their_own(joined: Database) -> None:
    """One node's renewal supersedes nothing of another's."""
    joined.write_now(lambda c: certificates.add(c, issued("other", OTHER), "key o"))
    renew(joined, "one", "two", "key 2")
    use(joined, "two")
    assert accepted(joined) == {"two", "other"}
