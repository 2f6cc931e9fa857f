"""Moving to another coordinator, cut short at each step: the folder works, and forgets nothing."""

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from certs.authority import Authority
from certs.tokens import JoinToken, new_secret
from feddp.cli.app import app
from node_agent import leaving
from node_agent.config import Folder
from node_agent.identity import load_identity
from node_agent.leaving import leave, move
from node_agent.ledger_files import export, heads
from node_agent.notes import LEFT_NOTE, MOVED_NOTE
from node_agent.state import State
from node_agent.status import status
from privacy.filters import make_filter
from protos.errors import FeddpError, NotAllowed, Unauthenticated, Unavailable, WrongPhase
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, order

FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)


class Cut(BaseException):
    """The process ends here."""


@pytest.fixture
def agent(tmp_path: Path) -> Folder:
    """One with a release in its ledger."""
    folder = make_agent(tmp_path / "a", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 1)
    state = opened(folder)
    state.reserve(order(), FILTER)
    state.open("a1", 1.0, 1.0)
    state.lose("a1")
    state.close()
    return folder


@pytest.fixture
def token(tmp_path: Path) -> str:
    """Another coordinator's."""
    other = Authority.create(tmp_path / "other", "other.example")
    return _token(other.trust_bundle)


def _token(root: bytes) -> str:
    """One that pins this root, PEM."""
    der = x509.load_pem_x509_certificate(root).public_bytes(serialization.Encoding.DER)
    return JoinToken(address="127.0.0.1:1", root_der=der, secret=new_secret()).encode()


def opened(folder: Folder) -> State:
    """A folder's ledger."""
    return State(folder.state_db, NODE, load_identity(folder.identity).ledger_key)


def files(folder: Folder) -> dict[str, bytes]:
    """What the coordinator gave, and the ledger's key."""
    parts = [folder.agent_yaml, *folder.identity.iterdir()]
    return {one.name: one.read_bytes() for one in parts}


def joining(monkeypatch: pytest.MonkeyPatch, error: BaseException, leaves: str = "") -> None:
    """What the other coordinator's join comes to."""

    def join(_token: str, path: Path, *, held: bool = False, **_how: Any) -> Any:
        assert held, "it would wait for the lock that the move has"
        if leaves and not (path / "identity" / leaves).exists():
            (path / "identity" / leaves).write_bytes(b"a new key")
        raise error

    monkeypatch.setattr(leaving, "join", join)


