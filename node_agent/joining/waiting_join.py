"""A join that waits for the coordinator's operator, for whoever comes back to its folder later."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from certs.tokens import JoinToken, hash_secret
from protos.content import write_durable
from protos.errors import FeddpError

NAME: Final = "waiting.json"
"""In DIR/identity, from the first answer that a person must decide until one is had."""

SAID_CHARS_MAX: Final = 300


def note_waiting(identity: Path, token: JoinToken, error: FeddpError) -> None:
    """Keep for whom the join waits; it is written once for one answer.

    Args:
        identity: DIR/identity.
        token: that waits.
        error: JOIN_PENDING; it says as what, and by which key.
    """
    said = "".join(one for one in error.message if one.isprintable())[:SAID_CHARS_MAX]
    before = _read(identity)
    body: dict[str, object] = {"coordinator": token.address, "said": said, "token": _name(token)}
    if body.items() <= before.items():
        return
    body["since_s"] = time.time()
    write_durable(identity / NAME, json.dumps(body).encode())


def forget_waiting(identity: Path, refused: JoinToken | None = None) -> None:
    """The join was answered: by a certificate, or by a refusal of the token that waits."""
    if refused is None or _read(identity).get("token") == _name(refused):
        (identity / NAME).unlink(missing_ok=True)


def waiting_said(root: Path) -> str:
    """That a join of a folder waits, a sentence without its full stop; empty where none does."""
    waits = join_waits(root)
    return f"{root} holds no agent yet: {waits}" if waits else ""


def join_waits(root: Path) -> str:
    """Since when and where it waits, by which key, and how it goes on; empty where none does."""
    found = _read(root / "identity")
    try:
        since = datetime.fromtimestamp(float(str(found["since_s"])), UTC)
        address, said = str(found["coordinator"]), str(found["said"])
    except (KeyError, ValueError, TypeError, OverflowError, OSError):
        return ""
    return (
        f"since {since:%Y-%m-%d %H:%M} UTC its join waits at {address}: {said}. Tell them this key "
        "by a way that both know; then the same command with the same token, `feddp agent join "
        f"TOKEN --dir {root}`, goes on from here. A new token is not needed"
    )


def _name(token: JoinToken) -> str:
    """Tells one token from another, and nothing of its secret."""
    return hash_secret(token.secret)[:16]


def _read(identity: Path) -> dict[str, object]:
    try:
        value = json.loads((identity / NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
