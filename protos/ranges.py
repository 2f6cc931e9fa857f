"""How large the next call of a transfer is: bounded in bytes, and by the measured speed in time."""

from typing import Final

from protos.content import CHUNK_BYTES, RANGE_BYTES

RANGE_BYTES_MIN: Final = 64 << 10
RANGE_BYTES_FIRST: Final = 1 << 20
"""Before anything was measured."""

MESSAGE_BYTES_MIN: Final = 16 << 10

RANGE_S: Final = 4.0
"""What a call should take; the server ends it at its own bound, proxies soon after that."""

CALL_TIMEOUT_S: Final = 14.0
"""What a caller waits for one call: more than the server's bound, less than a proxy's 15 s."""

GROWTH: Final = 4
"""A range grows by this factor at most, so that one lucky call does not overshoot."""


class Pace:
    """The ranges of one direction of one link; follows its speed."""

    def __init__(self) -> None:
        self.range_bytes = RANGE_BYTES_FIRST

    @property
    def message_bytes(self) -> int:
        """Of one message: several to a range, so that a call that is cut short has moved some."""
        return max(MESSAGE_BYTES_MIN, min(CHUNK_BYTES, self.range_bytes // 4))

    def moved(self, bytes_: int, seconds: float) -> None:
        """A call moved so many bytes in so many seconds."""
        if bytes_ < self.range_bytes // 2 and seconds < RANGE_S:
            return  # the short end of a blob: it measures latency, not speed
        possible = int(bytes_ / max(seconds, 1e-6) * RANGE_S)
        self._set(min(possible, GROWTH * self.range_bytes))

    def broke(self) -> None:
        """A call moved nothing, or broke off."""
        self._set(self.range_bytes // 2)

    def _set(self, bytes_: int) -> None:
        self.range_bytes = max(RANGE_BYTES_MIN, min(RANGE_BYTES, bytes_))
