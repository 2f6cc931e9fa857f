"""When a certificate is due, and which requests for its successor are honest."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from certs.authority import NODE_LIFETIME, Authority
from certs.enrolment import make_csr, new_key, public_key_of_csr
from certs.rotation import check_names, life_of, renewal_due_at
from certs.spiffe import SpiffeId
from protos.errors import Malformed

NODE = SpiffeId("hospitals.example", "node", "alpha")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
OWN = x509.UniformResourceIdentifier(str(NODE))


def leaf(authority: Authority, lifetime: timedelta) -> x509.Certificate:
    issued = authority.issue(new_key().public_key(), NODE, now=NOW, lifetime=lifetime)
    return x509.load_pem_x509_certificates(issued.chain_pem)[0]


@pytest.mark.parametrize("lifetime", [NODE_LIFETIME, timedelta(seconds=20), timedelta(days=365)])
def test_a_certificate_is_due_when_a_third_of_its_life_remains(
    authority: Authority, lifetime: timedelta
) -> None:
    """Of its life from the issue, whatever the validity's backdating; up to a tenth of that third
    earlier."""
    one = leaf(authority, lifetime)
    assert life_of(one) == lifetime
    remaining = one.not_valid_after_utc - renewal_due_at(one)
    assert lifetime / 3 <= remaining <= lifetime / 3 * 1.1


def test_nodes_that_joined_together_are_due_apart(authority: Authority) -> None:
    """The moment differs from one certificate to the next, and is always the same for one."""
    some = [leaf(authority, NODE_LIFETIME) for _ in range(20)]
    due = {renewal_due_at(one) for one in some}
    assert len(due) == len(some)
    assert max(due) - min(due) > timedelta(hours=1)
    assert renewal_due_at(some[0]) == renewal_due_at(some[0])


def test_requests_that_name_nobody_or_only_the_caller_are_honest() -> None:
    """What our agent sends, and what a careful other one might."""
    check_names(make_csr(new_key()), NODE)
    check_names(request([OWN]), NODE)
    check_names(request([], common_name="alpha"), NODE)


def request(names: list[x509.GeneralName], common_name: str = "", twice: bool = False) -> bytes:
    key = new_key()
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    public_key_of_csr(der)
    return der


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


@pytest.mark.parametrize(
    ("names", "common_name"),
    [
        ([uri("spiffe://hospitals.example/node/beta")], ""),
        ([uri("spiffe://hospitals.example/coordinator")], ""),
        ([uri("spiffe://other.example/node/alpha")], ""),
        ([OWN, uri("spiffe://hospitals.example/node/beta")], ""),
        ([OWN, OWN], ""),
        ([OWN, x509.DNSName("coordinator.example")], ""),
        ([x509.DNSName("coordinator.example")], ""),
        ([uri(f"{NODE},URI:spiffe://hospitals.example/node/beta")], ""),
        ([uri(f"{NODE}\nURI=spiffe://hospitals.example/node/beta")], ""),
        ([uri(f"{NODE}/")], ""),
        ([], "beta"),
    ],
)
def test_a_request_for_any_other_name_is_refused(
    names: list[x509.GeneralName], common_name: str
) -> None:
    """Another's name, a second name, a name within a name: each with the same reason."""
    with pytest.raises(Malformed) as caught:
        check_names(request(names, common_name), NODE)
    assert caught.value.reason == "CSR_NAMES"
    assert "beta" not in caught.value.message
