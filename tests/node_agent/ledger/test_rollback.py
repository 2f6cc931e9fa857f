"""What a node has signed and its ledger lacks: found by the head, and by single posts."""

import shutil
import time
from pathlib import Path

import pytest

from node_agent.folder.config import Folder
from node_agent.ledger.rollback import Signed, from_wire, look
from node_agent.policy.admission import Admission
from node_agent.policy.steward import Steward
from node_agent.state.notes import RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from node_agent.tasks.registry import installed
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


FIRST, SECOND = b"1" * 32, b"2" * 32
"""Keys of coordinators."""


def signed_head(seq: int) -> list[Signed]:
    """What a coordinator tells that holds the node's signature over this entry."""
    head = Head(ACCOUNT, seq, "a" * 64)
    return [Signed((head, LEDGER_KEY.sign(head.canonical())), ())]


def stays_with(state: State, key: bytes, seq: int) -> None:
    """Follow a coordinator's chain up to an entry, and leave."""
    state.witnessed.keep_coordinator_key(key)
    state._connection.execute("INSERT INTO seen_heads VALUES (?, ?, ?)", (ACCOUNT, seq, "a" * 64))
    state.leave()


def test_a_node_that_comes_back_to_a_coordinator_is_not_accused(state: State) -> None:
    """What it knew there was kept when it went, and counts until that chain was read again."""
    stays_with(state, FIRST, 7)
    assert state.arrive(SECOND)
    stays_with(state, SECOND, 2)
    assert look(state, NODE, PUBLIC, signed_head(7)) == "", "nobody knows yet which one this is"
    assert state.arrive(FIRST)
    assert state.witnessed.head(ACCOUNT).seq == 0
    assert look(state, NODE, PUBLIC, signed_head(7)) == ""
    assert "up to entry 7" in look(state, NODE, PUBLIC, signed_head(8))


def test_what_was_known_of_one_coordinator_says_nothing_of_another(state: State) -> None:
    """A copy from before the second stay, put back during it: the first chain was longer."""
    stays_with(state, FIRST, 7)
    assert state.arrive(SECOND)
    assert "up to entry 0" in look(state, NODE, PUBLIC, signed_head(2))


def test_two_stays_are_known_by_the_longer(state: State) -> None:
    """One that came back and went again before it had read anything has forgotten nothing."""
    for seq, key in ((7, FIRST), (2, SECOND), (0, FIRST), (3, SECOND)):
        stays_with(state, key, seq)
        assert state.arrive(SECOND if key == FIRST else FIRST)
    assert look(state, NODE, PUBLIC, signed_head(7)) == ""
    assert "up to entry 7" in look(state, NODE, PUBLIC, signed_head(8))


def test_a_coordinator_that_gave_no_checkpoint_may_be_any(state: State) -> None:
    """Its key was never learned, so that nobody may be accused by what was known of it."""
    stays_with(state, b"", 7)
    assert state.arrive(FIRST)
    assert look(state, NODE, PUBLIC, signed_head(7)) == ""


def test_a_settled_chain_that_was_never_read_accuses_nobody_later(state: State) -> None:
    """The steward has taken it as it is, whatever this node had signed there."""
    state.witnessed.keep_coordinator_key(FIRST)
    state._connection.execute("INSERT INTO settled VALUES (?)", (ACCOUNT,))
    state.leave()
    assert state.arrive(SECOND)
    stays_with(state, SECOND, 2)
    assert state.arrive(FIRST)
    assert look(state, NODE, PUBLIC, signed_head(7)) == ""


def test_no_order_is_accepted_before_it_is_known_who_the_coordinator_is(
    state: State, tmp_path: Path
) -> None:
    """Until then an old copy cannot be told."""
    admission = Admission(NODE, state, Steward(Folder(tmp_path)), installed, 1 << 30, time.time)
    for reason, step in (
        ("", state.leave),
        ("LEDGER_CATCHING_UP", lambda: state.arrive(FIRST)),
        ("", lambda: None),
    ):
        assert admission.suspensions().reason(ACCOUNT) == reason
        step()


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
