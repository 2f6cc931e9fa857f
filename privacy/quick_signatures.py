"""Ed25519 signatures accepted by libsodium, which is faster, but only where OpenSSL would accept.

Verifiers of Ed25519 agree on what honest signers make and differ at the edges (Chalkias, Garillot
and Nikolaenko 2020, "Taming the many EdDSAs", eprint 2020/1244). One rule holds for the ledger,
that of `privacy.entries.is_signed`, which coordinator and nodes apply when they book:

1. S is below the group's order, else no;
2. the key decodes to a point A (small orders and a y of p or more are let through);
3. [S]B - [k]A, with k of the bytes of R, A and the message as they stand, is encoded and compared
   with the bytes of R: no cofactor, and another encoding of the same point is not R.

The libsodium that PyNaCl 1.6 brings does the same three and refuses more: R and A of small order,
an A that is not canonical. So what it accepts `is_signed` accepts, and of what it refuses nothing
is said: the caller asks `is_signed`. Libsodium's next version multiplies by the cofactor, and so
accepts signatures that the rule refuses; PyNaCl may also be built on a libsodium of the machine.
Therefore each process first tries it on signatures that the rule refuses, and does without it if
it accepts one.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from nacl.bindings import crypto_sign_BYTES, crypto_sign_open, crypto_sign_PUBLICKEYBYTES
from nacl.exceptions import BadSignatureError

_MIXED_KEY: Final = "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d"
_MIXED_MESSAGE: Final = "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c"
_LARGE_S_KEY: Final = "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623"
_LARGE_S_MESSAGE: Final = "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40"

REFUSED: Final[Sequence[tuple[bytes, bytes, bytes]]] = tuple(
    (bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature))
    for key, message, signature in (
        (
            _MIXED_KEY,
            _MIXED_MESSAGE,
            "160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed512"
            "5ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09",
        ),
        (
            _MIXED_KEY,
            _MIXED_MESSAGE,
            "21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7"
            "e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405",
        ),
        (
            _LARGE_S_KEY,
            _LARGE_S_MESSAGE,
            "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e"
            "547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
        ),
        (
            _LARGE_S_KEY,
            _LARGE_S_MESSAGE,
            "8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa1942"
            "7e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22",
        ),
    )
)
"""(key, message, signature) that the rule refuses and others accept: cofactored verifiers the first
two, those that do not compare S with the order the last two. Cases 4 to 7 of "Taming the many
EdDSAs", https://github.com/novifinancial/ed25519-speccheck/blob/main/cases.json
"""


def surely_signed(public_key: bytes, canonical: bytes, signature: bytes) -> bool:
    """True: `is_signed` would say so, too. False: ask it."""
    return _keeps_the_rule() and _accepts(public_key, canonical, signature)


def _accepts(public_key: bytes, message: bytes, signature: bytes) -> bool:
    # Libsodium reads as many bytes as it needs from where they should be: of a short key beyond
    # its end, and of a short signature from the message that follows it.
    if len(public_key) != crypto_sign_PUBLICKEYBYTES or len(signature) != crypto_sign_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True


@lru_cache(maxsize=1)
def _keeps_the_rule() -> bool:
    """Whether this libsodium refuses what only laxer rules accept; once a process, 0.2 ms."""
    return not any(_accepts(*one) for one in REFUSED)
