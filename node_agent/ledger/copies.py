"""The node's ledger outside its folder: a copy to keep, its way back, and heads for officers."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import public_bytes_of
from node_agent.folder.config import Folder
from node_agent.folder.installation import locked, read_folder
from node_agent.folder.ownership import require_access
from node_agent.joining.identity import CHAIN, Identity, read_ledger_key
from node_agent.ledger.beside_entries import take_over
from node_agent.ledger.disputes import Dispute
from node_agent.ledger.lost_keys import LostKey
from node_agent.ledger.lost_ledger import is_damage, ledger_damaged, ledger_missing
from node_agent.ledger.own_ledger import KeptAccount, kept_fault
from node_agent.ledger.reading import read_only, reading_file, snapshot
from node_agent.state.notes import ROLLED_BACK_NOTE
from node_agent.state.state import State
from privacy.heads import Head, LimitInForce, Terms
from privacy.ledger import Verification, verify
from protos.content import beside_of, sync_directory
from protos.disks import disk_trouble
from protos.errors import Conflict, FeddpError, Limited, Malformed, NotFound


@dataclass(frozen=True, slots=True)
class Kept:
    """What a folder that has left its coordinator keeps: whose ledger it is, and the key."""

    node: str
    ledger_key: Ed25519PrivateKey
    lost: FeddpError | None

    @property
    def ledger_public_key(self) -> bytes:
        """Of the ledger, raw."""
        return public_bytes_of(self.ledger_key)


def kept_ledger(folder: Folder) -> Kept | None:
    """Of a folder that has left; None where it has not, or keeps no ledger. Its key may be lost.

    Raises:
        NotAllowed: OTHER_USER.
        Malformed: LEDGER_INVALID.
        NotFound: LEDGER_MISSING, it is there and empty.
    """
    require_access(folder.root)
    left = not folder.agent_yaml.exists() and not (folder.identity / CHAIN).exists()
    node = node_of_ledger(folder) if left else ""
    return Kept(node, *read_ledger_key(folder.identity)) if node else None


def node_of_ledger(folder: Folder) -> str:
    """Whose accounts a folder's `state.db` holds; empty where there is none.

    Raises:
        Malformed: LEDGER_INVALID.
        NotFound: LEDGER_MISSING, it is there and empty.
    """
    if not folder.state_db.exists():
        return ""
    if not folder.has_ledger:
        raise ledger_missing(folder.state_db)
    try:
        with read_only(folder.state_db, in_place=True) as opened:
            if not opened.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                raise ledger_missing(folder.state_db)
            row = opened.execute("SELECT value FROM meta WHERE key = 'node'").fetchone()
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise ledger_damaged(folder.state_db) from None
        raise _unusable(error, folder.state_db, folder.state_db) from None
    if row is None:
        raise ledger_missing(folder.state_db)
    return str(row[0])


def heads(path: Path) -> dict[str, Any]:
    """What this node has seen of the coordinator's ledger, signed; JSON-ready, for officers.

    `accounts` is of the node's own ledger: what each of its accounts was promised at first, and
    the limit that is in force now.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
    """
    folder, identity = _opened(path)
    with _read(folder.state_db, identity) as state:
        return {
            "node": identity.node,
            "ledger_public_key": identity.ledger_public_key.hex(),
            **seen_by(state),
        }


def seen_by(state: State) -> dict[str, Any]:
    """See `heads`; without whose it is."""
    seen, checkpoints = state.witnessed.heads(), state.witnessed.checkpoints()
    raises = state.ledger.raise_counts()
    return {
        "coordinator_ledger_key": state.witnessed.coordinator_key().hex(),
        "accounts": [
            _promised(state, one, raises.get(one.account, 0)) for one in state.ledger.accounts()
        ],
        "heads": [
            {
                "account": one.account,
                "seq": one.seq,
                "hash": one.hash,
                "node_signature": state.witnessed.sign(one).hex(),
            }
            for one in seen
        ],
        "checkpoints": [
            {
                "number": one.number,
                "prev_hash": one.prev_hash,
                "root": one.root,
                "signature": one.signature.hex(),
            }
            for one in checkpoints
        ],
        "epochs": [
            {
                **{name: value for name, value in asdict(one).items() if name != "signature"},
                "signature": one.signature.hex(),
            }
            for one in state.epochs.all()
        ],
        "before": _before(state),
        "disputes": [
            {"account": one.account, "seq": one.seq, "text": one.text, "at_s": one.at_s}
            for one in state.disputes.all()
        ],
    }


def _before(state: State) -> dict[str, Any]:
    """What was seen of histories that the coordinator's restorations have ended."""
    heads: list[dict[str, Any]] = []
    checkpoints: list[dict[str, Any]] = []
    for one in state.epochs.before():
        what, when = one.what, {"since_s": one.since_s, "until_s": one.until_s}
        if isinstance(what, Head):
            signature = state.witnessed.sign(what).hex()
            heads.append({**asdict(what), "node_signature": signature, **when})
        else:
            checkpoints.append({**asdict(what), "signature": what.signature.hex(), **when})
    return {"heads": heads, "checkpoints": checkpoints}


