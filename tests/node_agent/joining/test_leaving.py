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
from node_agent.folder.config import Folder
from node_agent.joining import enrol, leaving
from node_agent.joining.enrol import Moving
from node_agent.joining.identity import load_identity
from node_agent.joining.kept_name import NOT_USED_UP, for_another
from node_agent.joining.leaving import leave, move
from node_agent.ledger.copies import export, heads
from node_agent.state.notes import LEFT_NOTE, MOVED_NOTE, RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from protos.errors import (
    FeddpError,
    Malformed,
    NotAllowed,
    Unauthenticated,
    Unavailable,
    WrongPhase,
)
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


def joining(
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    *,
    makes: bool = False,
    lets_in: bool = False,
) -> list[bytes]:
    """What the other coordinator's join comes to; the keys that it was asked to let in.

    Args:
        makes: it comes so far that it makes a key, or finds one.
        lets_in: it lets the node in, before the error.
    """
    asked: list[bytes] = []

    def join(_token: str, _path: Path, *, moving: Moving, **_how: Any) -> Any:
        if makes:
            if not moving.key.exists():
                moving.key.write_bytes(f"key {len(asked)} of {error}".encode())
            asked.append(moving.key.read_bytes())
        if lets_in:
            moving.let_in()
        raise error

    monkeypatch.setattr(leaving, "join", join)
    return asked


def has_left(folder: Folder) -> bool:
    """Whether its ledger has ended what was under way with the coordinator."""
    state = opened(folder)
    try:
        return bool(state.notes.read(LEFT_NOTE))
    finally:
        state.close()


def test_a_refused_token_leaves_the_folder_as_it_was(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the refusal came after a key was made; and no work under way was ended."""
    before = files(agent)
    for makes in (False, True):
        joining(monkeypatch, Unauthenticated("TOKEN_USED", "this token was used"), makes=makes)
        with pytest.raises(Unauthenticated):
            move(token, agent.root)
        assert files(agent) == before
        assert not (agent.root / "former").exists()
        assert not list(agent.root.glob("heads-*"))
        assert not has_left(agent)


def test_a_token_for_another_name_is_told_with_whom_to_ask(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounts carry the node's name; the folder is as it was, and nothing is restored."""
    before = files(agent)
    joining(monkeypatch, for_another(agent, NODE, NOT_USED_UP), makes=True)
    with pytest.raises(Malformed) as caught:
        move(token, agent.root)
    assert caught.value.reason == "TOKEN_FOR_ANOTHER_NODE"
    assert f"operator for a token for {NODE} (`feddp node token {NODE}`)" in caught.value.message
    assert given(agent) == before
    assert not has_left(agent)


def given(folder: Folder) -> dict[str, bytes]:
    """`files` without a key that waits."""
    return {k: v for k, v in files(folder).items() if not k.startswith("moving-")}


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("UNREACHABLE", "the answer was lost"),
        WrongPhase("JOIN_PENDING", "a person must let this machine in"),
        KeyboardInterrupt(),
        Cut(),
    ],
)
def test_the_same_move_goes_on_with_the_key_that_was_shown(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The folder is as it was meanwhile, even if the process was killed. A refusal ends it, and so
    does leaving."""
    before = files(agent)
    asked = joining(monkeypatch, error, makes=True)
    for _ in range(2):
        with pytest.raises(type(error)):
            move(token, agent.root)
        assert given(agent) == before
        assert not has_left(agent)
    assert asked[0] == asked[1]
    another = joining(monkeypatch, error, makes=True)
    with pytest.raises(type(error)):
        move(token + " ", agent.root)
    assert another == asked[:1], "a space that was copied too is no other token"
    (waiting,) = agent.identity.glob("moving-*.key")
    assert waiting in leaving.plan(agent.root).removed
    joining(monkeypatch, NotAllowed("JOIN_REJECTED", "the operator says no"))
    with pytest.raises(NotAllowed):
        move(token, agent.root)
    assert files(agent) == before


def test_a_move_whose_answer_cannot_be_used_is_undone(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out when the other coordinator had let the node in already."""
    before = files(agent)
    joining(monkeypatch, Malformed("JOIN_ANSWER_INVALID", "no address"), makes=True, lets_in=True)
    with pytest.raises(Malformed):
        move(token, agent.root)
    assert given(agent) == before
    assert load_identity(agent.identity).node == NODE


@pytest.mark.parametrize("step", range(10))
def test_a_move_that_was_cut_short_can_be_done_again(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At each rename and write, and in the middle of the join; the key that the other coordinator
    has let in is not lost."""
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
        asked = joining(patch, Cut(), makes=True, lets_in=True)
        patch.setattr(Path, "replace", maybe(Path.replace))
        patch.setattr(leaving, "write_durable", maybe(leaving.write_durable))
        with pytest.raises(Cut):
            move(token, agent.root)
    if (agent.root / "former").is_dir():  # every other command says what ends that
        for look in (status, lambda path: enrol.join(token, path)):
            with pytest.raises(WrongPhase) as caught:
                look(agent.root)
            assert caught.value.reason == "MOVE_CUT_SHORT"
            assert "feddp agent move TOKEN" in caught.value.message
    again = joining(monkeypatch, Unavailable("UNREACHABLE", "the answer was lost"), makes=True)
    with pytest.raises(Unavailable):
        move(token, agent.root)
    assert again == asked
    joining(monkeypatch, Unauthenticated("TOKEN_USED", "this token was used"))
    with pytest.raises(Unauthenticated):
        move(token, agent.root)
    assert files(agent) == before
    assert load_identity(agent.identity).node == NODE


@pytest.mark.parametrize("step", range(6))
def test_putting_back_can_be_cut_short_too(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At each rename: neither the old key nor the new one takes the other's place."""
    before = files(agent)
    asked = joining(monkeypatch, Cut(), makes=True, lets_in=True)
    with pytest.raises(Cut):
        move(token, agent.root)
    left = [step]
    replace = Path.replace

    def maybe(one: Path, to: Path) -> Path:
        if left[0] == 0:
            raise Cut
        left[0] -= 1
        return replace(one, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", maybe)
        with pytest.raises(Cut):
            move(token, agent.root)
    again = joining(monkeypatch, Unavailable("UNREACHABLE", "the answer was lost"), makes=True)
    with pytest.raises(Unavailable):
        move(token, agent.root)
    assert (again, given(agent)) == (asked, before)
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


@pytest.mark.parametrize("note", [ROLLED_BACK_NOTE, RESTORED_NOTE])
def test_a_ledger_that_lacks_something_is_not_taken_elsewhere(
    agent: Folder, token: str, monkeypatch: pytest.MonkeyPatch, note: str
) -> None:
    """The coordinator alone can tell what was spent: another one never would. Nothing changes."""
    state = opened(agent)
    state.notes.keep(note, "yes")
    state.close()
    before = files(agent)
    joining(monkeypatch, AssertionError("it asked"), makes=True)
    for leaves in (lambda: leave(agent.root), lambda: move(token, agent.root)):
        with pytest.raises(WrongPhase) as caught:
            leaves()
        assert caught.value.reason in ("LEDGER_ROLLED_BACK", "LEDGER_CATCHING_UP")
        assert files(agent) == before
    assert not has_left(agent)
