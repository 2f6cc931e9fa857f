"""Who this node is: the keys and certificates in DIR/identity."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.credentials import channel_credentials
from certs.enrolment import load_certificate_key, load_ledger_key, private_pem, public_bytes_of
from certs.issued import identity_of
from certs.rotation import renewal_due_at
from certs.spiffe import SpiffeId
from node_agent.folder.ownership import denied
from node_agent.joining.waiting_join import join_waits
from node_agent.ledger.lost_keys import READABLE, LostKey, lost
from protos.content import sync_directory
from protos.errors import FeddpError, Malformed, NotAllowed, NotFound

KEY, CHAIN, BUNDLE, LEDGER_KEY = "node.key", "node.crt", "bundle.pem", "ledger.key"
NEXT_KEY: Final = "next.key"
"""The key of a renewal under way; becomes `node.key`. See `node_agent.joining.renewal`."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's identity, as enrolment or a renewal wrote it.

    Attributes:
        expires_at: last moment of the certificate, UTC.
        renews_at: when the agent asks for the next one, UTC.
        chain: the node's certificate and the issuing authority's, PEM.
        bundle: the roots that the node trusts, PEM: one, or two while the authority is replaced.
        ledger_key: signs the ledger; outlives every certificate.
        lost: why a key of it could not be read, of one that was loaded to read by; `key` is empty
            then where it is that one.
    """

    spiffe_id: SpiffeId
    expires_at: datetime
    renews_at: datetime
    chain: bytes
    bundle: bytes
    key: bytes = field(repr=False)
    ledger_key: Ed25519PrivateKey = field(repr=False)
    lost: FeddpError | None = field(default=None, repr=False)

    @property
    def node(self) -> str:
        """The node's name."""
        return self.spiffe_id.name

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER, hexadecimal."""
        leaf = x509.load_pem_x509_certificates(self.chain)[0]
        return leaf.fingerprint(hashes.SHA256()).hex()

    @property
    def ledger_public_key(self) -> bytes:
        """Raw Ed25519 public key."""
        return public_bytes_of(self.ledger_key)

    def credentials(self) -> grpc.ChannelCredentials:
        """mTLS credentials for the coordinator's port."""
        return channel_credentials(self.bundle, self.key, self.chain)


def load_identity(folder: Path, *, to_read: bool = False) -> Identity:
    """Read DIR/identity, also while a renewal switches over or after one was cut short.

    Args:
        to_read: the ledger and nothing more: a key that cannot be read is no error, and `lost`.

    Raises:
        NotAllowed: OTHER_USER, it is another user's.
        NotFound: NOT_JOINED.
        Malformed: IDENTITY_INVALID, PASSPHRASE_MISSING, PASSPHRASE_WRONG.
    """
    try:
        while True:
            chain, bundle = ((folder / name).read_bytes() for name in (CHAIN, BUNDLE))
            try:
                key, lost_key = _key_of(folder, chain), None
            except FeddpError as error:
                if not to_read:
                    raise
                key, lost_key = b"", lost(error, str(folder))
            if (folder / CHAIN).read_bytes() == chain:
                break
    except PermissionError:
        raise NotAllowed("OTHER_USER", denied(folder)) from None
    except (OSError, NotFound):
        raise NotFound(
            "NOT_JOINED",
            f"{folder} holds no whole identity; run `feddp agent join TOKEN --dir {folder.parent}`",
        ) from None
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        spiffe_id = identity_of(leaf, "node")
        try:
            if key:
                channel_credentials(bundle, key, chain)
        except FeddpError as error:
            if not to_read:
                raise
            key, lost_key = b"", lost(error, str(folder))
    except (ValueError, FeddpError) as error:
        detail = error.message if isinstance(error, FeddpError) else f"{CHAIN} is not readable PEM"
        if waits := join_waits(folder.parent):
            detail = f"{detail}; {waits}"
        raise Malformed("IDENTITY_INVALID", f"{folder} is damaged: {detail}") from None
    ledger_key, lost_ledger_key = read_ledger_key(folder)
    if lost_ledger_key is not None and not to_read:
        raise lost_ledger_key
    return Identity(
        spiffe_id,
        leaf.not_valid_after_utc,
        renewal_due_at(leaf),
        chain,
        bundle,
        key,
        ledger_key,
        _said_of(lost_key, folder) or lost_ledger_key,
    )


def _said_of(lost_key: FeddpError | None, folder: Path) -> FeddpError | None:
    """Of a certificate's key that is lost: that a join waits which makes up for it, if one does."""
    if lost_key is None or not (waits := join_waits(folder.parent)):
        return lost_key
    return type(lost_key)(
        lost_key.reason, f"the key of {folder / CHAIN} is lost, and {waits}. {READABLE}"
    )


def read_ledger_key(folder: Path) -> tuple[Ed25519PrivateKey, FeddpError | None]:
    """The ledger's key in DIR/identity, or one that signs nothing, and why."""
    try:
        return load_ledger_key(folder / LEDGER_KEY), None
    except FeddpError as error:
        why = lost(error, str(folder))
    return LostKey(why), why


def is_key_lost(folder: Path) -> bool:
    """Whether no key of DIR/identity is the certificate's: what lies in its place, if anything, is
    of a join that is under way.

    Raises:
        Malformed: PASSPHRASE_MISSING, PASSPHRASE_WRONG.
    """
    chain = (folder / CHAIN).read_bytes()
    if any(_key_for(folder / name, chain) is not None for name in (KEY, NEXT_KEY)):
        return False
    try:
        x509.load_pem_x509_certificates(chain)
        load_certificate_key(folder / KEY)
    except NotFound:
        return True
    except (ValueError, Malformed):
        return False  # it is damaged, and `load_identity` says so
    return True


def _key_of(folder: Path, chain: bytes) -> bytes:
    """The key that a certificate is for, not encrypted; `node.key` where none is, for others to
    say so.

    Raises:
        Malformed: PASSPHRASE_MISSING, PASSPHRASE_WRONG.
        NotFound: KEY_MISSING, there is no `node.key`.
    """
    # The one may be renamed over the other between two looks.
    for name in (KEY, NEXT_KEY, KEY):
        if (found := _key_for(folder / name, chain)) is not None:
            return private_pem(found)
    try:
        return (folder / KEY).read_bytes()
    except FileNotFoundError:
        raise NotFound("KEY_MISSING", f"there is no key file {folder / KEY}") from None


def _key_for(path: Path, chain: bytes) -> ec.EllipticCurvePrivateKey | None:
    """The key in a file, if a certificate is for it."""
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        key = load_certificate_key(path)
    except Malformed as error:
        if error.reason.startswith("PASSPHRASE"):
            raise
        return None
    except (ValueError, NotFound):
        return None
    return key if key.public_key() == leaf.public_key() else None


def settle(folder: Path) -> None:
    """Finish what an earlier process began to write into DIR/identity; its owner calls this."""
    for name in (NEXT_KEY, CHAIN, BUNDLE):
        for left_over in folder.glob(f".{name}.*.partial"):
            left_over.unlink()
    if (folder / NEXT_KEY).exists() and _key_for(folder / NEXT_KEY, (folder / CHAIN).read_bytes()):
        (folder / NEXT_KEY).replace(folder / KEY)
        sync_directory(folder)
