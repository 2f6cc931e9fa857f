"""One authority after another, with a time in which both are trusted.

`pki/authority.json` says which folder's authority issues and which is trusted beside it; without
the file it is the one in `pki` itself. The file is replaced as a whole, so that each step happens
or does not:

1. `begin` makes the next authority in a folder of its own. Nodes and people learn its root with
   their next renewal; the present one goes on issuing.
2. `switch` lets the next one issue, the server's own certificate included. Who has not learned its
   root by then cannot connect any more.
3. `finish` ends the trust in the former one. Whose certificate is still of that is shut out.
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from cryptography import x509

from protos.content import sync_directory, write_durable
from protos.errors import Malformed, WrongPhase

STATE_FILE: Final = "authority.json"
FORMER_KEYS: Final = ("root.key", "issuing.key")

Phase = Literal["settled", "begun", "switched"]


@dataclass(frozen=True, slots=True)
class RolloverState:
    """Folders within `pki`; "." is `pki` itself.

    Attributes:
        current: of the authority that issues.
        next: of the one that is to follow; empty before `begin` and from `switch` on.
        former: of the one before, still trusted; empty before `switch` and from `finish` on.
    """

    current: str = "."
    next: str = ""
    former: str = ""

    @property
    def phase(self) -> Phase:
        """Where the rollover stands."""
        return "begun" if self.next else "switched" if self.former else "settled"


def read_state(pki: Path) -> RolloverState:
    """What `authority.json` says.

    Raises:
        Malformed: AUTHORITY_INVALID.
    """
    try:
        text = (pki / STATE_FILE).read_bytes()
    except FileNotFoundError:
        return RolloverState()
    try:
        state = RolloverState(**json.loads(text))
        names = asdict(state).values()
        if not state.current or not all(isinstance(n, str) and "/" not in n for n in names):
            raise ValueError
    except (ValueError, TypeError):
        raise Malformed(
            "AUTHORITY_INVALID", f"{pki / STATE_FILE} is damaged; restore it from a backup"
        ) from None
    return state


def begin(pki: Path, trust_domain: str, now: datetime | None = None) -> None:
    """Make the authority that is to follow. Once begun it is not begun again.

    Raises:
        WrongPhase: ROLLOVER_UNDER_WAY.
    """
    # Only here: the authority reads our state when it is loaded.
    from certs.authority import Authority

    state = read_state(pki)
    if state.phase != "settled":
        raise WrongPhase(
            "ROLLOVER_UNDER_WAY",
            f"a rollover has {state.phase} already; `feddp coordinator ca-rollover status` says "
            "what is next",
        )
    number = 2
    while (pki / f"ca-{number}").exists():
        number += 1
    name = f"ca-{number}"
    Authority.create(pki / name, trust_domain, now)
    _write(pki, RolloverState(state.current, next=name))


def switch(pki: Path) -> None:
    """Let the next authority issue.

    Raises:
        WrongPhase: ROLLOVER_NOT_BEGUN.
    """
    state = read_state(pki)
    if state.phase != "begun":
        raise _not_begun("switch", state)
    _write(pki, RolloverState(state.next, former=state.current))


def finish(pki: Path) -> None:
    """End the trust in the former authority, and remove its keys.

    Raises:
        WrongPhase: ROLLOVER_NOT_BEGUN.
    """
    state = read_state(pki)
    if state.phase != "switched":
        raise _not_begun("finish", state)
    _write(pki, RolloverState(state.current))
    for name in FORMER_KEYS:
        (pki / state.former / name).unlink(missing_ok=True)
    sync_directory(pki / state.former)


def bundle_roots(bundle: bytes) -> list[x509.Certificate]:
    """The roots in a bundle.

    Raises:
        Malformed: BUNDLE_INVALID.
    """
    try:
        return x509.load_pem_x509_certificates(bundle)
    except (ValueError, x509.InvalidVersion):
        raise Malformed("BUNDLE_INVALID", "the trust bundle is not readable PEM") from None


def _write(pki: Path, state: RolloverState) -> None:
    write_durable(pki / STATE_FILE, (json.dumps(asdict(state)) + "\n").encode())


def _not_begun(step: str, state: RolloverState) -> WrongPhase:
    return WrongPhase(
        "ROLLOVER_NOT_BEGUN",
        f"there is nothing to {step}: the rollover is {state.phase}; `feddp coordinator "
        "ca-rollover status` says what is next",
    )
