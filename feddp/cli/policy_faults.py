"""What `feddp agent policy check` makes of an agent's status: for what orders are refused, and what
else a steward should know. It finds nothing itself, so that both commands say the same."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feddp.cli import output
from feddp.cli.budget import STAGES

if TYPE_CHECKING:
    from node_agent.policy.asking import AskingPolicy
    from node_agent.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Verdict:
    """Sentences without their full stop.

    Attributes:
        refused: for what the agent refuses orders, by the steward's files or by its own ledger.
        warnings: what holds for less than it says, or of one data set's own files.
        notes: for information.
    """

    refused: Sequence[str]
    warnings: Sequence[str]
    notes: Sequence[str]


def verdict_of(
    found: Mapping[str, Any],
    unread: str = "",
    as_another: str = "",
    *,
    asked: Sequence[str] = (),
) -> Verdict:
    """Of an agent's status, as `node_agent` gives it; its ledger is None where it has none yet.

    Args:
        unread: why the ledger could not be read, where there may be one.
        as_another: what follows from a data set's fault, seen by another user than the agent's.
        asked: warnings about who may ask for work: `asking_said`, `projects_said`; empty ones count
            for nothing.
    """
    from node_agent.policy.allowed_tasks import DO

    accounts, data_sets, ledger = found["accounts"], found["data_sets"], found["ledger"]
    refused: list[str] = []
    warnings: list[str] = [one for one in asked if one]
    notes: list[str] = []
    if not found["rules"]["ok"]:
        refused.append(found["rules"]["message"])
    for one in data_sets:
        if one["moved"]:
            refused.append(f"data set {one['name']}: {one['moved']}")
        elif one["message"]:
            follows = as_another or "attempts on it are refused, and cost nothing"
            warnings.append(f"data set {one['name']}: {one['message']}; {follows}")
        warnings += [f"{text}; {DO}" for text in one["not_installed"]]
    for one in accounts:
        if one["message"]:
            refused.append(f"account {one['name']}: {one['message']}")
        if stage := one.get("stage"):
            told = refused if stage == "over_limit" else warnings
            told.append(f"account {one['name']}: {STAGES[stage]}")
        warnings += [text for text in (one["not_raised"], one.get("shares_above")) if text]
    for one in found["overlaps"]:
        (warnings if one["warning"] else notes).append(one["message"])
    if ledger is None:
        notes.append(
            f"the ledger was not read, so that only the files were looked at: {unread}"
            if unread
            else "there is no ledger yet, as this folder has not joined: what was spent is unknown"
        )
    else:
        refused += _of_the_ledger(ledger)
        notes += [text for text in [ledger["older"]] if text]
    lost = ledger is None or ledger["missing"] or ledger["problems"]
    if ledger is not None and not lost and not ledger["entries"]:
        notes.append("this node's ledger has no entry yet, so that nothing binds the accounts")
    return Verdict(*(_plain(one) for one in (refused, warnings, notes)))


def _plain(said: Sequence[str]) -> list[str]:
    return [one.removesuffix(".") for one in said]


def _of_the_ledger(ledger: Mapping[str, Any]) -> list[str]:
    return [
        *(text for text in (ledger["missing"], ledger["rolled_back"]) if text),
        *ledger["problems"],
        *(
            f"{one['account']}, coordinator's entry {one['seq']}: {one['text']}. To do: {one['do']}"
            for one in ledger["disputes"]
        ),
    ]


def asking_said(policy: "AskingPolicy") -> str:
    """That no order will be taken, whoever asks, and what to do; empty where somebody may ask."""
    if policy.unsigned == "allow" or policy.engineers:
        return ""
    return (
        "no order will be taken (ORDER_UNSIGNED), as who_may_ask pins no engineer's key: pin one "
        "(the engineer makes it with `feddp job key new`, and gives you its public half by another "
        "way than the coordinator), or write `unsigned: allow` there to take what the coordinator "
        "sends"
    )


def projects_said(policy: "Policy") -> list[str]:
    """Limits of projects that no pinned engineer has, so that nobody can order under them."""
    if policy.who_may_ask.unsigned == "allow":
        return []
    known = sorted({name for one in policy.who_may_ask.engineers for name in one.projects})
    found = []
    for account in policy.accounts:
        for name in sorted({*account.epsilon_per_project} - {*known}):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f": did you mean {near[0]}?" if near else ""
            found.append(
                f"account {account.name}: epsilon_per_project names project {name}, of which "
                f"who_may_ask pins no engineer, and so limits nothing{hint}"
            )
    return found


def starts_said(account: Mapping[str, Any]) -> str:
    """What an account's first release takes whatever it is; empty where that is nothing."""
    start = account.get("epsilon_start", 0.0)
    if not start:
        return ""
    return (
        f"account {account['name']} counts by rdp of order {account['rdp_order']}: at delta "
        f"{account['delta']:g} it starts at epsilon {output.epsilon(start)}, its conversion cost, "
        f"of its limit {output.epsilon(account['epsilon_limit'])}"
    )
