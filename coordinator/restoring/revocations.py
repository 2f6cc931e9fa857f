"""Who was shut out, outside the database: one JSON object a line, appended and synced.

A backup does not know who was revoked, disabled or quarantined after it was made; `feddp
coordinator restore` reads it here. The file is of use on another disk than the database, or shipped
from this one as it grows. It holds no secret. Whoever can add lines to it can revoke certificates
in the next restore, and let nobody in: how nodes stand is signed (`standings`).
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from certs.enrolment import public_bytes_of
from certs.spiffe import SpiffeId
from coordinator.restoring.standings import SignedStanding, newest, sign
from coordinator.store.revocations import Revocation
from coordinator.store.standings import NodeStanding
from protos.content import sync_directory
from protos.errors import FeddpError, Malformed, NotFound

FILE_BYTES_MAX: Final = 256 << 20
"""Some 500 bytes for each certificate that was ever revoked, and for each time that a node was shut
out or let in."""

COORDINATOR: Final = "coordinator"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Line(BaseModel):
    """One line; what a newer version adds to it is refused, as nobody here knows what it asks."""

    model_config = ConfigDict(extra="forbid", strict=True)

    coordinator: Digest
    fingerprint: Digest
    spiffe_id: Annotated[str, Field(max_length=255)]
    not_before: float
    not_after: float
    generation: Annotated[int, Field(ge=1, le=1 << 31)]
    key_digest: Digest | Annotated[str, Field(max_length=0)]
    issuer: Digest | Annotated[str, Field(max_length=0)]


class _OwnerLine(BaseModel):
    """The first line: whose file it is, also while nobody was shut out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    coordinator: Digest


class _StandingLine(BaseModel):
    """One line on a node."""

    model_config = ConfigDict(extra="forbid", strict=True)

    coordinator: Digest
    node: Annotated[str, Field(min_length=1, max_length=63)]
    disabled: bool
    quarantine: Annotated[str, Field(max_length=4096)]
    at_ms: Annotated[int, Field(ge=0, le=1 << 53)]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    def signed(self) -> SignedStanding:
        """What it says."""
        standing = NodeStanding(self.node, self.disabled, self.quarantine)
        return SignedStanding(standing, self.at_ms, bytes.fromhex(self.signature))


@dataclass(frozen=True, slots=True)
class Kept:
    """What files hold.

    Attributes:
        standings: the last word on each node that was ever shut out.
    """

    revocations: tuple[Revocation, ...] = ()
    standings: tuple[SignedStanding, ...] = ()


class RevocationsFile:
    """The file that this process appends to.

    Args:
        ledger_key: whose public half says whose file it is, as no installation ever changes it.
    """

    def __init__(self, path: Path, ledger_key: Ed25519PrivateKey) -> None:
        self.path = path
        self._key = ledger_key
        self._public = public_bytes_of(ledger_key)
        self._kept: set[str] | None = None
        self._standings: dict[str, SignedStanding] = {}
        self._is_new = False

    def keep(
        self, revoked: Sequence[Revocation], shut_out: Sequence[NodeStanding], read_at_s: float
    ) -> int:
        """Append what is not in it yet, and sync it; gives how many lines.

        The first call reads what is there, so that a crash between the database and this file
        costs no line, and makes the file with a line that says whose it is: one that is missing,
        or another installation's, is not taken for one in which nobody was shut out.

        Args:
            shut_out: every node that is.
            read_at_s: no later than the moment at which that was read in the database.

        Raises:
            OSError: it cannot be written, and the next call tries again.
        """
        if self._kept is None:
            self._kept = self._read()
        new = [one for one in revoked if one.fingerprint not in self._kept]
        changed = self._changed(shut_out, read_at_s)
        if not new and not changed and not self._is_new:
            return 0
        whose: dict[str, Any] = {COORDINATOR: self._public.hex()}
        lines = [whose] if self._is_new else []
        lines += [{**whose, **asdict(one)} for one in new]
        lines += [{**whose, **_fields(one)} for one in changed]
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self.path.parent)
        except OSError:
            self._kept = None  # a part may have been written
            raise
        self._is_new = False
        self._kept.update(one.fingerprint for one in new)
        self._standings.update({one.standing.node: one for one in changed})
        return len(lines)

    def _changed(self, shut_out: Sequence[NodeStanding], read_at_s: float) -> list[SignedStanding]:
        """Nodes that stand otherwise than the file says, later than all that it says."""
        now = {one.node: one for one in shut_out}
        for node in self._standings:
            now.setdefault(node, NodeStanding(node, disabled=False, quarantine=""))
        # Whatever the clock does, the last line on a node is the last word on it.
        last_ms = max((one.at_ms for one in self._standings.values()), default=0)
        at_ms = max(int(read_at_s * 1000), last_ms + 1)
        return [
            sign(self._key, one, at_ms)
            for node, one in sorted(now.items())
            if node not in self._standings or self._standings[node].standing != one
        ]

    def _read(self) -> set[str]:
        """Fingerprints in it; and how nodes stand. A last line that a crash cut off is taken away:
        it comes again."""
        self._standings, self._is_new = {}, True
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return set()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(self.path, len(whole))
        self._is_new = not whole
        found: set[str] = set()
        standings = []
        for line in whole.splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                continue  # `read` names it, when somebody restores from it
            if not isinstance(told, dict) or told.get(COORDINATOR) != self._public.hex():
                continue
            if "fingerprint" in told:
                found.add(str(told["fingerprint"]))
            elif (standing := self._own(told)) is not None:
                standings.append(standing)
        self._standings = newest(standings)
        return found

    def _own(self, told: dict[str, Any]) -> SignedStanding | None:
        """A standing that this coordinator has signed."""
        try:
            one = _StandingLine.model_validate(told).signed()
        except ValidationError:
            return None
        return one if one.is_signed_by(self._public) else None


