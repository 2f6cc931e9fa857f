"""What `feddp agent join` says to people while it asks."""

from collections.abc import Callable

from certs.tokens import JoinToken
from feddp.cli import output
from protos.errors import FeddpError


def announce(token: str) -> None:
    """Whom this machine is about to trust, for people to compare.

    Raises:
        Malformed: TOKEN_INVALID.
    """
    parsed = JoinToken.parse(token)
    output.note(f"coordinator {parsed.address}, root certificate SHA-256 {parsed.fingerprint}")
    output.note("compare it with what the coordinator's operator tells you by another way")


def waiting(wait: bool) -> Callable[[FeddpError], bool]:
    """Says once that the join waits for a person, and whether it goes on waiting."""
    said = False

    def pending(error: FeddpError) -> bool:
        nonlocal said
        if wait and not said:
            said = True
            output.note(f"waiting: {error.message}")
            output.note("tell them this key; Ctrl-C is safe, the same command goes on from here")
        return wait

    return pending
