"""`feddp coordinator backup --verify`: reads a backup back, and says what is wrong with it."""

import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from blake3 import blake3
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from certs.sealing import MAGIC, Opener, is_sealed
from coordinator.backups import names
from coordinator.backups.archive import Progress
from coordinator.store import certificates, checkpoints, ledger, people
from coordinator.store.damage import damaged
from coordinator.store.database import Database, newest_revision
from coordinator.store.ledger import Account
from privacy.heads import Checkpoint, checkpoint_fault
from privacy.ledger import Entry
from privacy.verification import verify
from protos.content import CHUNK_BYTES
from protos.errors import FeddpError, InvariantBroken, Malformed, NotFound

MANY_ENTRIES: Final = 20_000
"""From so many on, a process for each core pays."""

SMALL_BYTES_MAX: Final = 256 << 20
"""Of the manifest: some 150 bytes for each file in the backup."""


@dataclass(slots=True)
class Checked:
    """What a backup holds.

    Attributes:
        format: its first file.
        problems: what is wrong, a sentence each; none for a sound backup.
        missing: what was missing already when it was made.
        entries: ledger entries, all of whose chains were checked.
        contents: bytes and BLAKE3 of each of its files.
        config: its coordinator.yaml.
        trust_domain: of the certificates in its tables; empty where there are none.
    """

    format: Mapping[str, Any] = field(default_factory=dict)
    config: bytes = b""
    sealed: bool = False
    files: int = 0
    bytes: int = 0
    entries: int = 0
    accounts: int = 0
    missing: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    contents: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    trust_domain: str = ""

    @property
    def made_at_s(self) -> float:
        """When its tables were read, in seconds since the epoch."""
        return float(self.format.get("made_at") or 0.0)


def check(
    path: Path, password: bytes | None = None, progress: Progress = lambda *_: None
) -> Checked:
    """Read all of a backup. What is wrong with its contents is no error but a problem.

    The tables are written to the folder of temporary files (TMPDIR) meanwhile.

    Raises:
        NotFound: FILE_MISSING, PASSWORD_MISSING.
        Malformed: BACKUP_INVALID, it is no backup at all; SEAL_BROKEN, from its first chunk on.
    """
    found = Checked()
    with opened(path, password, found) as (file, size), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / names.DATABASE
        seen: dict[str, tuple[int, str]] = {}
        manifest: dict[str, Any] | None = None
        try:
            with tarfile.open(fileobj=file, mode="r|", bufsize=CHUNK_BYTES) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is None or member.name in seen:
                        found.problems.append(f"{member.name!r} should not be in it")
                        continue
                    data = _read(member, content, copy, seen, lambda n: progress(n, n / size))
                    if member.name == names.FORMAT_FILE:
                        found.format = _format(path, data)
                    elif not found.format:
                        raise _invalid(path)
                    if member.name == names.MANIFEST:
                        manifest = json.loads(data)
                    if member.name == names.CONFIG:
                        found.config = data
        except (tarfile.TarError, EOFError, ValueError):
            if not found.format:
                raise _invalid(path) from None
            found.problems.append("it ends before its end, or was changed")
        except Malformed as error:
            if not found.format:
                raise
            found.problems.append(error.message)
        if not found.format:
            raise _invalid(path)
        found.files, found.contents = len(seen), seen
        found.bytes = sum(bytes_ for bytes_, _ in seen.values())
        _compare(found, seen, manifest)
        if copy.exists() and not found.problems:
            _look_inside(found, copy, seen)
    return found


@contextmanager
def opened(path: Path, password: bytes | None, found: Checked) -> Iterator[tuple[Any, int]]:
    """(what the archive is read from, bytes of the file)."""
    if not path.is_file():
        raise NotFound("FILE_MISSING", f"there is no file {path}")
    with path.open("rb") as file:
        found.sealed = is_sealed(file.read(len(MAGIC)))
        file.seek(0)
        size = max(1, path.stat().st_size)
        if not found.sealed:
            yield file, size
            return
        if password is None:
            raise NotFound("PASSWORD_MISSING", f"{path} is sealed: give --password-file FILE")
        yield Opener(file, password), size


