"""gRPC credentials for both ends, and who the other end is.

There is no way to ask for a connection without TLS here. The lowest TLS version is enforced by
`peer_of`, because gRPC has no setting for it.
"""

from collections.abc import Callable
from typing import TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from certs.peer import Peer, peer_of
from protos.errors import Malformed

_Value = TypeVar("_Value")

__all__ = [
    "Peer",
    "channel_credentials",
    "check_server_credentials",
    "enrolment_server_credentials",
    "only_changes",
    "peer_of",
    "reloading_server_credentials",
    "server_configuration",
    "server_credentials",
]


def server_credentials(chain: bytes, key: bytes, bundle: bytes) -> grpc.ServerCredentials:
    """Credentials of a server that requires a client certificate from `bundle`.

    Args:
        chain: the server's certificate, then the issuing authority's, PEM.
        key: the server's private key, PEM.
        bundle: the roots that clients must chain to, PEM.

    Raises:
        Malformed: CREDENTIALS_INVALID.
    """
    _check_pair(chain, key)
    _check_bundle(bundle)
    return grpc.ssl_server_credentials(
        [(key, chain)], root_certificates=bundle, require_client_auth=True
    )


def check_server_credentials(chain: bytes, key: bytes, bundle: bytes) -> None:
    """Return if a server can show `chain` and trust `bundle`.

    Raises:
        Malformed: CREDENTIALS_INVALID.
    """
    _check_pair(chain, key)
    _check_bundle(bundle)


def server_configuration(
    chain: bytes, key: bytes, bundle: bytes | None = None
) -> grpc.ServerCertificateConfiguration:
    """What a server shows, and the roots that clients must chain to, if any."""
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=bundle)


def reloading_server_credentials(
    current: Callable[[], grpc.ServerCertificateConfiguration], *, require_client_auth: bool
) -> grpc.ServerCredentials:
    """Credentials that may change between handshakes; open connections keep what they have.

    Args:
        current: gives what was checked by `check_server_credentials`: gRPC would keep the old one
            without a word if it could not be used.
    """
    first = current()
    return grpc.dynamic_ssl_server_credentials(
        first,
        only_changes(current, first),  # type: ignore[arg-type] # its stubs know no None
        require_client_authentication=require_client_auth,
    )


def only_changes(current: Callable[[], _Value], first: _Value) -> Callable[[], _Value | None]:
    """What `current` gives where it is another object than the time before; else None.

    gRPC asks at each handshake, and with an answer it replaces what other handshakes are being
    made from at that moment: given the same answer each time, its core (1.85.3) crashed the process
    in one of ten bursts of a hundred clients.
    """
    given = first

    def changed() -> _Value | None:
        nonlocal given
        found = current()
        if found is given:
            return None
        given = found
        return found

    return changed


def enrolment_server_credentials(chain: bytes, key: bytes) -> grpc.ServerCredentials:
    """Credentials of the enrolment port, whose callers have no certificate yet.

    Raises:
        Malformed: CREDENTIALS_INVALID.
    """
    _check_pair(chain, key)
    return grpc.ssl_server_credentials([(key, chain)])


def channel_credentials(
    bundle: bytes, key: bytes | None = None, chain: bytes | None = None
) -> grpc.ChannelCredentials:
    """Credentials of a client that trusts the roots in `bundle` and no others.

    Args:
        bundle: PEM; without it gRPC would trust the public web authorities.
        key: the client's private key, PEM; None only for enrolment.
        chain: the client's certificate, then the issuing authority's, PEM; None with no key.

    Raises:
        Malformed: CREDENTIALS_INVALID.
    """
    _check_bundle(bundle)
    if key is None and chain is None:
        return grpc.ssl_channel_credentials(root_certificates=bundle)
    _check_pair(chain or b"", key or b"")
    return grpc.ssl_channel_credentials(
        root_certificates=bundle, private_key=key, certificate_chain=chain
    )


def _check_pair(chain: bytes, key: bytes) -> None:
    """Say what is wrong with them now: gRPC would only fail to bind or to connect."""
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise _invalid("the certificate chain or its private key is not readable PEM") from None
    if private.public_key() != leaf.public_key():
        raise _invalid("the private key is not that of the first certificate in the chain")


def _check_bundle(bundle: bytes) -> None:
    try:
        x509.load_pem_x509_certificates(bundle)
    except (ValueError, x509.InvalidVersion):
        raise _invalid("the trust bundle holds no readable PEM certificate") from None


def _invalid(what: str) -> Malformed:
    return Malformed(
        "CREDENTIALS_INVALID", f"{what}; restore the identity from a backup or enrol again"
    )
