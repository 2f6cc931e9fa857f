"""How the agent of a folder stands: told from its files, whether it runs or not."""

import contextlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from node_agent.data.datasets import DataSetSpec
from node_agent.data.headers import WrongHeader, check_header
from node_agent.data.overlaps import overlaps
from node_agent.folder.config import Folder
from node_agent.folder.installation import is_locked, read_folder
from node_agent.joining.identity import Identity
from node_agent.joining.waiting_join import join_waits
from node_agent.ledger.account_filters import filter_of, not_raised
from node_agent.ledger.copies import Kept, kept_ledger
from node_agent.ledger.lost_keys import LostKey
from node_agent.ledger.own_ledger import KeptAccount, kept_fault
from node_agent.ledger.payers import require_kept
from node_agent.ledger.reading import reading
from node_agent.ledger.share_balances import balances_within
from node_agent.policy.allowed_tasks import dead_entries, usable_tasks
from node_agent.policy.policy import AccountPolicy, above_limit
from node_agent.policy.steward import Rules, Steward, in_force, unknown_names
from node_agent.state.notes import (
    CONNECTED_NOTE,
    LEFT_NOTE,
    REFUSED_NOTE,
    RESTORED_NOTE,
    ROLLED_BACK_NOTE,
)
from node_agent.state.state import State
from node_agent.tasks.registry import installed
from privacy.ledger import verify
from privacy.stages import stage_of
from protos.errors import FeddpError, NotFound

_NOT_READ: Final[dict[str, Any]] = dict.fromkeys(
    (
        *("epsilon_booked", "epsilon_spent", "epsilon_remaining", "epsilon_guarantee"),
        *("guarantee", "posted_units", "raises", "raises_unseen"),
    )
)
"""What only the ledger knows of an account, where it is missing or damaged: nothing, and not 0."""


def status(path: Path) -> dict[str, Any]:
    """How the agent of a folder stands, whether it runs or not; JSON-ready.

    Raises:
        NotFound: NOT_JOINED.
        Malformed: CONFIG_INVALID, IDENTITY_INVALID.
    """
    folder = Folder(path.absolute())
    config, identity = read_folder(folder, to_read=True)
    running = is_locked(folder)
    answer: dict[str, Any] = {
        "node": identity.node,
        "node_class": config.node_class,
        "coordinator": config.coordinator,
        "enrollment": config.enrollment,
        "certificate_fingerprint": identity.fingerprint,
        "certificate_expires_at": identity.expires_at.timestamp(),
        "certificate_renews_at": identity.renews_at.timestamp(),
        "keys_lost": identity.lost.message if identity.lost is not None else "",
        "join_waits": join_waits(folder.root),
        "running": running,
        "connected": False,
        "connected_since": None,
        "refused": None,
        "coordinator_restored": None,
        "catching_up": False,
        "rules": {"ok": True, "message": ""},
        "installed_tasks": sorted(f"{i.name}@{i.content_hash}" for i in installed().values()),
        "data_sets": [],
        "shares_failure_class": False,
        "hours": None,
        "overlaps": [],
        "accounts": [],
        "attempts": {},
        "waiting": [],
        "ledger": {
            "verified": True,
            "entries": 0,
            "problems": [],
            "disputes": [],
            "rolled_back": "",
            "missing": "",
            "older": "",
        },
    }
    rules = None
    try:
        rules = Steward(folder).rules()
        answer["data_sets"] = [_data_set(spec, rules) for spec in rules.data_sets]
        answer["shares_failure_class"] = rules.policy.share_failure_class
        answer["overlaps"] = _overlaps(rules)
        answer["hours"] = _hours(rules)
        if slip := unknown_names(rules):
            answer["rules"] = {"ok": False, "message": f"{slip}. The rest is in force"}
    except FeddpError as error:
        message = f"{error.message}. {in_force(folder, running=running)}"
        answer["rules"] = {"ok": False, "message": message}
    kept: list[KeptAccount] = []
    raises: dict[str, tuple[int, int]] = {}
    guarantees: dict[str, float] = {}
    shares: dict[str, list[dict[str, Any]]] = {}
    opened, is_read = contextlib.ExitStack(), False
    try:
        state = opened.enter_context(reading(folder, identity))
    except FeddpError as error:
        if error.reason not in ("LEDGER_MISSING", "LEDGER_INVALID"):
            raise
        told = {"missing": error.message} if isinstance(error, NotFound) else {}
        answer["ledger"] |= {"verified": False, "problems": [] if told else [error.message], **told}
    else:
        try:
            kept = state.ledger.accounts()
            answer["rules"] = _kept(rules, state) or answer["rules"]
            for spec, one in zip(
                rules.data_sets if rules else (), answer["data_sets"], strict=True
            ):
                one["moved"] = state.payers.moved(spec)
                one["message"] = one["moved"] or one["message"]
            raises = _raises(state)
            guarantees = {one.account: state.epsilon_guarantee(one) for one in kept}
            shares = balances_within(state, rules, kept)
            since = state.notes.read(CONNECTED_NOTE)
            refused = state.notes.read(REFUSED_NOTE)
            answer["refused"] = json.loads(refused) if refused else None
            answer["coordinator_restored"] = _restored(state)
            answer["catching_up"] = any(state.notes.read(one) for one in (RESTORED_NOTE, LEFT_NOTE))
            answer["attempts"] = state.attempts.counts()
            answer["waiting"] = [
                {"job_id": one.job_id, "project": one.project, "asked_at": one.asked_at_s}
                for one in state.approvals.waiting(time.time())
            ]
            answer["ledger"] = _verified(state, kept, identity)
            answer["ledger"]["rolled_back"] = state.notes.read(ROLLED_BACK_NOTE)
            is_read = True
            if running and since:
                answer |= {"connected": True, "connected_since": float(since)}
        except sqlite3.DatabaseError:
            answer["ledger"] = {
                "verified": False,
                "entries": 0,
                "problems": [f"{folder.state_db} cannot be read"],
                "disputes": [],
                "rolled_back": "",
            }
        finally:
            opened.close()
        answer["ledger"] |= {"missing": "", "older": state.older}
    unknown = {} if is_read else _NOT_READ
    answer["accounts"] = [
        one | {"shares": shares.get(one["name"], [])} | unknown
        for one in _accounts(identity.node, rules, kept, raises, guarantees)
    ]
    answer["files_in_order"] = answer["rules"]["ok"] and not any(
        one["message"] for one in answer["data_sets"] + answer["accounts"]
    )
    ledger = answer["ledger"]
    sound = ledger["verified"] and not ledger["disputes"] and not ledger["rolled_back"]
    answer["in_order"] = (
        answer["files_in_order"] and sound and answer["refused"] is None and identity.lost is None
    )
    return answer


