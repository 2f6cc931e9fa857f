"""One authority after another, with a time in which both are trusted.

`certs.authority_state` says which issues and which is trusted beside it. It is replaced as a whole,
so that each step happens or does not:

1. `begin` makes the next authority in a folder of its own. Nodes and people learn its root with
   their next renewal; the present one goes on issuing.
2. `switch` lets the next one issue, the server's own certificate included. Who has not learned its
   root by then cannot connect any more.
3. `finish` ends the trust in the former one. Whose certificate is still of that is shut out.
"""

from datetime import datetime
from pathlib import Path
from typing import Final

from certs.authority import Authority
from certs.authority_state import RolloverState, read_state, write_state
from protos.content import sync_directory
from protos.errors import WrongPhase

FORMER_KEYS: Final = ("root.key", "issuing.key")


def begin(pki: Path, trust_domain: str, now: datetime | None = None) -> None:
    """Make the authority that is to follow. Once begun it is not begun again.

    Raises:
        WrongPhase: ROLLOVER_UNDER_WAY.
    """
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
    write_state(pki, RolloverState(state.current, next=name))


def switch(pki: Path) -> None:
    """Let the next authority issue.

    Raises:
        WrongPhase: ROLLOVER_NOT_BEGUN.
    """
    state = read_state(pki)
    if state.phase != "begun":
        raise _not_begun("switch", state)
    write_state(pki, RolloverState(state.next, former=state.current))


def finish(pki: Path) -> None:
    """End the trust in the former authority, and remove its keys.

    Raises:
        WrongPhase: ROLLOVER_NOT_BEGUN.
    """
    state = read_state(pki)
    if state.phase != "switched":
        raise _not_begun("finish", state)
    write_state(pki, RolloverState(state.current))
    for name in FORMER_KEYS:
        (pki / state.former / name).unlink(missing_ok=True)
    sync_directory(pki / state.former)


def _not_begun(step: str, state: RolloverState) -> WrongPhase:
    return WrongPhase(
        "ROLLOVER_NOT_BEGUN",
        f"there is nothing to {step}: the rollover is {state.phase}; `feddp coordinator "
        "ca-rollover status` says what is next",
    )
