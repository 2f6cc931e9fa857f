"""The coordinator's ledger key: it signs checkpoints, and nodes remember it."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import load_ledger_key, new_ledger_key, public_bytes_of, save_private_key

FILE = "ledger.key"


def ledger_key(pki: Path) -> Ed25519PrivateKey:
    """The key; made at the first start, and the same for ever."""
    path = pki / FILE
    if not path.exists():
        save_private_key(path, new_ledger_key())
    return load_ledger_key(path)


def ledger_public_key(pki: Path) -> bytes:
    """Its raw public half; empty before the first start."""
    return public_bytes_of(load_ledger_key(pki / FILE)) if (pki / FILE).exists() else b""
