"""Who is at the other end of a connection, from what the TLS library reports about it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certs.spiffe import SpiffeId
from protos.errors import Malformed, Unauthenticated

TLS_VERSION = b"TLSv1.3"
LEAVES_CACHED_MAX = 2048


@dataclass(frozen=True, slots=True)
class Peer:
    """The caller, as its certificate has it.

    Attributes:
        fingerprint: SHA-256 of the certificate's DER, hexadecimal.
        not_after: last moment of the certificate's validity, UTC.
        through: fingerprints of the gateways that say so; empty where the connection shows it.
    """

    fingerprint: str
    spiffe_id: SpiffeId
    not_after: datetime
    through: tuple[str, ...] = ()


def peer_of(auth_context: Mapping[str, Iterable[bytes]], trust_domain: str) -> Peer:
    """Read the caller's identity; whether it may still come in is for `registry.admit` to say.

    Args:
        auth_context: `context.auth_context()` of an rpc, of the synchronous or the asyncio API.
        trust_domain: ours.

    Raises:
        Unauthenticated: TLS_VERSION, IDENTITY_UNREADABLE.
    """
    # gRPC has no setting for the lowest TLS version, so the connection's own report is checked.
    if tuple(auth_context.get("ssl_tls_version", ())) != (TLS_VERSION,):
        raise Unauthenticated(
            "TLS_VERSION",
            "this connection does not use TLS 1.3; update the client, or the proxy between",
        )
    leaves = tuple(auth_context.get("x509_pem_cert", ()))
    if len(leaves) != 1:
        raise _unreadable("the connection carries no client certificate")
    return _peer_of_leaf(leaves[0], trust_domain)


@lru_cache(maxsize=LEAVES_CACHED_MAX)
def _peer_of_leaf(pem: bytes, trust_domain: str) -> Peer:
    """Cached because every rpc asks; a certificate never changes its meaning."""
    try:
        leaf = x509.load_pem_x509_certificate(pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise _unreadable("the client certificate cannot be read or names nobody") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise _unreadable(f"the client certificate has {len(uris)} URI names, not one")
    try:
        spiffe_id = SpiffeId.parse(uris[0])
    except Malformed as error:
        raise _unreadable(error.message) from None
    if spiffe_id.trust_domain != trust_domain:
        raise _unreadable(f"{spiffe_id} is not of the trust domain {trust_domain}")
    return Peer(leaf.fingerprint(hashes.SHA256()).hex(), spiffe_id, leaf.not_valid_after_utc)


def _unreadable(what: str) -> Unauthenticated:
    return Unauthenticated("IDENTITY_UNREADABLE", f"{what}; enrol with a token of this coordinator")
