"""Takes an order to the steward's rules and the node's own ledger. Runs in the ledger's thread."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from node_agent.data.datasets import DataSetSpec
from node_agent.ledger.account_filters import filter_of
from node_agent.ledger.disputes import EVERY_ACCOUNT
from node_agent.ledger.payers import require_kept, source_digest
from node_agent.policy.asking import check_asked, check_caps, mandate_of
from node_agent.policy.judgement import Refusal, judge, judge_terms, verdicts
from node_agent.policy.orders import Order
from node_agent.policy.policy import Policy
from node_agent.policy.steward import Steward
from node_agent.policy.working import WorkPolicy
from node_agent.state.notes import LEFT_NOTE, RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from node_agent.tasks.registry import Purpose, TaskInfo
from privacy.filters import Filter
from protos.content import digest_of
from protos.errors import FeddpError, Limited, NotAllowed


@dataclass(frozen=True, slots=True)
class Reserved:
    """Booked.

    Attributes:
        signature: over the reserve statement.
        terms: of the moment; None where the order was reserved before.
    """

    signature: bytes
    terms: "Terms | None" = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """Never opened and never will be; `signature` is over the void statement."""

    reason: str
    message: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Spent:
    """Done long ago and nothing left to hand in; `signature` is over the post statement."""

    signature: bytes


Decision = Reserved | Refused | Spent


@dataclass(frozen=True, slots=True)
class Terms:
    """What an order is carried out with.

    Attributes:
        tick_s: outcomes leave at multiples of it from the opening; 0 where no data is read.
        work: how much of the machine a worker may use, by the steward.
        share_failure_class: whether the coordinator is told why no update came of it.
    """

    data_set: DataSetSpec
    tick_s: float
    work: WorkPolicy
    share_failure_class: bool = False


@dataclass(frozen=True, slots=True)
class Suspensions:
    """Accounts on which every order is refused, whatever it asks, until somebody acts.

    Attributes:
        handing_in: what this node's ledger holds of them is not yet in the ledger of a coordinator
            that was restored.
        approvals: another number after each answer to a job that waited; what was refused before
            may be asked again.
    """

    catching_up: bool = False
    disputed: frozenset[str] = frozenset()
    outside_hours: bool = False
    approvals: int = 0
    rolled_back: bool = False
    handing_in: frozenset[str] = frozenset()

    def reason(
        self, account: str
    ) -> Literal[
        "LEDGER_ROLLED_BACK",
        "LEDGER_CATCHING_UP",
        "LEDGER_DISPUTED",
        "LEDGER_RECONCILING",
        "OUTSIDE_HOURS",
        "",
    ]:
        """Why orders on "NODE/NAME" are refused; empty where they are judged."""
        if self.rolled_back:
            return "LEDGER_ROLLED_BACK"
        if self.catching_up:
            return "LEDGER_CATCHING_UP"
        if self.disputed & {account, EVERY_ACCOUNT}:
            return "LEDGER_DISPUTED"
        if account in self.handing_in:
            return "LEDGER_RECONCILING"
        return "OUTSIDE_HOURS" if self.outside_hours else ""


def suspensions_of(state: State, *, outside_hours: bool = False) -> Suspensions:
    """What a ledger says of them."""
    note = state.notes.read
    return Suspensions(
        bool(note(RESTORED_NOTE) or note(LEFT_NOTE)),
        frozenset(one.account for one in state.disputes.all()),
        outside_hours,
        state.approvals.revision(),
        bool(note(ROLLED_BACK_NOTE)),
        state.epochs.to_hand_in(),
    )


class Admission:
    """Decides; every refusal is durable when it is returned, a reservation before it is used.

    Attributes:
        node: this node's name.
    """

    def __init__(
        self,
        node: str,
        state: State,
        steward: Steward,
        tasks: Callable[[], Mapping[str, TaskInfo]],
        model_bytes_max: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.node = node
        self._state = state
        self._steward = steward
        self._tasks = tasks
        self._model_bytes_max = model_bytes_max
        self._clock = clock

    def decide(self, order: Order, opened: Collection[str] = ()) -> Decision:
        """Reserve or refuse; the same order again gets the same answer.

        Args:
            opened: as `State.standing` takes it.
        """
        row = self._state.attempts.find(order.attempt_id)
        if row is None:
            return self._decide_new(order, opened)
        if row.order != order:
            # The statement of the first order may be reserved or spent: nothing is signed here.
            return Refused("ATTEMPT_CONFLICT", _OTHER_TERMS, b"")
        match row.state:
            case "refused":
                return Refused(row.reason, row.message, self._state.signature(order, "void"))
            case "closed" if row.outcome == "void":
                signature = self._state.signature(order, "void")
                return Refused("ATTEMPT_CLOSED", "This attempt was voided.", signature)
            case "closed":
                return Spent(self._state.signature(order, "post"))
            case _:
                return Reserved(self._state.signature(order, "reserve"))

    def terms(self, order: Order) -> Terms | Refusal:
        """The terms, or a refusal if the steward has changed the rules since the order came."""
        if self._state.notes.read(ROLLED_BACK_NOTE):
            return Refusal("LEDGER_ROLLED_BACK", ROLLED_BACK)
        try:
            rules = self._steward.rules()
        except FeddpError as error:
            return _unreadable(error)
        try:
            check_asked(rules.policy.who_may_ask, order, self.node, self._clock(), None)
        except FeddpError as error:
            return Refusal(error.reason, error.message)
        if f"{self.node}/{order.account}" in self._state.epochs.to_hand_in():
            return Refusal("LEDGER_RECONCILING", RECONCILING)
        refusal = judge_terms(rules.policy, rules.data_sets, self._tasks(), order)
        if refusal is not None:
            return refusal
        try:
            self._require_let_in(rules.policy, order)
        except FeddpError as error:
            return Refusal(error.reason, error.message)
        if self._is_outside_hours(rules.policy):
            return _outside_hours(rules.policy)
        data_set = next(one for one in rules.data_sets if one.name == order.data_set)
        if order.release.mechanism != "no_data" and not data_set.source.exists():
            return Refusal("SOURCE_MISSING", "The data set's file is not where it is declared.")
        try:
            self._state.payers.require_unmoved(data_set)
        except FeddpError as error:
            return Refusal(error.reason, error.message)
        if order.release.mechanism != "no_data":
            # The declaration may be another than when the order was reserved: what is kept is what
            # is about to be read.
            self._state.payers.note(self._state.payers.payment(data_set))
        return _terms_of(rules.policy, data_set, order)

    def suspensions(self) -> Suspensions:
        """As they are now."""
        return suspensions_of(self._state, outside_hours=self._outside_hours_now())

    def withdrawn(self, orders: Sequence[Order]) -> list[tuple[Order, Refusal]]:
        """Those of the orders that the steward's rules of now do not allow any more, with why."""
        try:
            rules = self._steward.rules()
        except FeddpError as error:
            return [(order, _unreadable(error)) for order in orders]
        judged = (
            (order, judge_terms(rules.policy, rules.data_sets, self._tasks(), order))
            for order in orders
        )
        return [(order, refusal) for order, refusal in judged if refusal is not None]

    def is_withdrawn(self, order: Order) -> bool:
        """Whether the steward has taken back the order's data set, or its task on it, so that
        nothing of it may leave. While the rules cannot be read, what was released under them stays;
        so does what code has made that is no longer installed, but still allowed."""
        try:
            rules = self._steward.rules()
        except FeddpError:
            return False
        found = verdicts(rules.policy, rules.data_sets, {}, order)
        return any(no is not None for rule, no in found if rule in ("data set", "task"))

    def _outside_hours_now(self) -> bool:
        try:
            return self._is_outside_hours(self._steward.rules().policy)
        except FeddpError:
            return False  # every order is refused for that

    def _is_outside_hours(self, policy: Policy) -> bool:
        work = policy.work
        return bool(work.hours) and not work.is_open(datetime.fromtimestamp(self._clock()))

    def filter_of_account(self, account: str) -> Filter | None:
        """How "NODE/NAME" counts by the steward's files of now; None if they do not say."""
        name = account.removeprefix(f"{self.node}/")
        try:
            rules = self._steward.rules()
            policy = rules.policy.account(name)
            if policy is None:
                return None
            fixed = self._state.fixed_filter(name)
            there = self._state.coordinator_limits.bound_of(account)
            return filter_of(policy, rules.data_sets, fixed, there)
        except FeddpError:
            return None

    def _decide_new(self, order: Order, opened: Collection[str]) -> Decision:
        for booked in self._state.ledger.statements_of(order.attempt_id):
            if booked.digest() != order.statement(self.node, booked.kind).digest():
                return Refused("ATTEMPT_CONFLICT", _OTHER_TERMS, b"")
            if booked.kind == "post":  # taken over from the coordinator's chain
                return Spent(self._state.signature(order, "post"))
        if self._state.memory.may_have_come(order.attempt_id):
            # It may have been opened here: no void can be signed, and it is charged.
            if self._state.memory.is_rolled_back:
                return Refused("LEDGER_ROLLED_BACK", ROLLED_BACK, b"")
            return Refused("LEDGER_CATCHING_UP", CATCHING_UP, b"")
        try:
            filter_, source, terms = self._judged(order, opened)
        except FeddpError as error:
            signature = self._state.refuse(order, error.reason, error.message)
            return Refused(error.reason, error.message, signature)
        self._keep_mandate(order)
        signature = self._state.reserve(order, filter_, self._purpose(order), source)
        return Reserved(signature, terms)

    def _keep_mandate(self, order: Order) -> None:
        mandate, signed = mandate_of(order), order.signed()
        if mandate is not None and signed is not None:
            self._state.mandates.keep(mandate, digest_of(signed.body))

    def _purpose(self, order: Order) -> Purpose:
        info = self._tasks().get(order.task)
        return info.purpose if info is not None else "training"

    def _judged(self, order: Order, opened: Collection[str]) -> tuple[Filter, str, Terms]:
        """The filter to book an allowed order with, what it is to read, and its terms.

        Raises:
            FeddpError: why it is not allowed; may be told to the coordinator.
        """
        if order.base_model_bytes > self._model_bytes_max:
            raise Limited(
                "MODEL_TOO_LARGE", f"This node takes models up to {self._model_bytes_max} bytes."
            )
        reason = self.suspensions().reason(f"{self.node}/{order.account}")
        if reason == "LEDGER_ROLLED_BACK":
            raise NotAllowed(reason, ROLLED_BACK)
        if reason == "LEDGER_CATCHING_UP":
            raise NotAllowed(reason, CATCHING_UP)
        try:
            rules = self._steward.rules()
        except FeddpError as error:
            refusal = _unreadable(error)
            raise NotAllowed(refusal.reason, refusal.message) from None
        # Before a dispute is told: where both are so, settling it is not what helps.
        require_kept(rules.policy, self._state.accounts_kept())
        if reason == "LEDGER_DISPUTED":
            raise NotAllowed(
                reason,
                f"This node's ledger and the coordinator's disagree about account {order.account}; "
                "its data steward sees in `feddp agent status` what ends it.",
            )
        if reason == "LEDGER_RECONCILING" or self._state.epochs.is_closed(order.attempt_id):
            raise NotAllowed("LEDGER_RECONCILING", RECONCILING)
        if reason == "OUTSIDE_HOURS":
            refusal = _outside_hours(rules.policy)
            raise NotAllowed(refusal.reason, refusal.message)
        seen = self._state.mandates.seen(order.job_id, order.round)
        check_asked(rules.policy.who_may_ask, order, self.node, self._clock(), seen)
        spec = next((one for one in rules.data_sets if one.name == order.data_set), None)
        if spec is not None:
            self._state.payers.require_unmoved(spec)
        standing = self._state.standing(order, self._purpose(order), opened)
        found = judge(rules.policy, rules.data_sets, self._tasks(), order, self.node, standing)
        account = rules.policy.account(order.account)
        if found is not None or account is None or spec is None:
            refused = found or Refusal("ACCOUNT_MISMATCH", "There is no such account.")
            raise NotAllowed(refused.reason, refused.message)
        filter_ = filter_of(account, rules.data_sets, standing.fixed, standing.limit_there)
        check_caps(order, filter_, standing.job_units + filter_.cost_units(order.release))
        self._require_let_in(rules.policy, order)
        return filter_, _read(spec, order), _terms_of(rules.policy, spec, order)

    def _require_let_in(self, policy: Policy, order: Order) -> None:
        """The last rule, so that nobody is asked about what would be refused anyway.

        Raises:
            NotAllowed: APPROVAL_NEEDED, APPROVAL_REFUSED.
            Malformed: MANDATE_INVALID.
        """
        approvals = self._state.approvals
        is_rejected = approvals.is_rejected(order.job_id)
        asks = policy.work.approve_first_job and not approvals.is_known(order.project)
        if not is_rejected and not asks:
            approvals.settle(order.job_id)
            return
        mandate = mandate_of(order)
        until_s = None if mandate is None else float(mandate.expires_at_s)
        approvals.ask(order.job_id, order.project, self._clock(), until_s)
        if is_rejected:
            raise NotAllowed("APPROVAL_REFUSED", REJECTED)
        raise NotAllowed(
            "APPROVAL_NEEDED",
            f"The data steward of this node looks at the first job of project {order.project} "
            f"before it runs: `feddp agent approve {order.job_id}` there; the node asks for the "
            "order again then.",
        )


