"""Leaving a coordinator, or moving to another one, without forgetting what patients have spent.

The ledger is the node's own: it stays, with the key that signs it, and the name that its accounts
carry. What goes is what only this coordinator gave: certificate and key, its address, models and
updates under way. What was opened is posted, what was not is void, and nothing leaves any more.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography import x509

from certs.keyfiles import is_encrypted
from certs.redeeming import is_refusal
from certs.tokens import JoinToken
from node_agent.folder.config import Folder
from node_agent.folder.installation import locked, read_folder
from node_agent.folder.ownership import require_access
from node_agent.joining.enrol import JoinResult, Moving, join
from node_agent.joining.identity import BUNDLE, CHAIN, KEY, LEDGER_KEY, NEXT_KEY, Identity
from node_agent.ledger.copies import heads, kept_ledger
from node_agent.ledger.lost_ledger import ledger_missing
from node_agent.ledger.reading import reading
from node_agent.state.state import State
from protos.content import sync_directory, write_durable
from protos.errors import Conflict, FeddpError, Malformed

_GIVEN: Final = (KEY, NEXT_KEY, CHAIN, BUNDLE)
"""In DIR/identity; the ledger's key is not among them."""

_WAITING: Final = "moving-*.key"
"""In DIR/identity: keys that another coordinator was asked to let in, each named for its token."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """What leaving does to a folder.

    Attributes:
        node: its name.
        coordinator: its address; empty for a folder that has left already.
        removed: paths that go.
        kept: paths that stay.
        unfinished: attempts that will end without an update.
    """

    node: str
    coordinator: str
    removed: tuple[Path, ...]
    kept: tuple[Path, ...]
    unfinished: int


def plan(path: Path, *, forget_ledger: bool = False) -> Leaving:
    """What `leave` would do.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
    """
    folder = Folder(path.absolute())
    found = kept_ledger(folder) if forget_ledger else None
    if found is not None:  # it has left already, and what stayed goes now
        gone = (folder.state_db, folder.identity / LEDGER_KEY)
        rest = (folder.policy_yaml, folder.datasets_yaml, folder.logs)
        return Leaving(found.node, "", gone, tuple(one for one in rest if one.exists()), 0)
    config, identity = read_folder(folder, to_read=True)
    given = [folder.agent_yaml, *(folder.identity / name for name in _GIVEN), folder.spool]
    given += sorted(folder.identity.glob(_WAITING))
    ledger = [folder.state_db, folder.identity / LEDGER_KEY]
    stays = [folder.policy_yaml, folder.datasets_yaml, folder.logs]
    unfinished = 0
    if folder.has_ledger:
        with reading(folder, identity) as state:
            unfinished = len(state.attempts.live())
    elif not forget_ledger:
        raise ledger_missing(folder.state_db)
    removed, kept = (given + ledger, stays) if forget_ledger else (given, ledger + stays)
    return Leaving(
        identity.node,
        config.coordinator,
        tuple(one for one in removed if one.exists()),
        tuple(one for one in kept if one.exists()),
        unfinished,
    )


def leave(path: Path, *, forget_ledger: bool = False) -> Leaving:
    """Carry out `plan`; the agent must be stopped. The coordinator is not told: its operator
    disables the node.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
        Conflict: AGENT_RUNNING.
        WrongPhase: ACCOUNT_LEFT_OUT, see `Disputes.require_counted`; LEDGER_ROLLED_BACK,
            LEDGER_CATCHING_UP, see `Memory.require_whole`.
    """
    folder = Folder(path.absolute())
    require_access(folder.root)
    with locked(folder):
        done = plan(path, forget_ledger=forget_ledger)
        if not forget_ledger:
            _, identity = read_folder(folder)
            done = replace(done, kept=(*done.kept, _let_go(folder, identity)))
        for one in done.removed:
            _remove(one)
        if forget_ledger:
            for suffix in ("-wal", "-shm"):
                Path(f"{folder.state_db}{suffix}").unlink(missing_ok=True)
    return done


def move(
    token: str, path: Path, pending: Callable[[FeddpError], bool] = lambda _: False
) -> JoinResult:
    """Leave the coordinator of a folder and join another, under the same name and ledger.

    Until the other one has let the node in, nothing of the folder changes, and it may work for its
    present coordinator, but while this waits. The key that the other one was shown lies beside
    until then, so that the same move goes on with it; it goes when the token is refused.

    Args:
        pending: as `enrol.join`.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
        Conflict: AGENT_RUNNING; SAME_COORDINATOR.
        WrongPhase: JOIN_PENDING; ACCOUNT_LEFT_OUT, LEDGER_ROLLED_BACK, LEDGER_CATCHING_UP, as
            `leave`.
        Malformed: TOKEN_INVALID; TOKEN_FOR_ANOTHER_NODE.
        Unauthenticated, Unavailable: as `enrol.join`.
    """
    folder = Folder(path.absolute())
    require_access(folder.root)
    root = JoinToken.parse(token).root_pem
    with locked(folder):
        waiting = _waiting_key(folder, token)
        _put_back(folder, waiting)
        _, identity = read_folder(folder)
        if not folder.has_ledger:
            raise ledger_missing(folder.state_db)
        if _same_root(root, identity.bundle):
            raise Conflict(
                "SAME_COORDINATOR",
                f"the token is of the coordinator that {folder.root} is with already; there is "
                "nothing to move",
            )
        with _state(folder, identity) as state:
            state.disputes.require_counted()
            state.memory.require_whole()

        def let_in() -> None:
            _let_go(folder, identity)
            _set_aside(folder)
            waiting.replace(folder.identity / KEY)

        try:
            made = join(
                token,
                path,
                encrypt_keys=is_encrypted(folder.identity / LEDGER_KEY),
                pending=pending,
                moving=Moving(waiting, let_in),
            )
        except FeddpError as error:
            _put_back(folder, waiting)
            if is_refusal(error) and error.reason != "JOIN_PENDING":
                waiting.unlink(missing_ok=True)
            if error.reason == "TOKEN_FOR_ANOTHER_NODE":
                raise _for_another(folder, identity.node) from None
            raise
        shutil.rmtree(folder.former)
        for one in folder.identity.glob(_WAITING):
            one.unlink()
        _remove(folder.spool)
        folder.spool.mkdir(mode=0o700)
    return made


def _waiting_key(folder: Folder, token: str) -> Path:
    """Where the key waits that the other coordinator was shown with this token."""
    return folder.identity / f"moving-{hashlib.sha256(token.strip().encode()).hexdigest()[:16]}.key"


def _for_another(folder: Folder, node: str) -> Malformed:
    return Malformed(
        "TOKEN_FOR_ANOTHER_NODE",
        f"the token is for another node, and the accounts in {folder.root} are node {node}'s: "
        f"ask the other coordinator's operator for a token for {node} (`feddp node token {node}`); "
        "the folder is as it was",
    )


def _let_go(folder: Folder, identity: Identity) -> Path:
    """Keep what the node has seen of the coordinator's ledger, and end what is under way.

    Returns:
        The file of what it has seen.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    with reading(folder, identity) as state:
        state.disputes.require_counted()
        state.memory.require_whole()
    seen = heads(folder.root)
    path = folder.root / f"heads-{stamp}.json"
    write_durable(path, json.dumps(seen, indent=2).encode())
    with _state(folder, identity) as state:
        state.leave()
    return path


