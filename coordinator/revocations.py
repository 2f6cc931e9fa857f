"""Revocations outside the database: one JSON object a line, appended and synced.

A backup does not know who was revoked after it was made; `feddp coordinator restore` reads it here.
The file is of use on another disk than the database, or shipped from this one as it grows. It holds
no secret. Whoever can add lines to it can shut nodes out of the next restore, and let nobody in.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from certs.spiffe import SpiffeId
from coordinator.store.revocations import Revocation
from protos.content import sync_directory
from protos.errors import FeddpError, Malformed, NotFound

FILE_BYTES_MAX: Final = 256 << 20
"""Some 500 bytes for each certificate that was ever revoked."""

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


class RevocationsFile:
    """The file that this process appends to.

    Args:
        ledger_public_key: raw; says whose file it is, as no installation ever changes it.
    """

    def __init__(self, path: Path, ledger_public_key: bytes) -> None:
        self.path = path
        self._coordinator = ledger_public_key.hex()
        self._kept: set[str] | None = None

    def keep(self, revoked: Sequence[Revocation]) -> int:
        """Append those that are not in it yet, and sync them; gives how many.

        The first call reads what is there, so that a crash between the database and this file
        costs no line.

        Raises:
            OSError: it cannot be written, and the next call tries again.
        """
        if self._kept is None:
            self._kept = self._read()
        new = [one for one in revoked if one.fingerprint not in self._kept]
        if not new:
            return 0
        lines = [{COORDINATOR: self._coordinator, **asdict(one)} for one in new]
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
        self._kept.update(one.fingerprint for one in new)
        return len(new)

    def _read(self) -> set[str]:
        """Fingerprints in it. A last line that a crash cut off is taken away: it comes again."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return set()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(self.path, len(whole))
        found: set[str] = set()
        for line in whole.splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                continue  # `read` names it, when somebody restores from it
            if isinstance(told, dict) and told.get(COORDINATOR) == self._coordinator:
                found.add(str(told.get("fingerprint")))
        return found


def read(paths: Iterable[Path], ledger_public_key: bytes, trust_domain: str) -> list[Revocation]:
    """What some files hold, each certificate once.

    Args:
        ledger_public_key: of the installation whose files they must be.

    Raises:
        NotFound: FILE_MISSING.
        Malformed: REVOCATIONS_INVALID, a line is none of ours; REVOCATIONS_OTHER, it is another
            installation's. The message names file and line.
    """
    found: dict[str, Revocation] = {}
    for path in paths:
        for number, line in enumerate(_lines(path), 1):
            where = f"{path}, line {number}"
            one = _parsed(where, line, trust_domain)
            if one.coordinator != ledger_public_key.hex():
                raise Malformed(
                    "REVOCATIONS_OTHER",
                    f"{where}: it was written by a coordinator with another ledger key; give the "
                    "file of the installation that the backup was made of. Nothing was restored",
                )
            fields = one.model_dump(exclude={COORDINATOR})
            found[one.fingerprint] = Revocation(**fields)
    return list(found.values())


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
    return data.splitlines()


def _parsed(where: str, line: bytes, trust_domain: str) -> _Line:
    try:
        told: Any = json.loads(line)
        one = _Line.model_validate(told)
        identity = SpiffeId.parse(one.spiffe_id)
    except (ValueError, ValidationError, FeddpError):
        raise Malformed(
            "REVOCATIONS_INVALID",
            f"{where}: this is no line of a file of revocations; nothing was restored. If the "
            "machine died as it was written, remove the line after you have looked at it",
        ) from None
    if identity.trust_domain != trust_domain:
        raise Malformed(
            "REVOCATIONS_OTHER", f"{where}: {identity} is not of the trust domain {trust_domain}"
        )
    return one
