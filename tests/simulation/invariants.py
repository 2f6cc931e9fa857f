"""What must hold after every event, and at the end; the checker alone knows the whole truth."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from coordinator.rounds import machine
from coordinator.rounds.events import NodesSurveyed
from coordinator.rounds.live import LiveJob, job_from_json, plan_of
from coordinator.rounds.phases import (
    Attempt,
    AttemptState,
    Phase,
    RoundRecord,
    current_round,
)
from coordinator.store.ledger import Account
from node_agent.policy.orders import Order
from node_agent.session.attempts import Phase as NodePhase
from privacy.filters import Filter
from privacy.ledger import GENESIS, Balance, Entry, LimitChange, Statement
from protos.errors import FeddpError
from tests.simulation.coordinator_work import Blobs
from tests.simulation.final import check_end, job_endings
from tests.simulation.limits import Limits
from tests.simulation.liveness import Liveness
from tests.simulation.noise import far_above_plan
from tests.simulation.truth import Broken, Truth

if TYPE_CHECKING:
    from tests.simulation.node_disk import NodeDisk
    from tests.simulation.node_side import Node
    from tests.simulation.world import World

_DISK_STATES = {
    NodePhase.FETCHING: {"reserved", "refused", "closed"},
    NodePhase.READY: {"reserved", "refused", "closed"},
    NodePhase.WITHDRAWING: {"reserved", "refused", "closed"},
    NodePhase.PREPARING: {"reserved", "opened", "refused", "closed"},
    NodePhase.TRAINING: {"opened", "spooled", "no_update", "closed"},
    NodePhase.HOLDING: {"spooled", "no_update", "closed"},
    NodePhase.SUBMITTING: {"spooled", "closed"},
    NodePhase.TELLING: {"spooled", "no_update", "closed"},
}
"""What `state.db` may say of an attempt that the agent's memory has in a phase: never less than
the memory, and more only while the answer is on its way."""


class Checker:
    """Reads what is durable and compares it with what really happened."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.truth = Truth()
        self.liveness = Liveness(world)
        self.limits = Limits(world)
        self.shadows: dict[str, Phase] = {}
        self._plans: dict[str, Any] = {}
        self._steps: dict[str, int] = {}
        self.heads: dict[str, tuple[int, str]] = {}
        self.balances: dict[str, Balance] = {}
        self.reserved: dict[str, Statement] = {}
        self.ended: dict[str, str] = {}
        self._of_job: defaultdict[str, int] = defaultdict(int)
        self._spent: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        self._published: set[tuple[str, str, int]] = set()
        self.moved_at_s = 0.0
        self._seen_phases: dict[tuple[str, int, str], NodePhase] = {}
        self._changed_nodes: dict[str, Node] = {}
        self._kept_of: dict[tuple[str, int, str], str] = {}

    def broken(self, invariant: str, text: str) -> None:
        """Say which invariant does not hold."""
        raise Broken(invariant, text)

    # What is told

    def central_changed(self) -> None:
        """The coordinator has committed: look before anything follows from it."""
        self._central()

    def memory_changed(self, live: LiveJob) -> None:
        """The coordinator's memory has followed a commit."""
        if live.phase != self.shadows[live.job_id]:
            text = f"the journal of {live.job_id} is not what is in memory"
            self.broken("reload-equals-memory", text)

    def node_changed(self, node: "Node") -> None:
        """The memory of a node's agent is another."""
        self._changed_nodes[node.name] = node

    def order_sent(self, attempt_id: str) -> None:
        """An order goes out."""
        self._central()
        if attempt_id not in self.reserved:
            self.broken("reserved-first", f"{attempt_id} is ordered and not reserved on disk")

    def node_reserved(self, disk: "NodeDisk", order: Order, filter_: Filter) -> None:
        """A node has reserved: it must fit its own limit, whatever the coordinator says."""
        self.limits.reserved(disk, order, filter_)
        standing = disk.state.standing(order)
        units = standing.posted_units + sum(one.units for one in standing.pending)
        if units > filter_.limit_units and filter_.cost_units(order.release) > 0:
            self.broken("limit", f"{disk.node} has {units} of {filter_.limit_units} units")
        known = self.reserved.get(order.attempt_id)
        mine = order.statement(disk.node, "reserve").digest()
        if known is not None and known.digest() != mine:
            self.broken("ledgers-agree", f"{order.attempt_id} is ordered and booked differently")

    def node_opened(self, disk: "NodeDisk", attempt_id: str) -> None:
        """The opening is durable."""
        self.truth.opened.add(attempt_id)
        if self.ended.get(attempt_id) == "void":
            self.broken("void-is-unopened", f"{attempt_id} is void and is opened")

    def data_opened(self, node: "Node", order: Order) -> None:
        """A worker reads the data now."""
        attempt_id, truth = order.attempt_id, self.truth
        row = node.disk_.state.attempts.find(attempt_id)
        chain = {(x.attempt_id, x.kind) for x in node.disk_.statements()}
        if row is None or (attempt_id, "reserve") not in chain:
            self.broken("reserved-first", f"{attempt_id} is opened and not reserved at its node")
        if attempt_id not in self.reserved:
            self.broken("reserved-first", f"{attempt_id} is opened and not reserved centrally")
        if attempt_id in truth.trained_attempts:
            self.broken("trained-once", f"{attempt_id} is trained twice")
        if self.ended.get(attempt_id) == "void" or (attempt_id, "void") in chain:
            self.broken("void-is-unopened", f"{attempt_id} is void and is trained")
        truth.trained_attempts[attempt_id] = node.name
        truth.opened.add(attempt_id)

    def trained(self, node: "Node", order: Order, digest: str, is_damaged: bool) -> None:
        """An update exists."""
        self.truth.keep(node.name, order, digest, is_damaged)

    def bytes_leave(self, node: "Node", attempt_id: str, digest: str) -> None:
        """The first of an update's bytes go out, or go out again."""
        row = node.disk_.state.attempts.find(attempt_id)
        if row is None or row.outcome != "post":
            self.broken("booked-first", f"{attempt_id} leaves and is not posted at its node")
        if self.truth.attempt_of(digest) != attempt_id:
            self.broken("charged-once", f"update {digest[:8]} leaves for another attempt")

    def spool_lost(self, files: dict[str, str]) -> None:
        """The spool was emptied from outside."""
        self.truth.spool_lost.update(files)

    def vanished(self, node: "Node", attempt_id: str, digest: str) -> None:
        """A node misses an update's bytes: only somebody else may have removed them."""
        row = node.disk_.state.attempts.find(attempt_id)
        if digest not in self.truth.spool_lost and row is not None and row.state == "spooled":
            self.broken("kept-until-acknowledged", f"{attempt_id} was dropped by its own node")

    def damaged(self, digest: str) -> bool:
        """Whether the coordinator finds a fault in an update."""
        return self.truth.is_damaged(digest)

    def acknowledged(self, attempt_id: str, digest: str) -> None:
        """The coordinator is about to say that it has the update."""
        self._central()
        attempt = self._journalled(attempt_id)
        durable = attempt is not None and (attempt.state, attempt.digest) == (
            AttemptState.RECEIVED,
            digest,
        )
        if self.ended.get(attempt_id) != "post" or not durable:
            self.broken("durable-before-reply", f"{attempt_id} is acknowledged and not on disk")
        self.truth.acknowledged[attempt_id] = digest
        statement = self.reserved[attempt_id]
        self._kept_of[(statement.job_id, statement.round, statement.node)] = attempt_id

    def folded(self, attempt: Attempt, blobs: Blobs) -> None:
        """An update goes into a model."""
        if attempt.digest not in blobs.updates.get(attempt.attempt_id, ()):
            self.broken("nothing-lost", f"the bytes of {attempt.attempt_id} are gone at the fold")

    def _journalled(self, attempt_id: str) -> Attempt | None:
        shadow = self.shadows.get(self.reserved[attempt_id].job_id)
        for record in _rounds(shadow) if shadow is not None else []:
            found = record.attempt(attempt_id)
            if found is not None:
                return found
        return None

    # After every event

    def after_event(self) -> None:
        """Look at what has changed."""
        for node in self._changed_nodes.values():
            if node.up:
                self._memory_of(node)
        self._changed_nodes = {}

    def now_and_then(self) -> None:
        """Nothing waits for long without a reason."""
        self.liveness.look(self.shadows)
        self._spending()

    def _spending(self) -> None:
        """What a job has spent is the same by its journal and by the ledger."""
        coordinator = self._world.coordinator
        accounts = coordinator.store.accounts()
        for live in coordinator.running():
            if live.has_turn or live.unsure:
                continue
            for one in accounts:
                units, releases = live.spent(one.account, one.filter)
                if (units, releases) != tuple(self._spent[(live.job_id, one.account)]):
                    text = f"{live.job_id} has spent {units} units of {one.account} by its journal"
                    self.broken("journal-equals-ledger", text)

    def _memory_of(self, node: "Node") -> None:
        for one in node.agent.attempts:
            key = (node.name, node.life, one.attempt_id)
            if one.phase is NodePhase.JUDGING or self._seen_phases.get(key) is one.phase:
                continue
            self._seen_phases[key] = one.phase
            row = node.disk_.state.attempts.find(one.attempt_id)
            if row is None:
                self.broken("reserved-first", f"{one.attempt_id} is worked at and not reserved")
            if row.state not in _DISK_STATES[one.phase]:
                text = f"{one.attempt_id} is {one.phase.value} in memory and {row.state} on disk"
                self.broken("reload-equals-memory", text)

    def _central(self) -> None:
        store = self._world.coordinator.store
        for account in store.accounts():
            seq, _ = self.heads.get(account.account, (0, GENESIS))
            for entry in store.chain(account.account, seq):
                self._book(account, entry)
            self.limits.enforced(account)
            known = self.balances.get(account.account)
            if known is not None:
                same = (known.posted_units, known.pending) == (
                    account.balance.posted_units,
                    tuple(account.balance.pending),
                )
                if not same:
                    self.broken("reload-equals-memory", f"{account.account}: balance and chain")
        for record in store.jobs():
            self._journal(record.job_id, record.resolved)
        for model in store.models():
            self._model(model)

    def _book(self, account: Account, entry: Entry) -> None:
        statement, name = entry.statement, account.account
        seq, head = self.heads.get(name, (0, GENESIS))
        if (entry.seq, entry.prev_hash) != (seq + 1, head):
            self.broken("chain", f"{name} entry {entry.seq} does not follow {seq}")
        self.heads[name] = (entry.seq, entry.hash)
        if isinstance(statement, LimitChange):
            self.limits.booked(account, statement)
        else:
            self.limits.first(account)
            self._book_attempt(account.balance.filter, entry, statement)

    def _book_attempt(self, filter_: Filter, entry: Entry, statement: Statement) -> None:
        attempt_id, account, kind = statement.attempt_id, statement.account, statement.kind
        if kind == "reserve":
            if attempt_id in self.reserved:
                self.broken("own-id", f"{attempt_id} is reserved twice")
            self.reserved[attempt_id] = statement
            self._of_job[statement.job_id] += 1
            self.liveness.takes_turns(statement)
            if far_above_plan(self._world.specs[statement.job_id], filter_, statement):
                self.broken("noise-of-the-plan", f"{attempt_id} is ordered to send mere noise")
            kept = self._kept_of.get((statement.job_id, statement.round, statement.node))
            if kept is not None:
                text = f"{attempt_id} would train what {kept} has been acknowledged for"
                self.broken("acknowledged-is-final", text)
        elif attempt_id not in self.reserved:
            self.broken("reserved-first", f"{attempt_id} is resolved and was never reserved")
        elif attempt_id in self.ended:
            self.broken("resolved-once", f"{attempt_id} is resolved twice")
        else:
            self.ended[attempt_id] = kind
        spent = self._spent[(statement.job_id, account)]
        sign = {"reserve": 1, "void": -1, "post": 0}[kind]
        spent[0] += sign * filter_.cost_units(statement.release)
        spent[1] += sign
        if kind == "void":
            if not entry.node_signature:
                self.broken("void-is-unopened", f"{attempt_id} is void without the node's word")
            if attempt_id in self.truth.opened:
                self.broken("void-is-unopened", f"{attempt_id} was opened and is void")
        self._add_up(filter_, statement)

    def _add_up(self, filter_: Filter, statement: Statement) -> None:
        balance = self.balances.get(statement.account, Balance(filter_))
        balance = Balance(filter_, balance.posted_units, balance.pending, balance.posted)
        try:
            self.balances[statement.account] = balance.apply(statement)
        except FeddpError as error:
            self.broken("limit" if statement.kind == "reserve" else "chain", error.message)

    def _journal(self, job_id: str, resolved: str) -> None:
        """Reload equals memory, and the journal says the same as the ledger."""
        store, done = self._world.coordinator.store, self._steps.get(job_id, 0)
        for at_s, event in store.history(job_id, done):
            if done == 0:
                self._plans[job_id] = plan_of(job_from_json(resolved))
                self.shadows[job_id], _ = machine.start(self._plans[job_id], event, at_s)  # type: ignore[arg-type]
            else:
                self.shadows[job_id], _ = machine.step(self.shadows[job_id], event, at_s)
            done += 1
            if not isinstance(event, NodesSurveyed):
                self.moved_at_s = self._world.now_s
        self._steps[job_id] = done
        self.liveness.follow(job_id, self.shadows[job_id])
        records = _rounds(self.shadows[job_id])
        if sum(len(one.attempts) for one in records) != self._of_job[job_id]:
            self.broken("charged-once", f"{job_id} has reservations that no round knows of")
        for record in records[-2:]:
            for attempt in record.attempts:
                self._same(attempt)

    def _same(self, attempt: Attempt) -> None:
        booked = self.ended.get(attempt.attempt_id, "open")
        expected = "open" if attempt.is_open else "post"
        if attempt.state is AttemptState.REFUSED:
            expected = "void"
        if booked != expected:
            text = f"{attempt.attempt_id} is {attempt.state.value} and its charge is {booked}"
            self.broken("resolved-once", text)

    def _model(self, model: Any) -> None:
        key = (model.job_id, model.kind, model.round)
        if key in self._published or model.kind != "round":
            return
        self._published.add(key)
        records = _rounds(self.shadows[model.job_id])
        record = next(one for one in reversed(records) if one.number == model.round)
        plan = self._plans[model.job_id]
        made = self._world.coordinator.blobs.models[model.digest]
        nodes = set()
        for attempt_id, digest in made.updates:
            origin = self.truth.origin(digest)
            if origin is None or origin.attempt_id != attempt_id or origin.is_damaged:
                self.broken("quorum", f"{attempt_id} counts with what its node never made for it")
            if (origin.job_id, origin.round, origin.base) != (model.job_id, model.round, made.base):
                self.broken("quorum", f"{attempt_id} counts in round {model.round}, another one")
            if self.ended.get(attempt_id) != "post":
                self.broken("charged-once", f"{attempt_id} counts and is not charged")
            nodes.add(origin.node)
        if len(nodes) < plan.min_participants:
            self.broken("quorum", f"{model.job_id} round {model.round}: {len(nodes)} nodes")
        folded = {attempt_id for attempt_id, _ in made.updates}
        for attempt in record.attempts:
            if attempt.attempt_id in self.truth.acknowledged and attempt.attempt_id not in folded:
                self.broken("nothing-lost", f"{attempt.attempt_id} was acknowledged, not folded")

    # At the end

    def at_end(self) -> None:
        """Everything again from the start, and what can be said only now."""
        self._central()
        check_end(self._world, self)

    def endings(self) -> list[str]:
        """How each job ended."""
        return job_endings(self.shadows)


def _rounds(phase: Phase | None) -> list[RoundRecord]:
    if phase is None:
        return []
    under_way = current_round(phase)
    under_way_too = [under_way] if under_way is not None else []
    return [*phase.course.abandoned, *phase.course.done, *under_way_too]
