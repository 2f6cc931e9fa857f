"""Who gets in by the registry's record."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from certs.peer import Peer
from certs.registry import CertificateRecord, admit
from certs.spiffe import SpiffeId
from protos.errors import Unauthenticated

NODE = SpiffeId("hospitals.example", "node", "a")
START = datetime(2026, 11, 23, tzinfo=UTC)
END = START + timedelta(hours=169)
RECORD = CertificateRecord("f" * 64, NODE, START, END, revoked=False)
PEER = Peer("f" * 64, NODE, END)
SECOND = timedelta(seconds=1)


def refusal(peer: Peer, record: CertificateRecord | None, now: datetime) -> str:
    with pytest.raises(Unauthenticated) as caught:
        admit(peer, record, now)
    assert str(peer.spiffe_id) in caught.value.message
    return caught.value.reason


@pytest.mark.parametrize("now", [START, START + SECOND, END])
def test_issued_certificate_gets_in_while_it_is_valid(now: datetime) -> None:
    """From its first to its last moment, both included, as X.509 has it."""
    admit(PEER, RECORD, now)


def test_certificate_without_record_is_unknown() -> None:
    """A certificate that our authority signed but our registry does not know is refused."""
    assert refusal(PEER, None, START) == "CERTIFICATE_UNKNOWN"


def test_record_of_another_certificate_does_not_count() -> None:
    """A record with another fingerprint or another name is not this certificate's record."""
    other = SpiffeId("hospitals.example", "node", "b")
    assert refusal(PEER, replace(RECORD, fingerprint="e" * 64), START) == "CERTIFICATE_UNKNOWN"
    assert refusal(PEER, replace(RECORD, spiffe_id=other), START) == "CERTIFICATE_UNKNOWN"


def test_revoked_certificate_is_refused_even_when_expired() -> None:
    """Revocation is what the caller is told, whatever the time."""
    revoked = replace(RECORD, revoked=True)
    assert refusal(PEER, revoked, START) == "CERTIFICATE_REVOKED"
    assert refusal(PEER, revoked, END + SECOND) == "CERTIFICATE_REVOKED"


def test_expired_certificate_is_refused() -> None:
    """The earlier end of certificate and record counts: a resumed session gains no time."""
    assert refusal(PEER, RECORD, END + SECOND) == "CERTIFICATE_EXPIRED"
    assert refusal(PEER, replace(RECORD, not_after=START), START + SECOND) == "CERTIFICATE_EXPIRED"
    assert refusal(replace(PEER, not_after=START), RECORD, START + SECOND) == "CERTIFICATE_EXPIRED"


def test_certificate_from_the_future_is_refused() -> None:
    """A clock that was moved back is named instead of overlooked."""
    assert refusal(PEER, RECORD, START - SECOND) == "CERTIFICATE_NOT_YET_VALID"
