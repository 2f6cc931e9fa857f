"""The coordinator's ledger key: it signs checkpoints, and nodes remember it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import load_ledger_key, new_ledger_key, public_bytes_of, save_private_key
from privacy.entries import is_signed
from privacy.epochs import Epoch
from privacy.heads import Checkpoint
from protos.errors import Malformed, NotFound

FILE = "ledger.key"

RESTORE_IT: Final = (
    "restore that file from a backup that holds keys (`feddp coordinator restore` puts it into a "
    "new folder's pki)"
)


def ledger_key(
    pki: Path, signed: Sequence[Epoch | Checkpoint] = (), *, shared: bool = False
) -> Ed25519PrivateKey:
    """The key; made with the installation (before 0.2, at the first start), the same for ever.

    Args:
        signed: what it has signed last, as the database has it; with anything there, none is made.
        shared: with other replicas, each of which has a copy: none makes one of its own.

    Raises:
        as `check_ledger_key`.
    """
    key = check_ledger_key(pki, signed, shared=shared)
    if key is None:
        key = new_ledger_key()
        save_private_key(pki / FILE, key)
    return key


def check_ledger_key(
    pki: Path, signed: Sequence[Epoch | Checkpoint], *, shared: bool = False
) -> Ed25519PrivateKey | None:
    """The key; None where there is none yet, and one may be made.

    Raises:
        NotFound: LEDGER_KEY_MISSING.
        Malformed: LEDGER_KEY_CHANGED, another key has signed what is in the database; KEY_INVALID,
            PASSPHRASE_MISSING, PASSPHRASE_WRONG.
    """
    path = pki / FILE
    if not path.exists():
        if shared:
            raise NotFound(
                "LEDGER_KEY_MISSING",
                f"there is no {path}: every replica needs the whole folder of the installation's "
                "keys (storage.pki_dir); nodes take another key for another coordinator",
            )
        if signed:
            raise NotFound(
                "LEDGER_KEY_MISSING",
                f"there is no {path}, with which this database's checkpoints are signed; nodes "
                f"would dispute every account under another key, and none was made: {RESTORE_IT}",
            )
        return None
    key = load_ledger_key(path)
    public = public_bytes_of(key)
    if not all(is_signed(public, one.canonical(), one.signature) for one in signed):
        raise Malformed(
            "LEDGER_KEY_CHANGED",
            f"{path} is another key than this database's newest checkpoint is signed with; nodes "
            f"would dispute every account: {RESTORE_IT}",
        )
    return key


def ledger_public_key(pki: Path) -> bytes:
    """Its raw public half; empty before the first start."""
    return public_bytes_of(load_ledger_key(pki / FILE)) if (pki / FILE).exists() else b""
