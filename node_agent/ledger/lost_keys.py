"""Reading a node's ledger without its keys: one is lost, or the passphrase is forgotten.

What patients have spent stands in `state.db`, in plain text, and must be read in just this case.
Nothing can be signed meanwhile, and whether the node's own signatures hold cannot be checked.
"""

from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protos.errors import FeddpError

READABLE: Final = (
    "What its patients have spent can be read all the same: `feddp agent status`, `digest`, "
    "`outbox`, `ledger export FILE`; docs/hospital-it.md, Lost keys, says how to go on"
)


class LostKey(Ed25519PrivateKey):
    """In the place of a ledger key that cannot be read: it signs nothing."""

    def __init__(self, why: FeddpError) -> None:
        self._why = why
        # A key that nobody keeps: no signature holds by it.
        self._public = Ed25519PrivateKey.generate().public_key()

    def public_key(self) -> Ed25519PublicKey:
        """One by which no signature holds."""
        return self._public

    def sign(self, data: Any) -> NoReturn:
        """Raises: why the key cannot be read."""
        raise self._why

    def private_bytes(self, *_: Any, **__: Any) -> NoReturn:
        """As `sign`."""
        raise self._why

    def private_bytes_raw(self) -> NoReturn:
        """As `sign`."""
        raise self._why

    def __copy__(self) -> "LostKey":
        return self

    def __deepcopy__(self, _: Any) -> "LostKey":
        return self


def lost(error: FeddpError, where: str) -> FeddpError:
    """What is told of a key that cannot be read: which, and what to do.

    Args:
        where: the identity's folder.
    """
    if error.reason.startswith("PASSPHRASE"):
        return type(error)(error.reason, f"{error.message}. {READABLE}")
    return type(error)(
        "IDENTITY_INVALID",
        f"{where} is damaged: {error.message.removesuffix('.')}. Put that file back from a backup, "
        f"mode 0600, with the agent stopped. {READABLE}",
    )
