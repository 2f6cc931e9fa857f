"""What a data steward should read once a week: what was released, its cost, what was refused."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node_agent.alerts.conditions import conditions
from node_agent.alerts.settings import AlertsConfig, sentence
from node_agent.data.header_watch import faults_of
from node_agent.data.overlaps import Overlap
from node_agent.data.overlaps import overlaps as overlaps_of
from node_agent.failures import kept as kept_failures
from node_agent.folder.config import Folder, load_config
from node_agent.folder.installation import read_folder
from node_agent.joining.identity import Identity
from node_agent.ledger import booked
from node_agent.ledger.reading import reading
from node_agent.outbox import standing_of
from node_agent.policy.steward import Steward
from node_agent.state.state import State
from privacy.ledger import Statement
from protos.errors import FeddpError


def digest(path: Path, days: float) -> dict[str, Any]:
    """The last so many days of a folder's agent, JSON-ready.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
    """
    folder = Folder(path.absolute())
    _, identity = read_folder(folder, to_read=True)
    config = load_config(folder).alerts
    with reading(folder, identity) as state:
        since_s, steward = time.time() - days * 86_400.0, Steward(folder)
        faults, shared = _looked_at(steward)
        return digest_of(folder, identity, state, steward, config, since_s, faults, shared)


def _looked_at(steward: Steward) -> tuple[dict[str, str], list[Overlap]]:
    """(faults, overlaps) as the running agent finds them; of one account patients are in no two."""
    try:
        rules = steward.rules()
    except FeddpError:  # the digest says so
        return {}, []
    faults = {name: fault.text for name, fault in faults_of(rules.data_sets).items()}
    if len(rules.policy.accounts) < 2:
        return faults, []
    found = overlaps_of(rules.data_sets)
    return faults, [one for one in found if one.is_warning and one.kind != "unknown"]


def digest_text(
    folder: Folder,
    identity: Identity,
    state: State,
    steward: Steward,
    config: AlertsConfig,
    since_s: float,
    faults: Mapping[str, str],
    overlaps: Sequence[Overlap],
) -> str:
    """The same for people."""
    return said(digest_of(folder, identity, state, steward, config, since_s, faults, overlaps))


def digest_of(
    folder: Folder,
    identity: Identity,
    state: State,
    steward: Steward,
    config: AlertsConfig,
    since_s: float,
    faults: Mapping[str, str],
    overlaps: Sequence[Overlap],
) -> dict[str, Any]:
    """What happened since a moment, and how things stand; `releases` are per job and data set.

    Args:
        faults: data set -> why it cannot be used.
        overlaps: data sets of two accounts that share patients.
    """
    rows = state.attempts.all()
    opened = [row for row in rows if row.opened_at_s >= since_s and row.opened_at_s > 0]
    releases: Counter[tuple[str, str, str]] = Counter()
    updates: Counter[tuple[str, str, str]] = Counter()
    unconfirmed: Counter[tuple[str, str, str]] = Counter()
    for row in opened:
        if row.outcome == "post":
            key = (row.order.job_id, row.order.project, row.order.data_set)
            releases[key] += 1
            standing = standing_of(row)
            updates[key] += standing == "left"
            unconfirmed[key] += standing in ("unconfirmed", "removed")
    known = {row.order.attempt_id for row in rows}
    restored = {
        entry.statement.attempt_id
        for entry in state.ledger.entries()
        if isinstance(entry.statement, Statement) and entry.statement.kind == "post"
    } - known
    failures = kept_failures(folder.logs, since_s=since_s)
    refused = Counter(one.reason for one in failures if not one.opened)
    failed = Counter(one.reason for one in failures if one.opened)
    return {
        "node": identity.node,
        "since_s": since_s,
        "releases": [
            {
                "job_id": job_id,
                "project": project,
                "data_set": data_set,
                "booked": count,
                "updates": updates[job_id, project, data_set],
                "updates_unconfirmed": unconfirmed[job_id, project, data_set],
            }
            for (job_id, project, data_set), count in sorted(releases.items())
        ],
        "restored": len(restored),
        "refused": dict(sorted(refused.items())),
        "failed_after_opening": dict(sorted(failed.items())),
        "accounts": [asdict(booked.booked(state, one)) for one in state.ledger.accounts()],
        "certificate_expires_at": identity.expires_at.timestamp(),
        "alerts": [
            asdict(one)
            for one in conditions(folder, identity, state, steward, config, None, faults, overlaps)
        ],
    }


def said(found: dict[str, Any]) -> str:
    """A digest in sentences."""
    lines = [f"Node {found['node']}, since {_moment(found['since_s'])}."]
    for one in found["releases"]:
        lines.append(
            f"Job {one['job_id']} (project {one['project']}) on data set {one['data_set']}: "
            f"{_counted(one['booked'], 'release')} booked, {_counted(one['updates'], 'update')} "
            f"acknowledged by the coordinator{_not_acknowledged(one['updates_unconfirmed'])}."
        )
    if not found["releases"]:
        nothing = "Nothing was released that this folder knows the time of."
        lines.append(nothing if found["restored"] else "Nothing was released.")
    if found["restored"]:
        lines.append(
            f"{_counted(found['restored'], 'release')} booked before a copy of the ledger was "
            "imported, some perhaps in this time: the ledger holds no times."
        )
    for reason, count in found["refused"].items():
        lines.append(f"Refused before data was opened, {reason}: {count}.")
    for reason, count in found["failed_after_opening"].items():
        lines.append(f"Failed after data was opened, {reason}: {count} (`feddp agent logs JOB`).")
    lines += [f"Account {one['account']}: {booked.said(one)}." for one in found["accounts"]]
    lines.append(f"Certificate until {_moment(found['certificate_expires_at'])}.")
    for one in found["alerts"]:
        subject = f" {one['subject']}" if one["subject"] else ""
        text, remedy = sentence(one["text"]), sentence(one["remedy"])
        lines.append(f"{one['event']}{subject}: {text} What to do: {remedy}")
    return "\n".join(lines)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _not_acknowledged(count: int) -> str:
    return f", {count} booked and not (`feddp agent outbox`)" if count else ""


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