def test_a_refused_token_leaves_the_folder_as_it_was(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the refusal came after new keys were made."""
    before = files(agent)
    for leaves in ("", "node.key"):
        joining(monkeypatch, Unauthenticated("TOKEN_USED", "this token was used"), leaves)
        with pytest.raises(Unauthenticated):
            move(token, agent.root)
        assert files(agent) == before
        assert not (agent.root / "former").exists()
        assert not list(agent.root.glob("heads-*"))


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("UNREACHABLE", "the answer was lost"),
        WrongPhase("JOIN_PENDING", "a person must let this machine in"),
        KeyboardInterrupt(),
    ],
)
def test_the_same_move_goes_on_with_the_key_that_was_shown(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The folder is as it was meanwhile; a refusal ends it, and a coordinator that was never
    reached changes nothing."""
    before = files(agent)
    joining(monkeypatch, Unavailable("UNREACHABLE", "nobody there"))
    with pytest.raises(Unavailable):
        move(token, agent.root)
    assert files(agent) == before
    joining(monkeypatch, error, "node.key")
    with pytest.raises(type(error)):
        move(token, agent.root)
    (waiting,) = agent.identity.glob("moving-*.key")
    assert waiting.read_bytes() == b"a new key"
    waiting.write_bytes(b"the key that was shown")
    assert {k: v for k, v in files(agent).items() if k != waiting.name} == before
    with pytest.raises(type(error)):
        move(token, agent.root)
    assert waiting.read_bytes() == b"the key that was shown"
    joining(monkeypatch, NotAllowed("JOIN_REJECTED", "the operator says no"))
    with pytest.raises(NotAllowed):
        move(token, agent.root)
    assert files(agent) == before


def test_a_move_that_was_killed_while_it_waited_goes_on_with_its_key(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was put back then; the next one does it, and loses neither key."""
    before = files(agent)
    joining(monkeypatch, Cut(), "node.key")
    with pytest.raises(Cut):
        move(token, agent.root)
    assert not (agent.identity / "node.crt").exists()
    joining(monkeypatch, WrongPhase("JOIN_PENDING", "a person must let this machine in"))
    with pytest.raises(WrongPhase):
        move(token, agent.root)
    (waiting,) = agent.identity.glob("moving-*.key")
    assert waiting.read_bytes() == b"a new key"
    assert {k: v for k, v in files(agent).items() if k != waiting.name} == before
    assert waiting in leave(agent.root).removed


@pytest.mark.parametrize("step", range(6))
def test_a_move_that_was_cut_short_can_be_done_again(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At each rename and write, and in the middle of the join."""
    before = files(agent)
    left = [step]

    def maybe(function: Any) -> Any:
        def instead(*arguments: Any, **named: Any) -> Any:
            if left[0] == 0:
                raise Cut
            left[0] -= 1
            return function(*arguments, **named)

        return instead

    with monkeypatch.context() as patch:
        joining(patch, Cut())
        patch.setattr(Path, "replace", maybe(Path.replace))
        patch.setattr(leaving, "write_durable", maybe(leaving.write_durable))
        with pytest.raises(Cut):
            move(token, agent.root)
    joining(monkeypatch, Unauthenticated("TOKEN_USED", "this token was used"))
    with pytest.raises(Unauthenticated):
        move(token, agent.root)
    assert files(agent) == before
    assert load_identity(agent.identity).node == NODE


def test_another_coordinator_is_followed_from_its_beginning_and_the_same_goes_on(
    agent: Folder,
) -> None:
    """What is told by the key that signs its checkpoints."""
    state = opened(agent)
    for key, is_other in ((b"k" * 32, True), (b"k" * 32, False)):
        state.leave()
        assert state.notes.read(LEFT_NOTE) == "yes"
        assert state.arrive(key) is is_other
        assert state.notes.read(LEFT_NOTE) == ""
        state.notes.keep("coordinator_ledger_key", key.hex())
        assert state.notes.read(MOVED_NOTE) == "yes"
    assert state.witnessed.unseen() == frozenset()
    assert state.account_units("patients") == state.ledger.accounts()[0].posted_units > 0
    state.close()


def test_the_coordinator_that_the_node_is_with_is_no_other(agent: Folder, tmp_path: Path) -> None:
    """By the root that its token pins."""
    same = _token(load_identity(agent.identity).bundle)
    with pytest.raises(FeddpError, match="nothing to move"):
        move(same, agent.root)


def test_a_folder_that_was_left_keeps_a_ledger_that_can_be_used(
    agent: Folder, tmp_path: Path
) -> None:
    """Exported, shown to officers, and forgotten; `status` says how."""
    done = leave(agent.root)
    (seen,) = agent.root.glob("heads-*.json")
    assert seen in done.kept
    assert export(agent.root, tmp_path / "copy.db") == 2
    assert heads(agent.root)["node"] == NODE
    with pytest.raises(FeddpError, match="ledger export"):
        status(agent.root)
    words = ["agent", "leave", "--dir", str(agent.root), "--yes", "--forget-ledger"]
    assert CliRunner().invoke(app, [*words, "other"]).exit_code != 0
    assert agent.state_db.exists()
    ran = CliRunner().invoke(app, [*words, NODE])
    assert (ran.exit_code, "coordinator" in ran.output) == (0, False)
    assert not agent.state_db.exists()
    assert not (agent.identity / "ledger.key").exists()
