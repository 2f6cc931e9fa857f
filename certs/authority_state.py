"""Which authority issues, and which is trusted beside it: `pki/authority.json`.

Without the file it is the authority in `pki` itself. The file is replaced as a whole.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from protos.content import write_durable
from protos.errors import Malformed

STATE_FILE: Final = "authority.json"

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


def write_state(pki: Path, state: RolloverState) -> None:
    """Replace `authority.json`, durably."""
    write_durable(pki / STATE_FILE, (json.dumps(asdict(state)) + "\n").encode())
