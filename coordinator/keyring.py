"""The coordinator's ledger key: it signs checkpoints, and nodes remember it."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import load_ledger_key, new_ledger_key, public_bytes_of, save_private_key
from protos.errors import NotFound

FILE = "ledger.key"


def ledger_key(pki: Path, *, shared: bool = False) -> Ed25519PrivateKey:
    """The key; made with the installation (before 0.2, at the first start), the same for ever.

    Args:
        shared: with other replicas, each of which has a copy: none makes one of its own.

    Raises:
        NotFound: LEDGER_KEY_MISSING.
    """
    path = pki / FILE
    if not path.exists():
        if shared:
            raise NotFound(
                "LEDGER_KEY_MISSING",
                f"there is no {path}: every replica needs the whole folder of the installation's "
                "keys (storage.pki_dir); nodes take another key for another coordinator",
            )
        save_private_key(path, new_ledger_key())
    return load_ledger_key(path)


def ledger_public_key(pki: Path) -> bytes:
    """Its raw public half; empty before the first start."""
    return public_bytes_of(load_ledger_key(pki / FILE)) if (pki / FILE).exists() else b""
