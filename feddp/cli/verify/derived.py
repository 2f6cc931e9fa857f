"""Figures that an account says of itself: each is made anew from its entries and its terms."""

import math
from collections.abc import Mapping
from typing import Any, Final

from feddp.cli.output import quoted
from feddp.cli.verify.history import Spelling
from privacy.balance import Balance
from privacy.figures import Figures, figures_of
from privacy.filters import Filter, make_filter
from privacy.releases import Release
from protos.errors import FeddpError

FIGURE_TOLERANCE: Final = 1e-4
"""Relative. Epsilons are rounded up to five digits, so that two versions of the libraries behind
them differ by one in the last digit, and their quotients by as much."""

SHOWN_ONLY: Final = frozenset({"shares", "data_sets"})
"""What an account shows and no entry proves: the node's limits within it, and what it publishes.
It is left out of exports, and passed over in older ones."""

GUARANTEE_FIELD: Final = "epsilon_guarantee"
"""What a coordinator says of an account's guarantee. No export has it and no check takes it: it is
made anew from the entries wherever they are read."""

_UNITS: Final = ("pending_units", "limit_units")
_EPSILONS: Final = (
    "epsilon_spent",
    "epsilon_booked",
    "epsilon_naive",
    "efficiency",
    "booked_to_naive",
    "epsilon_start",
)


def exported(account: Mapping[str, Any]) -> dict[str, Any]:
    """An account as an export has it: terms, and figures that can be made anew."""
    return {name: value for name, value in account.items() if name not in SHOWN_ONLY}


def figure_fault(
    account: Mapping[str, Any], balance: Balance | None, posted: Mapping[Spelling, int]
) -> str:
    """The first figure that is not what the entries come to; empty if there is none.

    A figure that is absent is not looked for: 0.1.0 wrote fewer.

    Args:
        account: BudgetAccount as JSON has it; limit, filter and delta were looked at before.
        balance: what its entries add up to; None if it has none.
        posted: how often it has posted each release.
    """
    try:
        filter_ = make_filter(
            account["filter"], account["rdp_order"], account["epsilon_limit"], account["delta"]
        )
        right = _right(account, filter_, balance, posted)
    except FeddpError as error:
        return f"no figure follows from what the account says: {error.message}"
    for name in (*_UNITS, *_EPSILONS):
        if name not in account or _same(name, account[name], right[name]):
            continue
        return (
            f"the account says another {name}, {_figure(account[name])}, than its entries make by "
            f"its filter ({filter_said(filter_)}): {_figure(right[name])}"
        )
    return ""


def filter_said(filter_: Filter) -> str:
    """How an account counts, in words."""
    order = f" of order {filter_.order}" if filter_.order else ""
    limit = f"limit {filter_.epsilon_limit:g} at delta {filter_.delta:g}"
    return f"{filter_.kind}{order}, {limit}"


def _figure(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:.9g}" if type(value) in (int, float) else quoted(value)


def _same(name: str, said: object, right: float | None) -> bool:
    if name in _UNITS:
        return type(said) is int and said == right
    if said is None or right is None:
        return said is right
    if type(said) not in (int, float):
        return False
    return math.isclose(said, right, rel_tol=FIGURE_TOLERANCE)  # type: ignore[arg-type]


def _right(
    account: Mapping[str, Any],
    filter_: Filter,
    balance: Balance | None,
    posted: Mapping[Spelling, int],
) -> dict[str, float | None]:
    figures: Figures | None = None
    if any(name in account for name in _EPSILONS[:-1]):
        counts = {Release(*one): count for one, count in posted.items()}
        figures = figures_of(counts, filter_)
    return {
        "pending_units": balance.pending_units if balance else 0,
        "limit_units": filter_.limit_units,
        "epsilon_spent": figures.running if figures else None,
        "epsilon_booked": figures.booked if figures else None,
        "epsilon_naive": figures.naive if figures else None,
        "efficiency": figures.efficiency if figures else None,
        "booked_to_naive": figures.booked_to_naive if figures else None,
        "epsilon_start": filter_.epsilon_start,
    }
