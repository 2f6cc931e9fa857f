"""Bugs of raised and lowered limits that a correct simulation must catch; see `planted.py`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from coordinator.rpc import greeting
from node_agent.ledger import account_filters, raising
from node_agent.ledger.own_ledger import OwnLedger
from node_agent.policy import admission, judgement
from node_agent.session import greeting as said
from privacy import limits
from privacy.filters import make_filter
from privacy.ledger import LimitChange
from tests.simulation.node_side import Node
from tests.simulation.planted_nodes import at_each
from tests.simulation.stores import MemoryStore
from tests.simulation.world import World

# The coordinator


def enforced_before_its_entry(world: World) -> None:
    """A raise that a node brings counts at once, and is written down with the next transaction."""

    def bad(
        store: MemoryStore, node: str, key: bytes, change: LimitChange, signature: bytes
    ) -> bool:
        known = store._accounts[change.account]
        if change.raised().limit_units <= known.filter.limit_units:
            return record(store, node, key, change, signature)
        raised = replace(known, balance=replace(known.balance, filter=change.raised()))
        store._put(store._accounts, change.account, raised)
        return False

    record = world.swap(greeting.limits, "record", bad)


def appended_as_often_as_sent(world: World) -> None:
    """Nobody looks whether a raise is in the chain already."""

    def bad(
        store: MemoryStore, node: str, key: bytes, change: LimitChange, signature: bytes
    ) -> bool:
        known = store._accounts.get(change.account)
        if known is not None and known.filter.epsilon_limit == change.terms.epsilon_limit_new:
            store.append_raise(change, signature)
            return True
        return record(store, node, key, change, signature)

    record = world.swap(greeting.limits, "record", bad)


def announced_is_enforced(world: World) -> None:
    """A higher limit that a Hello announces is believed without an entry."""

    def bad(store: MemoryStore, *terms: Any) -> Any:
        account = open_account(store, *terms)
        announced = make_filter(*terms[2:6])
        if announced.limit_units > account.filter.limit_units:
            account = replace(account, balance=replace(account.balance, filter=announced))
            store._put(store._accounts, account.account, account)
        return account

    open_account = world.swap(greeting.ledger, "open_account", bad)
    _by_the_policy(world, said)


def lowering_is_not_kept(world: World) -> None:
    """The coordinator hears a lower limit and goes on with the one before."""

    def bad(store: MemoryStore, account: str, *terms: Any) -> Any:
        known = store._accounts.get(account)
        if known is not None and known.entries:
            return known
        return open_account(store, account, *terms)

    open_account = world.swap(greeting.ledger, "open_account", bad)


def raise_undoes_a_lowering(world: World) -> None:
    """What a Hello announces is taken before the raises that it carries."""

    def bad(connection: Any, node: str, hello: Any, accounts: Any) -> None:
        hear(connection, node, hello, accounts)
        for message in hello.limits if not isinstance(accounts, list) else ():
            raise_limit(connection, node, message)

    hear = world.swap(greeting, "_hear", bad)
    raise_limit = world.swap(greeting, "_raise_limit", lambda *_: False)


# The node


def restart_forgets_the_raise(node: Node) -> None:
    """Each start takes the limits from the accounts' first entries."""
    start = node.start

    def bad() -> None:
        database = node.disk_.state._connection
        database.execute("UPDATE accounts SET epsilon_limit = epsilon_limit_highest")
        start()

    node.start = bad  # type: ignore[method-assign]


def restart_forgets_to_tell(node: Node) -> None:
    """What was recorded before a restart is taken for told."""

    def none_unseen() -> list[Any]:
        return [] if node.life > 1 else unseen()

    ledger = node.disk_.state.ledger
    unseen = ledger.unseen_raises
    ledger.unseen_raises = none_unseen  # type: ignore[method-assign]


def counts_by_the_policy(world: World) -> None:
    """The number in the policy is enough for the node."""

    made = account_filters.filter_of
    for module in (admission, judgement):
        world.swap(
            module, "filter_of", lambda account, data_sets, *_: made(account, data_sets, None)
        )


def lowering_is_forgotten(world: World) -> None:
    """A policy that goes up again takes the limit with it."""
    world.swap(OwnLedger, "lower", lambda *_: None)


def one_person_is_enough(world: World) -> None:
    """Whoever asks may agree."""
    for module in (raising, limits):
        world.swap(module, "same_person", lambda *_: False)


def _by_the_policy(world: World, *modules: Any) -> None:
    def bad(account: Any, data_sets: Any, *_: Any) -> Any:
        return made(account, data_sets, None)

    made = account_filters.filter_of
    for module in modules:
        world.swap(module, "filter_of", bad)


Plant = Callable[[World], None]

RARE = {"raise_undoes_a_lowering", "counts_by_the_policy"}
"""Need a limit that is lowered between its raise and the next session; an order in the seconds
between the number in the policy and the stewards' raise. The others are called within 50 seeds."""

PLANTED_LIMITS: dict[str, tuple[Plant, tuple[str, ...]]] = {
    "enforced_before_its_entry": (enforced_before_its_entry, ("limit-entry-first",)),
    "appended_as_often_as_sent": (appended_as_often_as_sent, ("raised-once",)),
    "announced_is_enforced": (announced_is_enforced, ("limit-entry-first",)),
    "lowering_is_not_kept": (lowering_is_not_kept, ("limit",)),
    "raise_undoes_a_lowering": (raise_undoes_a_lowering, ("limit",)),
    "restart_forgets_the_raise": (at_each(restart_forgets_the_raise), ("reload-equals-memory",)),
    "restart_forgets_to_tell": (at_each(restart_forgets_to_tell), ("raise-lost",)),
    "counts_by_the_policy": (counts_by_the_policy, ("limit-recorded-first",)),
    "lowering_is_forgotten": (lowering_is_forgotten, ("reload-equals-memory", "limit")),
    "one_person_is_enough": (one_person_is_enough, ("two-people",)),
}