def _read(
    member: tarfile.TarInfo,
    content: IO[bytes],
    copy: Path,
    seen: dict[str, tuple[int, str]],
    told: Callable[[int], None],
) -> bytes:
    """Hash a member; its bytes if it is one that is looked into, and the tables to `copy`."""
    hasher, size, kept = blake3(), 0, []
    keep = member.name in (names.FORMAT_FILE, names.MANIFEST, names.CONFIG)
    if keep and member.size > SMALL_BYTES_MAX:
        raise Malformed("BACKUP_INVALID", f"{member.name} is larger than one of ours")
    target = copy.open("wb") if member.name == names.DATABASE else None
    try:
        while data := content.read(CHUNK_BYTES):
            hasher.update(data)
            size += len(data)
            if keep:
                kept.append(data)
            if target is not None:
                target.write(data)
            told(member.offset_data + size)
    finally:
        if target is not None:
            target.close()
    seen[member.name] = (size, hasher.hexdigest())
    return b"".join(kept)


def _format(path: Path, data: bytes) -> Mapping[str, Any]:
    told = json.loads(data)
    if not isinstance(told, dict) or told.get("kind") != names.KIND:
        raise _invalid(path)
    if told.get("format") != names.FORMAT:
        raise Malformed(
            "BACKUP_INVALID", f"{path} was made by a newer version of feddp; read it with that one"
        )
    return told


def _compare(
    found: Checked, seen: Mapping[str, tuple[int, str]], manifest: Mapping[str, Any] | None
) -> None:
    """What the manifest says against what was read."""
    if manifest is None:
        if not found.problems:
            found.problems.append("it ends before its end: the manifest is missing")
        return
    found.missing = tuple(manifest["missing"])
    wanted = {name: (one["bytes"], one["digest"]) for name, one in manifest["files"].items()}
    here = {name: is_ for name, is_ in seen.items() if name != names.MANIFEST}
    for name in sorted(wanted.keys() | here.keys()):
        if wanted.get(name) != here.get(name):
            found.problems.append(f"{name} is not as it was written")
        elif (digest := names.digest_in(name)) and here[name][1] != digest:
            found.problems.append(f"{name} does not have the digest that names it")
    found.problems += [
        f"{name} is not in it" for name in (names.DATABASE, names.CONFIG) if name not in here
    ]


def _look_inside(found: Checked, copy: Path, seen: Mapping[str, tuple[int, str]]) -> None:
    """The tables: what they name is there, and every chain holds."""
    database = Database(f"sqlite:///{copy}")
    try:
        if (database.revision() or "") > newest_revision():
            found.problems.append(
                "a newer version of feddp made its tables; verify it with that one"
            )
            return
        database.migrate()  # this copy alone, so that tables of an older version are read
        database.read_now(lambda inside: _check_tables(inside, found, seen))
    except (SQLAlchemyError, FeddpError, InvariantBroken) as error:
        found.problems.append(f"its tables cannot be read ({type(error).__name__})")
    finally:
        database.close()


def _check_tables(
    connection: Connection, found: Checked, seen: Mapping[str, tuple[int, str]]
) -> None:
    updates, models = names.named_blobs(connection)
    absent = set(updates) | set(models)
    absent -= seen.keys() | set(found.missing)
    found.problems += [f"{name} is named by a job and is not in it" for name in sorted(absent)]
    found.trust_domain = certificates.trust_domain(connection)
    accounts = ledger.all_accounts(connection)
    found.accounts = len(accounts)
    many = sum(one.entries for one in accounts) >= MANY_ENTRIES
    told = verify(
        _Chains(connection, accounts),
        {one.account: one.verifying_filter for one in accounts},
        {one.name: one.ledger_public_key for one in people.all_nodes(connection)},
        processes=(os.cpu_count() or 1) if many else 1,
    )
    found.entries = sum(told.counts[kind] for kind in ("reserve", "post", "void", "limit"))
    found.problems += [
        f"ledger of {one.account}, entry {one.seq}: {one.text}" for one in told.problems
    ]
    found.problems += [
        f"ledger of {account}: its newest entry is not the head that was kept"
        for account in sorted(damaged(connection))
    ]
    _check_checkpoints(connection, found)


@dataclass(frozen=True, slots=True)
class _Chains:
    """Every entry, account by account, as often as it is asked for."""

    connection: Connection
    accounts: Sequence[Account]

    def __iter__(self) -> Iterator[Entry]:
        for one in self.accounts:
            yield from ledger.chain(self.connection, one.account)


def _check_checkpoints(connection: Connection, found: Checked) -> None:
    key = bytes.fromhex(str(found.format.get("ledger_public_key", "")))
    before: Checkpoint | None = None
    for one in checkpoints.all_of(connection):
        if text := checkpoint_fault(before, one, key):
            found.problems.append(text)
            return
        before = one


def _invalid(path: Path) -> Malformed:
    return Malformed("BACKUP_INVALID", f"{path} is no backup of a coordinator")
