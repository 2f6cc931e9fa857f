"""What `feddp agent join` and `profile join` say to people while they ask."""

import json
import sys
from collections.abc import Callable

from certs.tokens import JoinToken, Kind
from feddp.cli import output
from protos.errors import FeddpError


def announce(token: str, as_json: bool, kind: Kind = "node") -> None:
    """Whom this machine is about to trust, for people to compare.

    Args:
        as_json: a program finds it in the answer.
        kind: of the token.

    Raises:
        Malformed: TOKEN_INVALID.
    """
    parsed = JoinToken.parse(token, kind)
    if as_json:
        return
    output.note(f"coordinator {parsed.address}, root certificate SHA-256 {parsed.fingerprint}")
    output.note("compare it with what the coordinator's operator tells you by another way")


def waiting(wait: bool, as_json: bool) -> Callable[[FeddpError], bool]:
    """Says once that the join waits for a person, and whether it goes on waiting."""
    said = False

    def pending(error: FeddpError) -> bool:
        nonlocal said
        if wait and not said:
            said = True
            if as_json:
                body = {"waiting": {"reason": error.reason, "message": error.message}}
                sys.stderr.write(f"{json.dumps(body)}\n")
                return wait
            output.note(f"waiting: {error.message}")
            output.note("tell them this key; Ctrl-C is safe, the same command goes on from here")
        return wait

    return pending