def _terms_of(policy: Policy, data_set: DataSetSpec, order: Order) -> Terms:
    if order.release.mechanism == "no_data":
        return Terms(data_set, 0.0, policy.work)
    return Terms(data_set, policy.outcome_tick_s, policy.work, policy.share_failure_class)


def _read(spec: DataSetSpec, order: Order) -> str:
    """What an order reads of a data set; empty for nothing."""
    return "" if order.release.mechanism == "no_data" else source_digest(spec)


ROLLED_BACK: Final = (
    "This node's ledger lacks what the node has signed, as after a snapshot was put back; its IT "
    "stops the agent and runs `feddp agent ledger import`."
)

CATCHING_UP: Final = (
    "This node was restored from a copy, or came from another coordinator, and is still reading "
    "what it has signed here; order again later."
)

_OTHER_TERMS: Final = "This attempt was ordered with other terms."

REJECTED: Final = (
    "The data steward of this node has looked at this job and refused it; the node works at it "
    "only if they let it in after all."
)

RECONCILING: Final = (
    "The coordinator was restored from a backup, and this node has not yet handed in what it "
    "released since on this account; the order is one of before that."
)


def _outside_hours(policy: Policy) -> Refusal:
    return Refusal(
        "OUTSIDE_HOURS",
        f"This node begins work at {', '.join(policy.work.hours)} of its local time only.",
    )


def _unreadable(error: FeddpError) -> Refusal:
    """The files are unreadable, so nothing is allowed; what is wrong in them stays here."""
    return Refusal(error.reason, "The node's policy or data sets cannot be read; its steward can.")