def files_alone(rules: Rules) -> dict[str, Any]:
    """What `status` says of the steward's files; the ledger is None here."""
    return {
        "rules": {"ok": True, "message": ""},
        "data_sets": [_data_set(one, rules) for one in rules.data_sets],
        "overlaps": _overlaps(rules),
        "accounts": _accounts("", rules, [], {}, {}),
        "ledger": None,
    }


def files_and_kept_ledger(rules: Rules, folder: Folder) -> dict[str, Any]:
    """The same of a folder that is with no coordinator, with its ledger if it has left one."""
    answer = files_alone(rules)
    owner = kept_ledger(folder)
    if owner is None:
        return answer
    with reading(folder, owner) as state:
        kept = state.ledger.accounts()
        guarantees = {one.account: state.epsilon_guarantee(one) for one in kept}
        for spec, one in zip(rules.data_sets, answer["data_sets"], strict=True):
            one["moved"] = state.payers.moved(spec)
            one["message"] = one["moved"] or one["message"]
        return answer | {
            "rules": _kept(rules, state) or answer["rules"],
            "accounts": _accounts(owner.node, rules, kept, _raises(state), guarantees),
            "ledger": _verified(state, kept, owner)
            | {
                "missing": "",
                "older": state.older,
                "rolled_back": state.notes.read(ROLLED_BACK_NOTE),
            },
        }


def _hours(rules: Rules) -> dict[str, Any] | None:
    """When work begins, by this machine's time; None for at any."""
    work, now = rules.policy.work, datetime.now().astimezone()
    if not work.hours:
        return None
    return {
        "work": list(work.hours),
        "open": work.is_open(now.replace(tzinfo=None)),
        "time_here": now.strftime("%H:%M"),
        "time_zone": now.tzname() or "",
    }


def _overlaps(rules: Rules) -> list[dict[str, Any]]:
    return [
        {"data_sets": list(one.data_sets), "warning": one.is_warning, "message": one.said()}
        for one in overlaps(rules.data_sets)
    ]


def _kept(rules: Rules | None, state: State) -> dict[str, Any] | None:
    """What is wrong with a policy that leaves an account out."""
    try:
        if rules is not None:
            require_kept(rules.policy, state.accounts_kept())
    except FeddpError as error:
        return {"ok": False, "message": error.message}
    return None


def _data_set(spec: DataSetSpec, rules: Rules) -> dict[str, Any]:
    message = ""
    try:
        check_header(spec)
    except WrongHeader as error:
        message = str(error)
    return {
        "name": spec.name,
        "account": spec.account,
        "declared_n": spec.declared_n,
        "version": spec.version,
        "tasks": usable_tasks(rules, installed())[spec.name],
        "not_installed": [
            str(one) for one in dead_entries(rules, installed()) if one.data_set == spec.name
        ],
        "withdrawn": spec.name in rules.policy.withdrawn,
        "moved": "",
        "message": message,
    }


