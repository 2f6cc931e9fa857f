"""What an account has booked by the node's own ledger, beside its limit, delta and guarantee."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from node_agent.ledger.own_ledger import KeptAccount
from node_agent.state.state import State
from privacy.accounting import round_up


@dataclass(frozen=True, slots=True)
class Booked:
    """One account; JSON-ready with `asdict`.

    Attributes:
        account: "NODE/NAME".
        epsilon_booked: the filter's figure of everything posted, which counts against the limit;
            None without a guarantee. What the coordinator calls the running epsilon is another
            figure of the same releases, and never above it but for its rounding.
        epsilon_spent: the same as `epsilon_booked`, under its name in 0.1.0.
        epsilon_limit: in force now, at `delta`.
        epsilon_guarantee: the highest limit that was ever in force; None without a guarantee.
    """

    account: str
    epsilon_booked: float | None
    epsilon_spent: float | None
    epsilon_limit: float
    delta: float
    epsilon_guarantee: float | None


def booked(state: State, kept: KeptAccount) -> Booked:
    """An account that has entries."""
    spent = kept.filter(kept.epsilon_limit).epsilon_of(kept.posted_units)
    guarantee = state.epsilon_guarantee(kept)
    return Booked(
        account=kept.account,
        epsilon_booked=spent if kept.guarantee else None,
        epsilon_spent=spent if kept.guarantee else None,
        epsilon_limit=kept.epsilon_limit,
        delta=kept.fixed.delta,
        epsilon_guarantee=guarantee if kept.guarantee else None,
    )


def said(one: Mapping[str, Any]) -> str:
    """A `Booked` in words, without its name; no figure is shown smaller than it is."""
    if one["epsilon_booked"] is None:
        return "NO GUARANTEE: something was released without accounting"
    figures = (round_up(one[name]) for name in ("epsilon_booked", "epsilon_guarantee"))
    spent, guarantee = (f"{figure:g}" for figure in figures)
    limit = f"{one['epsilon_limit']:g} at delta {one['delta']:g}"
    highest = f"the guarantee is {guarantee}, its highest limit ever"
    return f"booked epsilon {spent} of limit {limit}; {highest}"
