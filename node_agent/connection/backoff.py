"""When to try again after an rpc failed."""

import random
from typing import Final

import grpc

from protos.errors import FeddpError
from protos.status import from_rpc

FIRST_S: Final = 0.5
MAX_S: Final = 15.0
SLOW_S: Final = 30.0
"""Between tries that only a person can make succeed: a disabled node, another version."""

_JITTER: Final = random.Random()
"""One for all: seeding one takes longer than what most of them are made for, a try that works."""

_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
_SHUT_OUT: Final = frozenset({"UNAUTHENTICATED"})
_SHUT_OUT_REASONS: Final = frozenset({"NODE_DISABLED", "NODE_QUARANTINED", "ROLE_NOT_ALLOWED"})


class Backoff:
    """Full jitter: each wait is anything up to a bound that doubles, so that agents spread."""

    def __init__(self, random_: random.Random | None = None, max_s: float = MAX_S) -> None:
        self._max_s = max_s
        self._random = random_ or _JITTER
        self._tries = 0

    def reset(self) -> None:
        """It worked: the next failure starts from the beginning."""
        self._tries = 0

    def next_s(self) -> float:
        """How long to wait now."""
        bound_s = min(self._max_s, FIRST_S * 2.0 ** min(self._tries, 10))
        self._tries += 1
        return self._random.uniform(0.0, bound_s)

    def after(self, error: grpc.RpcError) -> float | None:
        """How long to wait before the same request again; None if it can never succeed."""
        found = from_rpc(error)
        if found.retry_after_s is not None:
            return max(found.retry_after_s, self.next_s())
        # A call that was on its way when our newer certificate came into use.
        renewed = found.reason == "CERTIFICATE_SUPERSEDED"
        if error.code() in _AGAIN or found.retryable or renewed:
            return self.next_s()
        return SLOW_S if is_shut_out(found) else None


def is_shut_out(error: FeddpError) -> bool:
    """Whether the coordinator refuses this node altogether, until a person changes that."""
    return error.code in _SHUT_OUT or error.reason in _SHUT_OUT_REASONS
