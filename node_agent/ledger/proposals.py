"""A raise on its way from one steward to the other: a small file that goes from hand to hand."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from certs.keyfiles import write_new
from privacy.limits import TERMS_FIELDS, LimitChange, LimitTerms
from protos.content import beside_of, sync_directory
from protos.errors import Malformed, NotFound, WrongPhase

FILE_BYTES_MAX: Final = 64 << 10

_ADDED: Final = ("asked_signature", "agreed_by", "agreed_key", "agreed_signature")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A raise on its way: asked for, and agreed to once the last three are not empty."""

    terms: LimitTerms
    asked_signature: str
    agreed_by: str = ""
    agreed_key: str = ""
    agreed_signature: str = ""

    def change(self) -> LimitChange:
        """What the ledger may take.

        Raises:
            WrongPhase: NOT_AGREED.
        """
        if not self.agreed_signature:
            raise WrongPhase(
                "NOT_AGREED",
                f"{self.terms.asked_by} has asked for this and nobody has agreed yet: a second "
                "steward does with `feddp agent limit approve`",
            )
        return LimitChange(self.terms, **{name: getattr(self, name) for name in _ADDED})


def load(file: Path) -> Proposal:
    """Read what `propose` or `approve` wrote.

    Raises:
        NotFound: FILE_MISSING.
        Malformed: PROPOSAL_INVALID.
    """
    try:
        with file.open("rb") as opened:
            value = json.loads(opened.read(FILE_BYTES_MAX))
        added = {name: value.pop(name) for name in _ADDED}
        if set(value) != set(TERMS_FIELDS) or not all(isinstance(x, str) for x in added.values()):
            raise ValueError
        bytes.fromhex(added["asked_signature"])
        found = Proposal(LimitTerms(**value), **added)
        if found.agreed_signature:
            found.change()
    except FileNotFoundError:
        raise NotFound("FILE_MISSING", f"there is no file {file}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, Malformed):
        raise Malformed(
            "PROPOSAL_INVALID", f"{file} is not what `feddp agent limit propose` wrote"
        ) from None
    return found


def write(file: Path, proposal: Proposal) -> None:
    """Write a new file.

    Raises:
        Conflict: FILE_EXISTS.
    """
    write_new(file, _text(proposal), 0o644)


def replace_file(file: Path, proposal: Proposal) -> None:
    """Put a proposal in the place of what a file holds."""
    beside = beside_of(file)
    beside.unlink(missing_ok=True)
    write_new(beside, _text(proposal), 0o644)
    os.replace(beside, file)
    sync_directory(file.absolute().parent)


def account_in(account: str, file: Path) -> str:
    """The account's name without the node's; another node's is told by `require_current`."""
    _, slash, name = account.partition("/")
    if not slash:
        raise Malformed("PROPOSAL_INVALID", f"{file} names no account of a node")
    return name


def _text(proposal: Proposal) -> bytes:
    added = {name: getattr(proposal, name) for name in _ADDED}
    return json.dumps({**proposal.terms.fields(), **added}, indent=2).encode() + b"\n"
