"""Private keys on disk: never readable by others, never written over."""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from protos.content import sync_directory
from protos.errors import Conflict, Malformed, NotFound

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

KEY_FILE_BYTES_MAX = 16 << 10


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create `path` with `mode` from its first moment, durably; an existing file stays as it is.

    Raises:
        Conflict: FILE_EXISTS.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise Conflict(
            "FILE_EXISTS",
            f"{path} exists and is not written over; move it away if it is no longer needed",
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # Half a key would block the next attempt; the file is ours, as O_EXCL has shown.
        path.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def save_private_key(path: Path, key: PrivateKey) -> None:
    """Write `key` as PKCS#8 PEM, mode 0600; an existing identity is never written over.

    Raises:
        Conflict: FILE_EXISTS.
    """
    write_new(path, private_pem(key), 0o600)


def private_pem(key: PrivateKey) -> bytes:
    """`key` as unencrypted PKCS#8 PEM: what `save_private_key` writes and gRPC takes."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_certificate_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key that `save_private_key` wrote.

    Raises:
        NotFound: KEY_MISSING.
        Malformed: KEY_INVALID.
    """
    key = _load(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _not_a_key(path, "an ECDSA P-256 key")
    return key


def load_ledger_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key that `save_private_key` wrote.

    Raises:
        NotFound: KEY_MISSING.
        Malformed: KEY_INVALID.
    """
    key = _load(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _not_a_key(path, "an Ed25519 key")
    return key


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            data = file.read(KEY_FILE_BYTES_MAX)
    except FileNotFoundError:
        raise NotFound("KEY_MISSING", f"there is no key file {path}") from None
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _not_a_key(path, "an unencrypted PEM private key") from None


def _not_a_key(path: Path, wanted: str) -> Malformed:
    return Malformed(
        "KEY_INVALID",
        f"{path} does not hold {wanted}; restore it from a backup, or remove it and enrol again",
    )
