"""What the coordinator was last told that this node offers, and whether that still holds."""

from collections.abc import Callable, Mapping

import structlog

from node_agent.ledger.payers import require_kept
from node_agent.policy.admission import Admission, Suspensions
from node_agent.policy.steward import Steward
from node_agent.session.greeting import hello, warn_of_limits
from node_agent.state.notes import LEFT_NOTE, MOVED_NOTE
from node_agent.state.state import State
from node_agent.tasks.registry import TaskInfo
from privacy.wire import epoch_to_wire
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb

log = structlog.get_logger(__name__)

Circumstances = tuple[dict[str, int], Suspensions]
"""How often each account's limit was raised, and what is suspended."""


class Publication:
    """What was said last; nothing at first.

    Args:
        tasks: the installed tasks.
        unavailable: data set -> why it cannot be used now, as the coordinator may know it.
    """

    def __init__(
        self,
        state: State,
        steward: Steward,
        admission: Admission,
        tasks: Callable[[], Mapping[str, TaskInfo]],
        unavailable: Callable[[], Mapping[str, str]],
    ) -> None:
        self._state = state
        self._steward = steward
        self._admission = admission
        self._tasks = tasks
        self._unavailable_now = unavailable
        self._published: tuple[object, ...] = ()
        self._raised: dict[str, int] = {}
        self._barred: frozenset[str] = frozenset()
        self._suspended = Suspensions()
        self._unavailable: Mapping[str, str] = {}
        self._said: pb.Hello | None = None

    # In the ledger's thread

    def hello(self, open_attempts: tuple[str, ...]) -> pb.Hello:
        """What is said now; from here on it counts as published."""
        steward, state = self._steward, self._state
        self._published = steward.stamp()
        raised, suspended = self._raised, self._suspended = self.circumstances()
        self._barred = self.barred_now()
        fault, rules = "", None
        try:
            rules = steward.rules()
            require_kept(rules.policy, state.accounts_kept())
        except FeddpError as error:
            log.error("rules_unreadable", reason=error.reason, detail=error.message)
            fault = error.reason
        unseen, used = state.ledger.unseen_raises(), state.share_units
        tasks = self._tasks()
        node = self._admission.node

        def refuses(name: str) -> str:
            return suspended.reason(f"{node}/{name}")

        unavailable = self._unavailable = dict(self._unavailable_now())
        came = state.notes.read(MOVED_NOTE) or state.notes.read(LEFT_NOTE)
        said = hello(
            rules,
            tasks,
            state.fixed_filter,
            open_attempts,
            used,
            unseen,
            refuses,
            state.payers.moved,
            unavailable,
            state.account_units if came else None,
            fault,
            self._said,
            {name.removeprefix(f"{node}/"): count for name, count in raised.items()},
        )
        latest = state.epochs.latest()
        if latest is not None and not state.notes.read(LEFT_NOTE):
            said.epoch_seen.CopyFrom(epoch_to_wire(latest))
        self._said = said
        for account in said.accounts:  # the coordinator keeps a lower limit for good, and so do we
            state.lower(account.name, account.epsilon_limit, raised)
        warn_of_limits(state.ledger.accounts(), state.epsilon_guarantee)
        return said

    def circumstances(self) -> Circumstances:
        """As it is now."""
        return self._state.ledger.raise_counts(), self._admission.suspensions()

    def barred_now(self) -> frozenset[str]:
        """Data sets that are not published for what was paid before; with the fault that keeps all
        of them back."""
        state = self._state
        try:
            rules = self._steward.rules()
            require_kept(rules.policy, state.accounts_kept())
        except FeddpError as error:
            return frozenset({error.reason})
        return frozenset(one.name for one in rules.data_sets if state.payers.moved(one))

    # Anywhere

    def is_outdated(
        self, stamp: tuple[object, ...], now: Circumstances, barred: frozenset[str] | None
    ) -> bool:
        """Whether something else would be said now; what it is, is logged.

        Args:
            stamp: of the steward's files.
            barred: what `barred_now` says; None where nothing can have changed in it.
        """
        raised, suspended = now
        if raised != self._raised:
            log.info("limit_raised")
        elif suspended != self._suspended:
            log.info("suspensions_changed")
        elif barred not in (None, self._barred):
            log.info("payers_changed")
        elif stamp != self._published:
            log.info("policy_changed")
        elif self._unavailable_now() != self._unavailable:
            log.info("data_sets_changed")
        else:
            return False
        return True