def _promised(state: State, kept: KeptAccount, raises: int) -> dict[str, Any]:
    """One account of the node's own ledger; two signatures, as readers of before know the first."""
    fixed = kept.fixed
    terms = Terms(kept.account, fixed.kind, fixed.order, fixed.delta, kept.epsilon_limit_highest)
    limit = LimitInForce(kept.account, kept.epsilon_limit, raises)
    sign = state.witnessed.sign
    return {
        **asdict(terms),
        "node_signature": sign(terms).hex(),
        **asdict(limit),
        "limit_signature": sign(limit).hex(),
    }


def export(path: Path, out: Path) -> int:
    """Copy the ledger, as it is at one moment, to a file; the agent may run. Entries in it.

    Raises:
        Conflict: FILE_EXISTS.
        NotFound: NOT_JOINED, LEDGER_MISSING, FOLDER_MISSING.
    """
    folder, identity = _opened(path, to_read=True)
    if out.exists():
        raise Conflict("FILE_EXISTS", f"{out} exists and is not written over; choose another name")
    if not out.parent.is_dir():
        raise NotFound("FOLDER_MISSING", f"{out.parent} is not a folder; make it first")
    try:
        _copy(folder.state_db, out)
    except Malformed:
        raise ledger_damaged(folder.state_db) from None
    with _read(out, identity, in_place=True) as copied:
        return require_sound(copied, identity, out)


def restore(path: Path, source: Path) -> int:
    """Put a copy that `export` made in the place of a folder's ledger. Entries in it.

    Nothing that the folder's ledger holds may be missing from the copy. Where the folder's own is
    lost, any copy of this ledger key's is taken: what was signed since is read from the
    coordinator's chain before the next order.

    Raises:
        Conflict: AGENT_RUNNING; LEDGER_NEWER, the folder's ledger holds more.
        Malformed: LEDGER_INVALID, the copy is damaged, or another node's, or another key's.
        NotFound: NOT_JOINED, FILE_MISSING.
    """
    folder = Folder(path.absolute())
    _, identity = read_folder(folder)
    if not source.is_file():
        raise NotFound("FILE_MISSING", f"there is no file {source}")
    beside = beside_of(folder.state_db)
    with locked(folder):
        try:
            _copy(source, beside)
            _require_own(beside, identity, source)
            with _state(beside, identity) as copied:
                count = require_sound(copied, identity, source)
                copied.become_copy()
                copied.notes.keep(ROLLED_BACK_NOTE, "")
                if folder.has_ledger:
                    _require_newer(copied, folder, identity, source)
            for suffix in ("-wal", "-shm"):
                Path(f"{folder.state_db}{suffix}").unlink(missing_ok=True)
            beside.replace(folder.state_db)
            sync_directory(folder.root)
        finally:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{beside}{suffix}").unlink(missing_ok=True)
    return count


