"""Who this node is: the keys and certificates in DIR/identity."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.credentials import channel_credentials
from certs.enrolment import load_ledger_key, public_bytes_of
from certs.spiffe import SpiffeId
from protos.errors import FeddpError, Malformed, NotFound

KEY, CHAIN, BUNDLE, LEDGER_KEY = "node.key", "node.crt", "bundle.pem", "ledger.key"


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's identity, as enrolment wrote it.

    Attributes:
        expires_at: last moment of the certificate, UTC.
        chain: the node's certificate and the issuing authority's, PEM.
        bundle: the root that the node trusts, PEM.
        ledger_key: signs the ledger; outlives every certificate.
    """

    spiffe_id: SpiffeId
    expires_at: datetime
    chain: bytes
    bundle: bytes
    key: bytes = field(repr=False)
    ledger_key: Ed25519PrivateKey = field(repr=False)

    @property
    def node(self) -> str:
        """The node's name."""
        return self.spiffe_id.name

    @property
    def ledger_public_key(self) -> bytes:
        """Raw Ed25519 public key."""
        return public_bytes_of(self.ledger_key)

    def credentials(self) -> grpc.ChannelCredentials:
        """mTLS credentials for the coordinator's port."""
        return channel_credentials(self.bundle, self.key, self.chain)


def load_identity(folder: Path) -> Identity:
    """Read DIR/identity.

    Raises:
        NotFound: NOT_JOINED.
        Malformed: IDENTITY_INVALID.
    """
    try:
        key, chain, bundle = ((folder / name).read_bytes() for name in (KEY, CHAIN, BUNDLE))
    except OSError:
        raise NotFound(
            "NOT_JOINED",
            f"{folder} holds no whole identity; run `feddp agent join TOKEN --dir {folder.parent}`",
        ) from None
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        spiffe_id = node_id_of(leaf)
        channel_credentials(bundle, key, chain)
        ledger_key = load_ledger_key(folder / LEDGER_KEY)
    except (ValueError, FeddpError) as error:
        detail = error.message if isinstance(error, FeddpError) else f"{CHAIN} is not readable PEM"
        raise Malformed("IDENTITY_INVALID", f"{folder} is damaged: {detail}") from None
    return Identity(spiffe_id, leaf.not_valid_after_utc, chain, bundle, key, ledger_key)


def node_id_of(leaf: x509.Certificate) -> SpiffeId:
    """The node that a certificate names.

    Raises:
        Malformed: IDENTITY_INVALID, SPIFFE_INVALID.
    """
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        raise Malformed("IDENTITY_INVALID", "the certificate does not name one identity") from None
    spiffe_id = SpiffeId.parse(uri)
    if spiffe_id.kind != "node":
        raise Malformed("IDENTITY_INVALID", f"the certificate is for {spiffe_id}, not for a node")
    return spiffe_id