def _set_aside(folder: Folder) -> None:
    former = folder.former
    former.mkdir(mode=0o700)
    for name in (NEXT_KEY, KEY, BUNDLE, CHAIN):  # the certificate last: `_put_back` looks for it
        with contextlib.suppress(FileNotFoundError):
            (folder.identity / name).replace(former / name)
    write_durable(former / folder.agent_yaml.name, folder.agent_yaml.read_bytes())
    sync_directory(folder.identity)


def _put_back(folder: Folder, waiting: Path) -> None:
    """Undo `_set_aside`, or what is left of it, unless the other coordinator's join is whole.

    Args:
        waiting: where a key goes that was made meanwhile.
    """
    former = folder.former
    if not former.is_dir():
        return
    # The certificate is set aside last: with it there, a key in its place is the new one.
    is_aside = (former / CHAIN).exists() and not (folder.identity / CHAIN).exists()
    if is_aside and (folder.identity / KEY).exists():
        (folder.identity / KEY).replace(waiting)
    if not (folder.identity / CHAIN).exists() or not (folder.identity / KEY).exists():
        with contextlib.suppress(FileNotFoundError):
            (former / folder.agent_yaml.name).replace(folder.agent_yaml)
        # The certificate's key last, and after the certificate: with both there it is done, and a
        # key in the place of a certificate that is aside would be taken for the new one.
        for name in (NEXT_KEY, BUNDLE, CHAIN, KEY):
            with contextlib.suppress(FileNotFoundError):
                (former / name).replace(folder.identity / name)
        sync_directory(folder.identity)
    shutil.rmtree(former)


def _same_root(token_pem: bytes, bundle: bytes) -> bool:
    wanted = x509.load_pem_x509_certificate(token_pem)
    try:
        return wanted in x509.load_pem_x509_certificates(bundle)
    except ValueError:
        raise Malformed("IDENTITY_INVALID", f"{BUNDLE} is not readable PEM") from None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _state(folder: Folder, identity: Identity) -> Iterator[State]:
    state = State(folder.state_db, identity.node, identity.ledger_key)
    try:
        yield state
    finally:
        state.close()