def settle(path: Path, account: str) -> Dispute:
    """See `Witnessed.settle`; the agent must be stopped.

    Raises:
        Conflict: AGENT_RUNNING.
        NotFound: NOT_JOINED, LEDGER_MISSING, DISPUTE_UNKNOWN.
    """
    folder, identity = _opened(path)
    with locked(folder), _state(folder.state_db, identity) as state:
        return state.settle(account)


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _opened(path: Path, *, to_read: bool = False) -> tuple[Folder, Identity | Kept]:
    folder = Folder(path.absolute())
    owner: Identity | Kept | None = kept_ledger(folder)
    if owner is None:
        _, owner = read_folder(folder, to_read=to_read)
    if owner.lost is not None and not to_read:
        raise owner.lost
    if not folder.has_ledger:
        raise ledger_missing(folder.state_db)
    return folder, owner


@contextlib.contextmanager
def _state(path: Path, identity: Identity | Kept) -> Iterator[State]:
    try:
        state = State(path, identity.node, identity.ledger_key)
    except sqlite3.DatabaseError as error:
        raise _unusable(error, path, path) from None
    try:
        yield state
    finally:
        state.close()


@contextlib.contextmanager
def _read(path: Path, identity: Identity | Kept, *, in_place: bool = False) -> Iterator[State]:
    try:
        with reading_file(path, identity, in_place=in_place) as state:
            yield state
    except sqlite3.DatabaseError as error:
        raise _unusable(error, path, path) from None


def _unusable(error: sqlite3.DatabaseError, source: Path, out: Path) -> FeddpError:
    """What a database's error means: a disk that takes no more is no damaged ledger."""
    if disk_trouble(error):
        return Limited(
            "DISK_FULL",
            f"{out} cannot be written: its disk is full or does not answer; free room there, or "
            "name another disk. Nothing was changed",
        )
    return Malformed("LEDGER_INVALID", f"{source} is no ledger that can be read")


def _require_newer(copied: State, folder: Folder, identity: Identity | Kept, source: Path) -> None:
    """The copy holds all entries of the folder's ledger, and learns what that knows besides."""
    with contextlib.ExitStack() as stack:
        try:
            present = stack.enter_context(_read(folder.state_db, identity))
        except NotFound:  # it is empty: nothing of it could be missing
            return
        take_over(copied, present)
        missing = {e.hash for e in present.ledger.entries()} - {
            e.hash for e in copied.ledger.entries()
        }
    if missing:
        raise Conflict(
            "LEDGER_NEWER",
            f"{folder.state_db} holds {_entries(len(missing))} that {source} lacks; "
            "putting the older copy in its place would forget what was spent",
        )


def _require_own(copy: Path, identity: Identity | Kept, source: Path) -> None:
    """Another node's ledger is told by the name of the file that was given."""
    try:
        with contextlib.closing(sqlite3.connect(copy)) as opened:
            row = opened.execute("SELECT value FROM meta WHERE key = 'node'").fetchone()
    except sqlite3.DatabaseError:
        row = None
    if row is None:
        raise Malformed("LEDGER_INVALID", f"{source} is no ledger that can be read")
    if row[0] != identity.node:
        raise Malformed(
            "LEDGER_OF_ANOTHER_NODE",
            f"{source} is the ledger of node {row[0]}, not of {identity.node}; nothing was changed",
        )


def _copy(source: Path, out: Path) -> None:
    """A consistent copy in one file, readable by its owner alone, and on the disk."""
    out.unlink(missing_ok=True)
    try:
        snapshot(source, out)
    except sqlite3.DatabaseError as error:
        raise _unusable(error, source, out) from None
    descriptor = os.open(out, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(out.parent)


def require_sound(state: State, identity: Identity | Kept, path: Path) -> int:
    """Entries of a ledger that verifies and is this node's; without its key they are counted.

    Raises:
        Malformed: LEDGER_INVALID.
    """
    entries = state.ledger.entries()
    if isinstance(identity.ledger_key, LostKey):
        return len(entries)
    filters = {
        one.account: one.filter(one.epsilon_limit_highest) for one in state.ledger.accounts()
    }
    found: Verification = verify(entries, filters, {identity.node: identity.ledger_public_key})
    if not found.ok:
        first = found.problems[0]
        raise Malformed(
            "LEDGER_INVALID",
            f"{path}: account {first.account}, entry {first.seq}: {first.text}",
        )
    for one in state.ledger.accounts():
        if text := kept_fault(one, found.balances.get(one.account)):
            raise Malformed("LEDGER_INVALID", f"{path}: account {one.account}: {text}")
    return len(entries)
