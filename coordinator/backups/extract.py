"""Writes the files of a backup that was checked to where they belong, each beside and renamed."""

import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from blake3 import blake3

from coordinator.backups import names
from coordinator.backups.archive import Progress
from coordinator.backups.check import Checked, opened
from coordinator.blobs import UPDATES as UPDATES_FOLDER
from coordinator.replicas.shared_blobs import SharedBlobs
from protos.content import CHUNK_BYTES, beside_of, is_digest, naming, sync_directory
from protos.errors import Malformed

_OWNERS: Final = 0o600


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of a backup go; None for those that are not wanted."""

    database: Path
    blobs: Path
    pki: Path | None

    def of(self, name: str) -> Path | None:
        """Where one file goes.

        Raises:
            Malformed: BACKUP_INVALID, its name leads elsewhere.
        """
        if name == names.DATABASE:
            return self.database
        if name.startswith(names.MODELS) and is_digest(names.digest_in(name)):
            return self.blobs / names.digest_in(name)
        if name.startswith(names.UPDATES) and is_digest(names.digest_in(name)):
            return _inside(self.blobs / UPDATES_FOLDER, name.removeprefix(names.UPDATES))
        if name.startswith(names.PKI):
            return _inside(self.pki, name.removeprefix(names.PKI)) if self.pki else None
        if name in (names.FORMAT_FILE, names.CONFIG, names.MANIFEST):
            return None
        raise _invalid(name)


def extract(
    file: Path,
    password: bytes | None,
    found: Checked,
    places: Places,
    shared: SharedBlobs | None = None,
    progress: Progress = lambda *_: None,
) -> int:
    """Write them; gives the number of models and updates.

    Args:
        found: what the check of this file said, which it must still be.
        shared: where models and updates go, too.

    Raises:
        Malformed: BACKUP_CHANGED, since it was checked; BACKUP_INVALID; SEAL_BROKEN.
        Unavailable: STORE_UNREACHABLE.
    """
    blobs, folders, done = 0, {places.blobs, places.blobs / UPDATES_FOLDER}, set[str]()
    for folder in sorted(folders | ({places.pki} if places.pki is not None else set())):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    again = Checked()
    with (
        opened(file, password, again) as (source, size),
        tarfile.open(fileobj=source, mode="r|", bufsize=CHUNK_BYTES) as archive,
    ):
        for member in archive:
            target, content = places.of(member.name), archive.extractfile(member)
            if member.name not in found.contents or content is None or member.name in done:
                raise _changed(file)
            done.add(member.name)
            if target is None:
                continue
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

            def told(count: int, before: int = member.offset_data) -> None:
                progress(before + count, (before + count) / size)

            if _write(content, target, told) != found.contents[member.name]:
                target.unlink()
                raise _changed(file)
            folders.add(target.parent)
            if member.name.startswith((names.MODELS, names.UPDATES)):
                blobs += 1
                if shared is not None:
                    shared.put(shared_name(member.name), target)
    if done != found.contents.keys():
        raise _changed(file)
    for folder in folders:
        sync_directory(folder)
    return blobs


def shared_name(name: str) -> str:
    """What a model or an update of a backup is called in a store that replicas share."""
    if name.startswith(names.MODELS):
        return names.digest_in(name)
    digest = names.digest_in(name)
    return f"{name.removesuffix('.' + digest)}/{digest}"


def _write(content: IO[bytes], target: Path, told: Callable[[int], None]) -> tuple[int, str]:
    """(bytes, BLAKE3) of what was written and synced."""
    hasher, size, beside = blake3(), 0, beside_of(target)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _OWNERS)
    with naming(beside), os.fdopen(descriptor, "wb") as file:
        while data := content.read(CHUNK_BYTES):
            hasher.update(data)
            file.write(data)
            size += len(data)
            told(size)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(target)
    return size, hasher.hexdigest()


def _inside(folder: Path, name: str) -> Path:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
        raise _invalid(name)
    return folder.joinpath(*parts)


def _invalid(name: str) -> Malformed:
    return Malformed("BACKUP_INVALID", f"{name[:80]!a} is no file of a backup of ours")


def _changed(file: Path) -> Malformed:
    return Malformed(
        "BACKUP_CHANGED", f"{file} is not what it was when it was checked a moment ago"
    )