def _verified(state: State, kept: list[KeptAccount], identity: Identity | Kept) -> dict[str, Any]:
    entries = state.ledger.entries()
    disputes = [{**asdict(one), "do": one.advice(state.folder)} for one in state.disputes.all()]
    if isinstance(identity.ledger_key, LostKey):
        problem = "without the ledger's key its signatures cannot be checked"
        return {
            "verified": False,
            "entries": len(entries),
            "problems": [problem],
            "heads": {},
            "disputes": disputes,
        }
    filters = {one.account: one.filter(one.epsilon_limit_highest) for one in kept}
    found = verify(entries, filters, {identity.node: identity.ledger_public_key})
    problems = [f"{one.account} entry {one.seq}: {one.text}" for one in found.problems]
    for one in kept:
        text = kept_fault(one, found.balances.get(one.account)) if found.ok else ""
        if text:
            problems.append(f"{one.account}: {text}")
    heads = {name: {"seq": seq, "hash": digest} for name, (seq, digest) in found.heads.items()}
    return {
        "verified": not problems,
        "entries": len(entries),
        "problems": problems,
        "heads": heads,
        "disputes": disputes,
    }


def _restored(state: State) -> dict[str, Any] | None:
    """The latest restoration of the coordinator, and what of it is still to be done here."""
    latest = state.epochs.latest()
    if latest is None:
        return None
    return {
        "epoch": latest.number,
        "restored_at": latest.restored_at_s,
        "backup_made_at": latest.backup_made_at_s,
        "to_hand_in": sorted(state.epochs.to_hand_in()),
    }


def _raises(state: State) -> dict[str, tuple[int, int]]:
    """account -> how many raises it has, and how many of them the coordinator's chain lacks."""
    unseen = Counter(change.account for change, _ in state.ledger.unseen_raises())
    return {name: (count, unseen[name]) for name, count in state.ledger.raise_counts().items()}


def _accounts(
    node: str,
    rules: Rules | None,
    kept: list[KeptAccount],
    raises: Mapping[str, tuple[int, int]],
    guarantees: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Accounts of the policy and of the ledger; figures at the limit that is in force."""
    by_name = {one.account.removeprefix(f"{node}/"): one for one in kept}
    policies = {one.name: one for one in rules.policy.accounts} if rules else {}
    return [
        _account(
            name, policies.get(name), by_name.get(name), rules, guarantees.get(f"{node}/{name}")
        )
        | dict(zip(("raises", "raises_unseen"), raises.get(f"{node}/{name}", (0, 0)), strict=True))
        for name in sorted({*by_name, *policies})
    ]


def _account(
    name: str,
    policy: AccountPolicy | None,
    kept: KeptAccount | None,
    rules: Rules | None,
    highest: float | None,
) -> dict[str, Any]:
    """One account.

    Args:
        highest: the highest limit that was ever in force; None for an account without entries.
    """
    answer: dict[str, Any] = {"name": name, "message": "", "not_raised": ""}
    if policy is not None and kept is not None:
        answer["not_raised"] = not_raised(policy, kept.fixed)
    try:
        if policy is not None and rules is not None:
            filter_ = filter_of(policy, rules.data_sets, kept.fixed if kept else None)
        elif kept is not None:
            filter_ = kept.filter(kept.epsilon_limit)
        else:
            return answer
    except FeddpError as error:
        answer["message"] = error.message
        if kept is None:
            return answer
        filter_ = kept.filter(kept.epsilon_limit)
    posted = kept.posted_units if kept else 0
    guarantee = kept.guarantee if kept else True
    spent = filter_.epsilon_of(posted)
    limit, units = filter_.epsilon_limit, filter_.limit_units
    return answer | {
        "shares_above": above_limit(policy, limit) if policy is not None else "",
        "filter": filter_.kind,
        "rdp_order": filter_.order,
        "delta": filter_.delta,
        "epsilon_limit": filter_.epsilon_limit,
        "epsilon_start": filter_.epsilon_start,
        "epsilon_booked": spent if guarantee else None,
        "epsilon_spent": spent if guarantee else None,  # the same, as 0.1.0 called it
        "epsilon_remaining": max(0.0, filter_.epsilon_limit - spent) if guarantee else None,
        "epsilon_guarantee": max(limit, highest or limit) if guarantee else None,
        "guarantee": guarantee,
        "stage": stage_of(posted, posted, units, spent if guarantee else None, limit),
        "posted_units": posted,
        "limit_units": filter_.limit_units,
    }
