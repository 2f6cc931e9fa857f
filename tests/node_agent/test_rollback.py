"""What a node has signed and its ledger lacks: found by the head, and by single posts."""

import shutil
from pathlib import Path

import pytest

from node_agent.notes import RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.rollback import Signed, from_wire, look
from node_agent.state import State
from privacy.entries import append
from privacy.filters import make_filter
from privacy.heads import Head
from privacy.ledger import Entry
from privacy.wire import entry_to_wire, head_to_wire
from protos.feddp.v1 import federation_pb2 as pb
from tests.node_agent.samples import LEDGER_KEY, NODE, order

ACCOUNT = f"{NODE}/patients"
FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
PUBLIC = LEDGER_KEY.public_key().public_bytes_raw()


def release(state: State, attempt_id: str) -> Entry:
    """A release that this node books and signs; the coordinator's entry of it."""
    wanted = order(attempt_id=attempt_id, job_id=attempt_id)
    state.reserve(wanted, FILTER)
    state.open(attempt_id, 1.0, 1.0)
    signature = state.lose(attempt_id)
    assert signature is not None
    return append(wanted.statement(NODE, "post"), None, signature)


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A ledger with one release."""
    made = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    release(made, "a1")
    return made


def older(state: State, tmp_path: Path) -> tuple[State, Entry]:
    """A ledger that went back to before a release, and that release."""
    shutil.copytree(tmp_path, tmp_path / "copy")
    posted = release(state, "a2")
    return State(tmp_path / "copy/state.db", NODE, LEDGER_KEY), posted


def test_a_ledger_that_holds_what_it_signed_is_sound(state: State) -> None:
    """As after every session."""
    posted = release(state, "a2")
    assert look(state, NODE, PUBLIC, [Signed(None, (posted,))]) == ""
    assert state.notes.read(ROLLED_BACK_NOTE) == ""


def test_a_post_that_is_missing_is_found(state: State, tmp_path: Path) -> None:
    """The head was countersigned before it."""
    old, posted = older(state, tmp_path)
    assert "attempt a2" in look(old, NODE, PUBLIC, [Signed(None, (posted,))])
    # It stays so when the coordinator no longer says it.
    assert "attempt a2" in look(old, NODE, PUBLIC, [])


def test_a_head_that_is_ahead_is_found(state: State) -> None:
    """Though no post is told of."""
    head = Head(ACCOUNT, 7, "a" * 64)
    signed = Signed((head, LEDGER_KEY.sign(head.canonical())), ())
    assert "up to entry 0" in look(state, NODE, PUBLIC, [signed])


@pytest.mark.parametrize("how", ["signature", "account", "post"])
def test_what_this_node_has_not_signed_says_nothing(state: State, tmp_path: Path, how: str) -> None:
    """Nobody else can stop a node by this."""
    old, posted = older(state, tmp_path)
    head = Head("beta/patients" if how == "account" else ACCOUNT, 7, "a" * 64)
    signature = b"x" * 64 if how == "signature" else LEDGER_KEY.sign(head.canonical())
    if how == "post":
        told = Signed(None, (append(posted.statement, None, b"x" * 64),))
    else:
        told = Signed((head, signature), ())
    assert look(old, NODE, PUBLIC, [told]) == ""


def test_a_copy_that_was_imported_is_not_asked(state: State, tmp_path: Path) -> None:
    """It reads what it lacks, and refuses orders until it has."""
    old, posted = older(state, tmp_path)
    old.notes.keep(RESTORED_NOTE, "yes")
    assert look(old, NODE, PUBLIC, [Signed(None, (posted,))]) == ""


def test_a_node_that_comes_back_to_a_coordinator_is_not_accused(state: State) -> None:
    """What it saw there before was put aside when it left. No order is accepted until that chain
    was read again, and from then on an old copy is found as ever."""
    head = Head(ACCOUNT, 7, "a" * 64)
    told = [Signed((head, LEDGER_KEY.sign(head.canonical())), ())]
    state.leave()
    assert look(state, NODE, PUBLIC, told) == ""
    assert state.arrive(b"k" * 32)
    assert look(state, NODE, PUBLIC, told) == ""
    assert state.notes.read(RESTORED_NOTE), "orders would be accepted"
    state.notes.keep(RESTORED_NOTE, "")  # as after the look that has read it all
    assert "entry 7" in look(state, NODE, PUBLIC, told)


def test_it_reads_what_the_wire_carries_and_leaves_out_what_is_none(state: State) -> None:
    """A post without a mechanism is no signature of anybody's."""
    posted = release(state, "a2")
    head = Head(ACCOUNT, 7, "a" * 64)
    message = pb.Signed(
        head=head_to_wire(head, b"s"), posted=[entry_to_wire(posted), entry_to_wire(posted)]
    )
    message.posted[1].mechanism = "nonsense"
    read = from_wire(message)
    assert read.head == (head, b"s")
    assert [one.statement for one in read.posted] == [posted.statement]
