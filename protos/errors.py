"""The one error tree, shared by both ends of the wire.

Each class carries the gRPC `code` that it travels as, and whether the same request may be sent
again unchanged. Each error carries a stable `reason` in UPPER_SNAKE and a sentence that says what
happened, where, and what to do next. A message holds ids and counts that the caller knows; never a
value, a norm or a loss computed from data, and never `repr` of another exception.
"""

from typing import ClassVar


class FeddpError(Exception):
    """Base of every error that a user or a peer may see.

    Attributes:
        reason: stable, UPPER_SNAKE; scripts and tests compare it.
        message: what happened, where, and what to do next.
        retry_after_s: when the same request may be tried again; None when it should not be.
    """

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, reason: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class Malformed(FeddpError):
    """The request can never be right: shape, schema, checksum, name, configuration."""

    code = "INVALID_ARGUMENT"


class Unauthenticated(FeddpError):
    """The caller's identity cannot be read, or is not one that we issued."""

    code = "UNAUTHENTICATED"


class NotAllowed(FeddpError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"


class NotFound(FeddpError):
    """There is no such thing, or none that the caller may see."""

    code = "NOT_FOUND"


class Conflict(FeddpError):
    """The same id exists with other contents."""

    code = "ALREADY_EXISTS"


class WrongPhase(FeddpError):
    """Right request, wrong time: it may succeed after the state has changed."""

    code = "FAILED_PRECONDITION"


class TooLate(FeddpError):
    """The round or attempt has closed; join the next one."""

    code = "ABORTED"


class BudgetRefused(FeddpError):
    """The privacy budget does not allow it, now or ever."""

    code = "RESOURCE_EXHAUSTED"


class Limited(FeddpError):
    """Too many or too large; the error says after how many seconds to try again."""

    code = "RESOURCE_EXHAUSTED"
    retryable = True


class Unavailable(FeddpError):
    """The peer or its store is down or draining; try again with backoff."""

    code = "UNAVAILABLE"
    retryable = True


class Internal(FeddpError):
    """A bug of ours; the message holds an incident id that stands in our log beside the cause."""

    code = "INTERNAL"


class RemoteError(FeddpError):
    """An error that a peer reported and that has no class of its own here."""


class InvariantBroken(Exception):
    """The state contradicts itself; nothing may go on from here."""


def invariant(condition: bool, message: str) -> None:
    """Stop if ledger, privacy or round state contradicts itself (an `assert` vanishes under -O).

    Raises:
        InvariantBroken: `condition` is false.
    """
    if not condition:
        raise InvariantBroken(message)
