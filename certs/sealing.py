"""A stream of bytes that only who has the password can read, and nobody can change unseen.

    header   "feddp-sealed-1\n", then log2(N), r and p of scrypt (a byte each), then 16 bytes salt
    chunks   ChaCha20-Poly1305 of 1 MiB each; the last one of 0 to 1 MiB

The key is HKDF-SHA256 of scrypt(password, salt), with the whole header as its info, so that a
changed header opens nothing. A chunk's nonce is its number (11 bytes, big-endian) and a byte that
is 1 for the last: chunks cannot be left out, put in another order, or cut off at the end. The key
belongs to one file alone, as its salt does.

Source: STREAM, Hoang, Reyhanitabar, Rogaway and Vizar 2015; as age (age-encryption.org/v1) uses it.
"""

import os
from typing import IO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protos.errors import Malformed

MAGIC: Final = b"feddp-sealed-1\n"
CHUNK_BYTES: Final = 1 << 20
TAG_BYTES: Final = 16
SALT_BYTES: Final = 16

LOG2_N: Final = 15
R: Final = 8
P: Final = 3
"""32 MiB and some 0.3 s for each guess (OWASP's choice for this memory)."""

LOG2_N_MAX: Final = 20
R_MAX: Final = 8
P_MAX: Final = 16
"""A file that asks for more is refused before it has cost anything."""

_HEADER_BYTES: Final = len(MAGIC) + 3 + SALT_BYTES


def is_sealed(beginning: bytes) -> bool:
    """Whether a file that begins like this was sealed."""
    return beginning.startswith(MAGIC)


class Sealer:
    """Seals what is written to it. `finish` it, or what was written cannot be read.

    Args:
        file: where it goes; stays open.
        password: any bytes; their strength is the file's.
    """

    def __init__(self, file: IO[bytes], password: bytes) -> None:
        header = MAGIC + bytes((LOG2_N, R, P)) + os.urandom(SALT_BYTES)
        self._file = file
        self._cipher = ChaCha20Poly1305(_key(header, password))
        self._number = 0
        self._waiting = bytearray()
        file.write(header)

    def write(self, data: bytes) -> int:
        """Take bytes; at most a chunk of them waits."""
        self._waiting += data
        # A full chunk waits for what follows it: it may be the last.
        while len(self._waiting) > CHUNK_BYTES:
            self._put(bytes(self._waiting[:CHUNK_BYTES]), last=False)
            del self._waiting[:CHUNK_BYTES]
        return len(data)

    def finish(self) -> None:
        """Write the last chunk."""
        self._put(bytes(self._waiting), last=True)
        self._waiting.clear()

    def _put(self, chunk: bytes, *, last: bool) -> None:
        nonce = _nonce(self._number, last=last)
        self._file.write(self._cipher.encrypt(nonce, chunk, None))
        self._number += 1


class Opener:
    """Reads what was sealed, chunk by chunk; no byte of a chunk that was changed is given out.

    Raises, also while it is read:
        Malformed: SEAL_BROKEN.
    """

    def __init__(self, file: IO[bytes], password: bytes) -> None:
        header = _exactly(file, _HEADER_BYTES)
        if len(header) < _HEADER_BYTES or not is_sealed(header):
            raise Malformed("SEAL_BROKEN", "the file does not begin as a sealed one")
        log2_n, r, p = header[len(MAGIC) : len(MAGIC) + 3]
        if not (1 <= log2_n <= LOG2_N_MAX and 1 <= r <= R_MAX and 1 <= p <= P_MAX):
            raise Malformed("SEAL_BROKEN", "the file asks for more work than one of ours does")
        self._file = file
        self._cipher = ChaCha20Poly1305(_key(header, password))
        self._number = 0
        self._next = _exactly(file, CHUNK_BYTES + TAG_BYTES)
        self._open = b""
        self._at_end = False

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, and fewer only at the end; all that are left without a size."""
        parts: list[bytes] = []
        wanted = size
        while wanted != 0:
            if not self._open:
                if self._at_end:
                    break
                self._take()
                continue
            part = self._open if wanted < 0 else self._open[:wanted]
            self._open = self._open[len(part) :]
            parts.append(part)
            wanted -= len(part) if wanted > 0 else 0
        return b"".join(parts)

    def _take(self) -> None:
        chunk, self._next = self._next, _exactly(self._file, CHUNK_BYTES + TAG_BYTES)
        self._at_end = not self._next
        try:
            nonce = _nonce(self._number, last=self._at_end)
            self._open = self._cipher.decrypt(nonce, chunk, None)
        except InvalidTag:
            why = (
                "the password is not the one that it was sealed with, or its beginning was changed"
                if self._number == 0
                else f"it was changed or cut off near byte {self._number * CHUNK_BYTES}"
            )
            raise Malformed("SEAL_BROKEN", f"the file cannot be opened: {why}") from None
        self._number += 1


def _key(header: bytes, password: bytes) -> bytes:
    log2_n, r, p = header[len(MAGIC) : len(MAGIC) + 3]
    salt = header[-SALT_BYTES:]
    secret = Scrypt(salt=salt, length=32, n=1 << log2_n, r=r, p=p).derive(password)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=header).derive(secret)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes((last,))


def _exactly(file: IO[bytes], size: int) -> bytes:
    """So many bytes, fewer only at the end of the file."""
    data = b""
    while len(data) < size and (part := file.read(size - len(data))):
        data = data + part if data else part
    return data
