"""The limits that a node sets within an account, for all jobs of a purpose or of a project."""

from collections.abc import Mapping
from typing import Any, Final

from feddp.cli import output

HEADERS: Final = ("ACCOUNT", "FOR ALL JOBS OF", "LIMIT", "LEFT", "STATE")

STAGES: Final = {
    "": "",
    "nearly_spent": "80 % spent or more",
    "spent": "spent",
    "over_limit": "LIMIT BELOW WHAT IS SPENT: nothing more is admitted",
}


def rows(account: Mapping[str, Any]) -> list[list[str]]:
    """A row for each; a coordinator of 0.1.0 tells none.

    Args:
        account: BudgetAccount as JSON has it.
    """
    return [
        [
            str(account["account"]),
            f"{one['kind']} {one['name']}",
            output.epsilon(one["epsilon_limit"]),
            left(one["limit_units"] - one["used_units"], one["limit_units"]),
            STAGES[_stage(account, one)],
        ]
        for one in account.get("shares", [])
    ]


def said(shares: list[dict[str, Any]]) -> str:
    """What `feddp agent status` says of them; empty for none."""
    parts = []
    for one in shares:
        stage = STAGES[one["stage"]]
        used = output.epsilon(one["epsilon_used"])
        text = f"{one['kind']} {one['name']}: booked epsilon {used} of "
        parts.append(f"{text}{output.epsilon(one['epsilon_limit'])}{f', {stage}' if stage else ''}")
    return "; ".join(parts)


def left(left_units: int, limit_units: int) -> str:
    """Rounded down: nobody may believe that more is left than there is."""
    return f"{max(0, left_units) * 100 // limit_units if limit_units else 0} %"


def _stage(account: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    if not one["limit_units"]:  # the account's filter cannot count by it
        return ""
    from privacy.filters import make_filter
    from privacy.stages import stage_of_share

    terms = (account["filter"], account["rdp_order"], one["epsilon_limit"], account["delta"])
    return stage_of_share(make_filter(*terms), one["used_units"])
