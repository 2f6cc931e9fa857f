"""What is spent of the limits within an account, by the node's own ledger, for people."""

import contextlib
from typing import Any

from node_agent.ledger.account_filters import filter_of
from node_agent.ledger.own_ledger import KeptAccount
from node_agent.policy.steward import Rules
from node_agent.state.state import State
from privacy.filters import make_filter
from privacy.stages import stage_of_share
from protos.errors import FeddpError


def balances_within(
    state: State, rules: Rules | None, kept: list[KeptAccount]
) -> dict[str, list[dict[str, Any]]]:
    """What the node's own ledger counts against each limit within an account; JSON-ready.

    A limit that its account's filter cannot count by is left out: orders are refused for it, and
    say why.

    Args:
        rules: None when the steward's files cannot be read: then no limit is known.
        kept: accounts that have entries.

    Returns:
        account, named without the node -> its limits, in the policy's order.
    """
    fixed = {one.account.removeprefix(f"{state.node}/"): one.fixed for one in kept}
    found: dict[str, list[dict[str, Any]]] = {}
    if rules is None:
        return found
    for policy in rules.policy.accounts:
        for kind, name, limit in policy.shares():
            used = state.share_units(policy.name, kind, name)
            with contextlib.suppress(FeddpError):
                whole = filter_of(policy, rules.data_sets, fixed.get(policy.name))
                at_limit = make_filter(whole.kind, whole.order, limit, whole.delta)
                found.setdefault(policy.name, []).append(
                    {
                        "kind": kind,
                        "name": name,
                        "epsilon_limit": limit,
                        "epsilon_used": at_limit.epsilon_of(used),
                        "used_units": used,
                        "limit_units": at_limit.limit_units,
                        "stage": stage_of_share(at_limit, used),
                    }
                )
    return found
