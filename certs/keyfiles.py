"""Private keys on disk: never readable by others, never written over, encrypted on request.

An encrypted key is PKCS#8 under a passphrase that comes from the environment: an agent that starts
by itself reads it from where `FEDDP_KEY_PASSPHRASE_FILE` points, such as a systemd credential.
"""

import os
from pathlib import Path
from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from protos.content import naming, sync_directory
from protos.errors import Conflict, Malformed, NotFound, invariant

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

KEY_FILE_BYTES_MAX = 16 << 10

VARIABLE = "FEDDP_KEY_PASSPHRASE"
FILE_VARIABLE = "FEDDP_KEY_PASSPHRASE_FILE"
PASSPHRASE_CHARACTERS_MIN = 12

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


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
        with naming(path), os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # Half a key would block the next attempt; the file is ours, as O_EXCL has shown.
        path.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def save_private_key(path: Path, key: PrivateKey, *, encrypted: bool = False) -> None:
    """Write `key` as PKCS#8 PEM, mode 0600; an existing identity is never written over.

    Raises:
        Conflict: FILE_EXISTS.
        Malformed: PASSPHRASE_MISSING, PASSPHRASE_SHORT.
    """
    write_new(path, stored_pem(key, encrypted=encrypted), 0o600)


def stored_pem(key: PrivateKey, *, encrypted: bool) -> bytes:
    """`key` as it goes to the disk.

    Raises:
        Malformed: PASSPHRASE_MISSING, PASSPHRASE_SHORT.
    """
    if not encrypted:
        return private_pem(key)
    secret = passphrase()
    if len(secret) < PASSPHRASE_CHARACTERS_MIN:
        raise Malformed(
            "PASSPHRASE_SHORT",
            f"the passphrase of the keys has {len(secret)} bytes; give at least "
            f"{PASSPHRASE_CHARACTERS_MIN}, such as `openssl rand -base64 24` makes",
        )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(secret),
    )


def is_encrypted(path: Path) -> bool:
    """Whether a key file needs a passphrase; False where there is none."""
    try:
        return _ENCRYPTED in path.read_bytes()
    except OSError:
        return False


def passphrase() -> bytes:
    """The passphrase of this installation's keys, without the line's end.

    Raises:
        Malformed: PASSPHRASE_MISSING.
    """
    if name := os.environ.get(FILE_VARIABLE):
        try:
            secret = Path(name).read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise Malformed(
                "PASSPHRASE_MISSING", f"{name} cannot be read ({error.strerror}): {FILE_VARIABLE}"
            ) from None
    else:
        secret = os.environ.get(VARIABLE, "").encode()
    if not secret:
        raise Malformed(
            "PASSPHRASE_MISSING",
            f"the keys are encrypted: set {FILE_VARIABLE} to a file that holds their passphrase, "
            f"or {VARIABLE} to the passphrase itself",
        )
    return secret


def _source() -> str:
    name = os.environ.get(FILE_VARIABLE)
    return f"in {name} ({FILE_VARIABLE})" if name else f"in {VARIABLE}"


def private_pem(key: PrivateKey) -> bytes:
    """`key` as unencrypted PKCS#8 PEM: what gRPC takes."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_in(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in unencrypted PEM that was checked before."""
    key = serialization.load_pem_private_key(pem, None)
    invariant(isinstance(key, ec.EllipticCurvePrivateKey), "a certificate's key of another kind")
    return cast(ec.EllipticCurvePrivateKey, key)


def load_certificate_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key that `save_private_key` wrote.

    Raises:
        NotFound: KEY_MISSING.
        Malformed: KEY_INVALID, PASSPHRASE_MISSING, PASSPHRASE_WRONG.
    """
    key = _load(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _not_a_key(path, "an ECDSA P-256 key")
    return key


def load_ledger_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key that `save_private_key` wrote.

    Raises:
        NotFound: KEY_MISSING.
        Malformed: KEY_INVALID, PASSPHRASE_MISSING, PASSPHRASE_WRONG.
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
    secret = passphrase() if _ENCRYPTED in data else None
    try:
        return serialization.load_pem_private_key(data, password=secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if secret is not None:
            raise Malformed(
                "PASSPHRASE_WRONG",
                f"the passphrase {_source()} does not open {path}: put back there the one that the "
                "keys were made with",
            ) from None
        raise _not_a_key(path, "a PEM private key") from None


def _not_a_key(path: Path, wanted: str) -> Malformed:
    return Malformed(
        "KEY_INVALID",
        f"{path} does not hold {wanted}; restore it from a backup, or remove it and enrol again",
    )
