"""A whole agent in one file, and back: for a new machine, or a disk that failed.

The file holds the keys: whoever has it can be this node. It is written for its owner alone. After a
restore the node refuses orders until it has read from the coordinator what it has signed since the
backup was made, so that nothing is spent twice.
"""

import contextlib
import io
import os
import sqlite3
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Final

from node_agent.folder.config import Folder
from node_agent.folder.installation import locked, read_folder
from node_agent.joining.identity import Identity, read_ledger_key
from node_agent.ledger.copies import export, require_sound
from node_agent.ledger.lost_ledger import is_damage
from node_agent.state.state import State
from protos.content import beside_of, naming, sync_directory
from protos.errors import Conflict, Malformed, NotFound

LEDGER: Final = "state.db"
NAMES: Final = frozenset(
    {
        *("agent.yaml", "policy.yaml", "datasets.yaml", LEDGER),
        *(f"identity/{name}" for name in ("node.key", "next.key", "node.crt", "bundle.pem")),
        "identity/ledger.key",
    }
)
"""All that is put in, and all that is taken out: the spool is made anew, logs stay where they are.
Other files of `identity/` are put in too."""

MEMBER_BYTES_MAX: Final = 16 << 30


def backup(path: Path, out: Path) -> list[str]:
    """Write the file; the agent may run. Names of what is in it.

    Raises:
        Conflict: FILE_EXISTS.
        Malformed: IDENTITY_INVALID, a key is missing or damaged.
        NotFound: NOT_JOINED, LEDGER_MISSING, FOLDER_MISSING; IDENTITY_INVALID.
    """
    folder = Folder(path.absolute())
    _, identity = read_folder(folder, to_read=True)
    # Keys under a passphrase are copied as they lie; a backup that lacks one is none.
    for lost in (identity.lost, read_ledger_key(folder.identity)[1]):
        if lost is not None and not lost.reason.startswith("PASSPHRASE"):
            raise lost
    if out.exists():
        raise Conflict("FILE_EXISTS", f"{out} exists and is not written over; choose another name")
    if not out.absolute().parent.is_dir():
        raise NotFound("FOLDER_MISSING", f"{out.absolute().parent} is not a folder; make it first")
    names = [LEDGER]
    with contextlib.ExitStack() as undo:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        undo.callback(out.unlink)
        with (
            naming(out),
            os.fdopen(descriptor, "wb") as file,
            tarfile.open(fileobj=file, mode="w") as archive,
            tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".backup-") as beside,
        ):
            copy = Path(beside) / LEDGER
            export(path, copy)  # of one moment, though the agent writes
            archive.add(copy, LEDGER)
            for one in (folder.agent_yaml, folder.policy_yaml, folder.datasets_yaml):
                if one.exists():
                    _add(archive, one, one.name, names)
            for one in sorted(folder.identity.iterdir()):
                if one.is_file() and not one.name.startswith("."):
                    _add(archive, one, f"identity/{one.name}", names)
            archive.close()
            file.flush()
            os.fsync(file.fileno())
        undo.pop_all()
    sync_directory(out.absolute().parent)
    return sorted(names)


def restore(source: Path, path: Path) -> list[str]:
    """Make a folder of what `backup` wrote. Names of what is in it.

    Raises:
        Conflict: FOLDER_IN_USE, the folder holds an agent, a ledger or a file of the steward's.
        NotFound: FILE_MISSING.
        Malformed: BACKUP_INVALID; LEDGER_INVALID, the ledger in it does not verify.
    """
    folder = Folder(path.absolute())
    if not source.is_file():
        raise NotFound("FILE_MISSING", f"there is no file {source}")
    if folder.state_db.exists() or folder.agent_yaml.exists() or folder.identity.exists():
        raise Conflict(
            "FOLDER_IN_USE",
            f"{folder.root} holds an agent already; restore into a new folder, or put back the "
            "ledger alone: `feddp agent ledger import`",
        )
    for one in (folder.policy_yaml, folder.datasets_yaml):
        if os.path.lexists(one):
            raise Conflict(
                "FOLDER_IN_USE",
                f"{one} is there already and is not written over: restore into a new folder, or "
                "move it away, and put it back afterwards if it is the one that should be in force",
            )
    made, was_locked = not folder.root.exists(), folder.lock.exists()
    folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    names: list[str] = []
    ledger = beside_of(folder.state_db)
    # Whole or not at all; and the ledger comes last, when it is noted that it is a copy.
    with contextlib.ExitStack() as undo, locked(folder):
        if made:
            undo.callback(_remove_empty, folder.root)
        if not was_locked:
            undo.callback(folder.lock.unlink, missing_ok=True)
        try:
            with tarfile.open(source, mode="r:") as archive:
                for member in archive:
                    _take_out(archive, member, folder, ledger, undo)
                    names.append(member.name)
        except (tarfile.TarError, EOFError):
            raise _invalid(source) from None
        if LEDGER not in names:
            raise _invalid(source)
        _, identity = read_folder(folder)
        if ledger.stat().st_size == 0:
            raise _invalid(source)
        _become_copy(ledger, identity, source)
        for part in (folder.spool, folder.logs):
            part.mkdir(mode=0o700, exist_ok=True)
        ledger.replace(folder.state_db)
        sync_directory(folder.root)
        undo.pop_all()
    return sorted(names)


def _become_copy(ledger: Path, identity: Identity, source: Path) -> None:
    """Check the ledger as `feddp agent ledger import` does, and note that it is a copy: a bit that
    has changed in the file is told now, and not to the coordinator.

    Raises:
        Malformed: BACKUP_INVALID, LEDGER_INVALID.
    """
    try:
        with contextlib.closing(State(ledger, identity.node, identity.ledger_key)) as state:
            require_sound(state, identity, source)
            state.become_copy()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise _invalid(source) from None


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _take_out(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    folder: Folder,
    ledger: Path,
    undo: contextlib.ExitStack,
) -> None:
    target = _target(folder, member)
    if target == folder.state_db:
        target = ledger
    if not target.parent.is_dir():
        target.parent.mkdir(mode=0o700)
        undo.callback(target.parent.rmdir)
    opened = archive.extractfile(member)
    if opened is None:
        raise Malformed("BACKUP_INVALID", f"{member.name!r} cannot be read from the backup")
    mode = 0o644 if target.suffix in (".crt", ".pem") else 0o600
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    undo.callback(target.unlink, missing_ok=True)  # only what was made here
    _write(target, descriptor, opened)


def _add(archive: tarfile.TarFile, path: Path, name: str, names: list[str]) -> None:
    data = path.read_bytes()
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o600, int(path.stat().st_mtime)
    archive.addfile(info, io.BytesIO(data))
    names.append(name)


def _target(folder: Folder, member: tarfile.TarInfo) -> Path:
    """Where a member goes: a plain file of a name of ours, whatever else the archive says."""
    first, slash, name = member.name.partition("/")
    plain = name or first
    known = member.name in NAMES or (first == "identity" and slash and "/" not in name)
    if not member.isfile() or not known or plain in (".", "..") or member.size > MEMBER_BYTES_MAX:
        raise Malformed(
            "BACKUP_INVALID", f"the backup holds {member.name!r}, which is no file of an agent"
        )
    return folder.root / member.name


def _write(target: Path, descriptor: int, source: IO[bytes]) -> None:
    with naming(target), os.fdopen(descriptor, "wb") as file:
        while data := source.read(1 << 20):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _invalid(source: Path) -> Malformed:
    return Malformed(
        "BACKUP_INVALID", f"{source} is not a whole backup of an agent; take another one"
    )
