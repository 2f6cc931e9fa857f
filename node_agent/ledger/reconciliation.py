"""An entry of the coordinator's chain beside this node's own ledger: where they contradict each
other, and what is booked of it that the node has signed and lost."""

from node_agent.ledger.disputes import left_out
from node_agent.ledger.epochs_seen import EpochsSeen
from node_agent.ledger.gaps import Memory
from node_agent.ledger.own_ledger import KeptAccount, OwnLedger
from node_agent.state.kept_attempts import IN_A_COPY, KeptAttempts
from privacy.filters import Filter
from privacy.ledger import Entry, LimitChange, Statement, signature_ok
from privacy.limits import fault_of
from protos.errors import invariant


class Reconciliation:
    """Books within the caller's transaction.

    Args:
        public_key: the node's raw ledger key.
    """

    def __init__(
        self,
        node: str,
        ledger: OwnLedger,
        attempts: KeptAttempts,
        memory: Memory,
        epochs: EpochsSeen,
        public_key: bytes,
    ) -> None:
        self._node = node
        self._ledger = ledger
        self._attempts = attempts
        self._memory = memory
        self._epochs = epochs
        self._public_key = public_key

    def differs(self, entry: Entry) -> str:
        """Where an entry of the coordinator's contradicts our own ledger; empty where it does not.

        A post of an attempt that we never heard of, or that we know to be unopened, is a charge
        too many and no lie: nobody could prove otherwise when it was made. So is our own post of
        an attempt that a copy of this ledger held reserved, or did not know, and that we had signed
        void.
        """
        statement = entry.statement
        if statement.node != self._node:
            return f"entry {entry.seq} names node {statement.node}"
        if isinstance(statement, LimitChange):
            return self._raise_differs(entry, statement)
        attempt_id = statement.attempt_id
        if entry.node_signature and not signature_ok(
            self._public_key, statement, entry.node_signature
        ):
            return f"the signature of entry {entry.seq} is not this node's"
        own = {one.kind: one for one in self._ledger.statements_of(attempt_id)}
        for one in own.values():
            if one.digest() != statement.digest():
                return f"attempt {attempt_id} is booked here with other terms"
        if statement.kind == "void":
            if not entry.node_signature:
                return f"attempt {attempt_id} is void without this node's signature"
            if "post" in own and not self._is_doubted(attempt_id):
                return f"attempt {attempt_id} is void there and posted here"
        return ""

    def _is_doubted(self, attempt_id: str) -> bool:
        row = self._attempts.find(attempt_id)
        return row.reason == IN_A_COPY if row is not None else self._epochs.is_closed(attempt_id)

    def adopt(self, entry: Entry, filter_: Filter | None) -> str:
        """Book a post or a raise that we have signed and lost, or a post that we may have lost the
        attempt of; why that is impossible, or empty."""
        statement = entry.statement
        if isinstance(statement, LimitChange):
            return self._adopt_raise(statement)
        own = {one.kind for one in self._ledger.statements_of(statement.attempt_id)}
        if statement.kind != "post" or "post" in own:
            return ""
        signed = bool(entry.node_signature)
        if not signed and (own or not self._memory.may_have_come(statement.attempt_id)):
            return ""
        kept = self._ledger.account(statement.account)
        if kept is not None:  # what its entries have fixed counts, whatever the policy says now
            filter_ = kept.filter(kept.epsilon_limit_highest)
        if filter_ is None:
            return left_out(statement.account)
        units = filter_.cost_units(statement.release)
        if not signed:
            if not self._could_have_accepted(statement, units, kept, filter_):
                return ""
            self._epochs.note_closed(statement.attempt_id)
        self._ledger.fix(statement.account, filter_)
        self._ledger.take_over(statement, units, reserved="reserve" in own)
        return ""

    def _could_have_accepted(
        self, statement: Statement, units: int, kept: KeptAccount | None, filter_: Filter
    ) -> bool:
        """Whether an order of this release may ever have been accepted here: what is unsigned is
        the coordinator's word, which must not spend more of this ledger than an order could."""
        posted = kept.posted_units if kept is not None else 0
        limit = self._ledger.shown(kept) if kept is not None else filter_
        return statement.mechanism != "none" and posted + units <= limit.limit_units

    def adopt_signed(self, entry: Entry, filter_: Filter | None) -> str:
        """As `adopt`, for a chain that is taken as it is: a post that we have signed is ours,
        whatever stands beside it. Nothing is booked against what our own ledger says."""
        statement = entry.statement
        if not isinstance(statement, Statement) or statement.node != self._node:
            return ""
        if not signature_ok(self._public_key, statement, entry.node_signature):
            return ""
        own = self._ledger.statements_of(statement.attempt_id)
        if any(one.kind == "void" or one.digest() != statement.digest() for one in own):
            return ""
        return self.adopt(entry, filter_)

    def _raise_differs(self, entry: Entry, change: LimitChange) -> str:
        """A raise there must be one of ours; nobody else can sign it."""
        if not signature_ok(self._public_key, change, entry.node_signature):
            return f"entry {entry.seq} raises the limit, and this node has not signed that"
        known, number = self._ledger.raises(change.account), change.terms.number
        if number <= len(known) and known[number - 1] != change:
            return f"raise {number} is recorded here with other terms"
        return ""

    def _adopt_raise(self, change: LimitChange) -> str:
        known = self._ledger.raises(change.account)
        if change.terms.number <= len(known):
            return ""
        self._ledger.fix(change.account, change.terms.filter_of(change.terms.epsilon_limit_old))
        self._ledger.begin_at(change.account, change.terms.epsilon_limit_old)
        kept = self._ledger.account(change.account)
        invariant(kept is not None, "an account that was fixed is in the ledger")
        text = fault_of(change, self._ledger.shown(kept), len(known)) if kept else ""
        if not text:
            self._ledger.record(change)
        return text
