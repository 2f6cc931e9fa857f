"""What `feddp agent join`, `agent move` and `profile join` say to people while they ask."""

import json
import re
import sys
from collections.abc import Callable

import typer

from certs.tokens import JoinToken, Kind
from feddp.cli import output
from feddp.cli.failures import FAILED
from protos.errors import FeddpError, Malformed, NotAllowed


def announce(
    token: str,
    as_json: bool,
    kind: Kind = "node",
    *,
    fingerprint: str = "",
    yes: bool = False,
) -> None:
    """Whom this machine is about to trust. A person at a terminal is asked whether it is right; a
    script goes on, as nobody would answer.

    Args:
        as_json: a program finds it in the answer.
        kind: of the token.
        fingerprint: what it must be, SHA-256 in hexadecimal; empty where it is not known.
        yes: do not ask.

    Raises:
        Malformed: TOKEN_INVALID, FINGERPRINT_INVALID.
        NotAllowed: ROOT_MISMATCH.
        typer.Exit: a person said no.
    """
    parsed = JoinToken.parse(token, kind)
    if fingerprint:
        _compare(parsed, fingerprint)
    if as_json:
        return
    output.note(f"coordinator {parsed.address}, root certificate SHA-256 {parsed.fingerprint}")
    if fingerprint:
        output.note("it is the one that --fingerprint names")
        return
    output.note("compare it with what the coordinator's operator tells you by another way")
    if yes or not sys.stdin.isatty():
        return
    sys.stderr.write("Does it agree? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        output.note("not joined: nothing was sent and nothing made; the token is as good as before")
        raise typer.Exit(FAILED)


def _compare(token: JoinToken, fingerprint: str) -> None:
    expected = "".join(fingerprint.split()).replace(":", "").upper()
    if not re.fullmatch(r"[0-9A-F]{64}", expected):
        raise Malformed(
            "FINGERPRINT_INVALID",
            "--fingerprint takes a SHA-256 in hexadecimal: 64 digits, with or without colons",
        )
    if token.fingerprint.replace(":", "") != expected:
        raise NotAllowed(
            "ROOT_MISMATCH",
            f"the token names another root than --fingerprint: SHA-256 {token.fingerprint}. "
            "Nothing was sent; ask the coordinator's operator for a token by a way that nobody "
            "else can write to",
        )


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
