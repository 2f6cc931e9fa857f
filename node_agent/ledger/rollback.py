"""Whether this node's ledger went back in time: a snapshot, an older disk, a copy of the machine.

The coordinator tells at each session what the node has signed last: the head that it countersigned
and the newest posts after it. Each is this node's own signature, so nobody can make one up, and
each was durable here before it was signed. A ledger that lacks one has forgotten what its patients
have spent; orders are refused until a copy is imported (`feddp agent ledger import`), after which
what was signed since is read again from the coordinator's chain.

What it cannot find: a ledger that went back to before anything that the coordinator tells of, what
it lacks of another coordinator's time, and a coordinator that keeps silent about it.
docs/ledger.md says what that leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from node_agent.state.notes import LEFT_NOTE, RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from privacy.entries import Entry
from privacy.heads import Head, signed_by
from privacy.ledger import Statement, signature_ok
from privacy.wire import entry_from_wire, head_from_wire
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb

POSTS_MAX = 16


@dataclass(frozen=True, slots=True)
class Signed:
    """What the coordinator says that this node has signed last of one account.

    Attributes:
        head: with its signature; None before the first.
        posted: posts after that head.
    """

    head: tuple[Head, bytes] | None
    posted: tuple[Entry, ...]


def from_wire(message: pb.Signed) -> Signed:
    """As it came; what cannot be read is left out, since it is no signature of ours."""
    posted = []
    for one in message.posted[:POSTS_MAX]:
        try:
            posted.append(entry_from_wire(one))
        except FeddpError:
            continue
    head = None
    if message.HasField("head"):
        head = head_from_wire(message.head), message.head.node_signature
    return Signed(head, tuple(posted))


def look(state: State, node: str, public_key: bytes, signed: Sequence[Signed]) -> str:
    """What this ledger lacks of what the node has signed, in a sentence; empty for nothing.

    It is noted, and stays noted until a copy is imported.

    Args:
        public_key: the node's raw ledger key.
    """
    noted = state.notes.read(ROLLED_BACK_NOTE)
    # After leaving a coordinator nobody knows yet which one this is, and so what was seen there:
    # orders wait, and it is asked again on arrival.
    if noted or state.notes.read(RESTORED_NOTE) or state.notes.read(LEFT_NOTE):
        return noted
    for one in signed:
        text = _lacks(state, node, public_key, one)
        if text:
            state.notes.keep(ROLLED_BACK_NOTE, text)
            return text
    return ""


def _lacks(state: State, node: str, public_key: bytes, signed: Signed) -> str:
    witnessed = state.witnessed
    if signed.head is not None:
        head, signature = signed.head
        if not head.account.startswith(f"{node}/") or not signed_by(public_key, head, signature):
            return ""
        if state.disputes.on(head.account) is not None or witnessed.is_settled(head.account):
            return ""
        # While the chain of a coordinator that was restored, or that the node came back to, is
        # read anew, what was seen before counts.
        seen = max(
            witnessed.head(head.account).seq,
            state.epochs.head_before(head.account),
            state.former_heads.here(head.account),
        )
        if seen < head.seq:
            return (
                f"this node has signed entry {head.seq} of the coordinator's account "
                f"{head.account}, and its own state knows them up to entry {seen}"
            )
    for entry in signed.posted:
        said = entry.statement
        if not isinstance(said, Statement) or said.node != node or said.kind != "post":
            continue
        if not signature_ok(public_key, said, entry.node_signature):
            continue
        if state.disputes.on(said.account) is not None or witnessed.is_settled(said.account):
            continue
        if "post" not in {own.kind for own in state.ledger.statements_of(said.attempt_id)}:
            return (
                f"this node has signed that attempt {said.attempt_id} released something on "
                f"account {said.account}, and its own ledger does not hold it"
            )
    return ""
