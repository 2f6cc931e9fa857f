"""The only source of noise and of sampling: ChaCha20 keyed by the operating system."""

import math
import os
from typing import Final, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]

_KEY_BYTES: Final = 32
_NONCE: Final = bytes(16)
"""The key is used for one stream only, so its nonce may be constant."""

_forks = 0
"""Forks between the first process and this one: a number of a process can come again."""


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)

_BLOCK_BYTES: Final = 1 << 22
_STREAM_BYTES_MAX: Final = 1 << 30
"""A new key well before the cipher's 32-bit block counter wraps at 256 GiB."""

_BITS: Final = 53


class SecureNoise:
    """Gaussian noise and Bernoulli sampling that nobody outside can predict.

    Each object has a key of its own; there is no seed, the state cannot be saved, and a forked
    process gets a key of its own. Not safe for several threads at once.

    Source: Holohan and Braghin 2021 (arXiv 2107.10138): adding up four independent draws puts
    the search for the floating-point grid of a single draw (Mironov 2012) out of reach.
    """

    def __init__(self) -> None:
        self._rekey()

    def gaussian(self, shape: tuple[int, ...], std: float) -> NDArray[np.float64]:
        """Independent draws of N(0, std^2), of `shape`; 0 <= std < inf."""
        if not (math.isfinite(std) and std >= 0):
            raise ValueError("std must be finite and not negative")
        total = np.zeros(shape, dtype=np.float64)
        for _ in range(4):
            total += ndtri(self._open_uniform(total.size)).reshape(shape)
        total *= std / 2.0
        return total

    def bernoulli(self, n: int, p: float) -> NDArray[np.bool_]:
        """(n,) independent draws, True with probability `p` (at most 2^-53 less)."""
        if not 0 <= p <= 1:
            raise ValueError("p must be from 0 to 1")
        return self._integers(n) < np.uint64(math.floor(math.ldexp(p, _BITS)))

    def __reduce__(self) -> NoReturn:
        raise TypeError("the state of the noise is never saved")

    def _open_uniform(self, count: int) -> NDArray[np.float64]:
        """Multiples of 2^-53 strictly between 0 and 1, each as likely as the others."""
        integers = self._integers(count)
        while (zeros := np.flatnonzero(integers == 0)).size:
            integers[zeros] = self._integers(zeros.size)
        return np.ldexp(integers.astype(np.float64), -_BITS)

    def _integers(self, count: int) -> NDArray[np.uint64]:
        """(count,) integers of 53 random bits."""
        words = np.frombuffer(self._random_bytes(8 * count), dtype="<u8")
        return words.astype(np.uint64) >> np.uint64(64 - _BITS)

    def _random_bytes(self, count: int) -> bytes:
        """The next `count` bytes of the key stream; tests replace this and nothing else."""
        if self._process != _process():
            self._rekey()
        blocks = []
        while count > 0:
            size = min(count, _BLOCK_BYTES)
            if self._used_bytes + size > _STREAM_BYTES_MAX:
                self._rekey()
            blocks.append(self._stream.update(bytes(size)))
            self._used_bytes += size
            count -= size
        return b"".join(blocks)

    def _rekey(self) -> None:
        key = os.urandom(_KEY_BYTES)
        self._stream = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
        self._used_bytes = 0
        self._process = _process()


def _process() -> tuple[int, int]:
    """Another one in every process; the number for those that no Python function has forked."""
    return _forks, os.getpid()
