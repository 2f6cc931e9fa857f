"""Authorities and identities that several tests of the certificates need."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import NODE_LIFETIME, Authority, IssuedCertificate
from certs.enrolment import new_key, private_pem
from certs.spiffe import SpiffeId

TRUST_DOMAIN = "hospitals.example"

Identity = tuple[IssuedCertificate, bytes]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority for `hospitals.example`."""
    return Authority.create(tmp_path / "ca", TRUST_DOMAIN)


@pytest.fixture
def other_authority(tmp_path: Path) -> Authority:
    """Somebody else's authority, which claims the same trust domain."""
    return Authority.create(tmp_path / "other", TRUST_DOMAIN)


@pytest.fixture
def node_of() -> Callable[[Authority, str], Identity]:
    """A function that enrols a node: its certificate and its private key in PEM."""

    def enrol(authority: Authority, name: str) -> Identity:
        key: ec.EllipticCurvePrivateKey = new_key()
        identity = SpiffeId(authority.trust_domain, "node", name)
        issued = authority.issue(
            key.public_key(), identity, now=datetime.now(UTC), lifetime=NODE_LIFETIME
        )
        return issued, private_pem(key)

    return enrol


@pytest.fixture
def coordinator_of() -> Callable[[Authority], Identity]:
    """A function that makes a coordinator's certificate for this machine, and its key in PEM."""

    def make(authority: Authority) -> Identity:
        key = new_key()
        issued = authority.issue(
            key.public_key(),
            SpiffeId(authority.trust_domain, "coordinator"),
            now=datetime.now(UTC),
            lifetime=NODE_LIFETIME,
            dns_names=["localhost"],
            ip_addresses=["127.0.0.1"],
        )
        return issued, private_pem(key)

    return make