def _fields(one: SignedStanding) -> dict[str, Any]:
    return {**asdict(one.standing), "at_ms": one.at_ms, "signature": one.signature.hex()}


def read(paths: Iterable[Path], ledger_public_key: bytes, trust_domain: str) -> Kept:
    """What some files hold, each certificate and each node once.

    Args:
        ledger_public_key: of the installation whose files they must be.

    Raises:
        NotFound: FILE_MISSING.
        Malformed: REVOCATIONS_INVALID, a line is none of ours; REVOCATIONS_OTHER, it is another
            installation's. The message names file and line.
    """
    found: dict[str, Revocation] = {}
    standings = []
    for where, line in _all_lines(paths):
        one = _parsed(where, line)
        if one.coordinator != ledger_public_key.hex():
            raise Malformed(
                "REVOCATIONS_OTHER",
                f"{where}: it was written by a coordinator with another ledger key; give the "
                "file of the installation that the backup was made of. Nothing was restored",
            )
        if isinstance(one, _OwnerLine):
            continue
        if isinstance(one, _StandingLine):
            standings.append(_signed(where, one, ledger_public_key))
            continue
        _refuse_other_domain(where, one, trust_domain)
        fields = one.model_dump(exclude={COORDINATOR})
        found[one.fingerprint] = Revocation(**fields)
    return Kept(tuple(found.values()), tuple(newest(standings).values()))


def _all_lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        for number, line in enumerate(_lines(path), 1):
            yield f"{path}, line {number}", line


def _lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise NotFound(
            "FILE_MISSING",
            f"{path}: the revocations cannot be read ({error.strerror}); give the file that "
            "storage.revocations_file named, or say --without-revocations",
        ) from None
    if len(data) > FILE_BYTES_MAX:
        raise Malformed("REVOCATIONS_INVALID", f"{path} is larger than such a file can be")
    if not data:
        raise Malformed(
            "REVOCATIONS_INVALID",
            f"{path} is empty, and its first line says whose it is from the first start on: it was "
            "cut off, or never was such a file; give another copy, or say --without-revocations",
        )
    return data.splitlines()


def _parsed(where: str, line: bytes) -> _Line | _OwnerLine | _StandingLine:
    try:
        told: Any = json.loads(line)
        if isinstance(told, dict) and told.keys() == {COORDINATOR}:
            return _OwnerLine.model_validate(told)
        if isinstance(told, dict) and "node" in told:
            return _StandingLine.model_validate(told)
        return _Line.model_validate(told)
    except (ValueError, ValidationError):
        raise _invalid(where) from None


def _signed(where: str, line: _StandingLine, ledger_public_key: bytes) -> SignedStanding:
    one = line.signed()
    if not one.is_signed_by(ledger_public_key):
        raise Malformed(
            "REVOCATIONS_INVALID",
            f"{where}: how node {line.node} stands was not signed by this installation's "
            "coordinator, so that somebody else has written or changed this line; nothing was "
            "restored. Find out who can write the file, and take a copy that they could not",
        )
    return one


def _refuse_other_domain(where: str, line: _Line, trust_domain: str) -> None:
    try:
        identity = SpiffeId.parse(line.spiffe_id)
    except FeddpError:
        raise _invalid(where) from None
    if identity.trust_domain != trust_domain:
        raise Malformed(
            "REVOCATIONS_OTHER", f"{where}: {identity} is not of the trust domain {trust_domain}"
        )


def _invalid(where: str) -> Malformed:
    return Malformed(
        "REVOCATIONS_INVALID",
        f"{where}: this is no line of a file of revocations; nothing was restored. If the "
        "machine died as it was written, remove the line after you have looked at it",
    )
