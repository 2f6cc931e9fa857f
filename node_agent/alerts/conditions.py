"""What is wrong with an agent now, in sentences: for alerts and for the digest."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from node_agent.alerts.settings import Alert, AlertsConfig
from node_agent.data.overlaps import Overlap
from node_agent.doctor.report import span
from node_agent.folder.config import Folder
from node_agent.joining.identity import Identity
from node_agent.ledger.booked import booked, said
from node_agent.policy.steward import Steward
from node_agent.state.notes import (
    CONNECTED_NOTE,
    REFUSED_NOTE,
    ROLLED_BACK_NOTE,
    ROWS_LEFT_OUT_NOTE,
)
from node_agent.state.state import State
from protos.errors import FeddpError

LOST_NOTE: Final = "lost_since_s"
"""Since when there is no session; kept while there is none."""

REFUSED_AFTER_S: Final = 30.0
"""A restarted agent waits half as long for the session of its earlier life to end."""

REFUSED_CHARS_MAX: Final = 500
"""What the coordinator says goes into a mail."""

PROJECTS_TOLD_MAX: Final = 20
"""Projects that are told one by one; whoever invents more of them sends no mail for each."""


def conditions(
    folder: Folder,
    identity: Identity,
    state: State,
    steward: Steward,
    config: AlertsConfig,
    now_s: float | None = None,
    faults: Mapping[str, str] | None = None,
    overlaps: Sequence[Overlap] = (),
) -> list[Alert]:
    """Everything that somebody should know, the agent as a whole first. Runs in the thread that
    `state` belongs to.

    Args:
        faults: data set -> why it cannot be used, as the running agent has found it; where None the
            files are looked for.
        overlaps: data sets of two accounts that share patients.
    """
    now_s = time.time() if now_s is None else now_s
    return [
        *_certificate(identity, now_s),
        *_connection(state, config, now_s),
        *_disk(folder, config),
        *_ledger(state, config),
        *_stewards(state, steward, faults),
        *_in_two_accounts(overlaps),
        *_approvals(state, now_s),
    ]


def _certificate(identity: Identity, now_s: float) -> list[Alert]:
    ends_s, due_s = identity.expires_at.timestamp(), identity.renews_at.timestamp()
    if now_s >= ends_s:
        text = "the certificate has ended; the node is shut out"
        remedy = "docs/hospital-it.md, Certificates, says how a node comes back"
        return [Alert("CERTIFICATE", "", text, remedy)]
    # A renewal that works is done soon after it is due.
    if now_s >= due_s + (ends_s - due_s) / 4:
        hours = (ends_s - now_s) / 3600
        text = f"the certificate was not renewed and ends in {hours:.1f} hours"
        remedy = "let the agent run and reach the coordinator; its log says why renewing failed"
        return [Alert("CERTIFICATE", "", text, remedy)]
    return []


def note_connection(state: State, now_s: float) -> None:
    """Keep since when there is no session; for the agent, as `conditions` only reads."""
    connected, lost = state.notes.read(CONNECTED_NOTE), state.notes.read(LOST_NOTE)
    if connected and lost:
        state.notes.keep(LOST_NOTE, "")
    elif not connected and not lost:
        state.notes.keep(LOST_NOTE, f"{now_s:.3f}")


def _connection(state: State, config: AlertsConfig, now_s: float) -> list[Alert]:
    since = state.notes.read(LOST_NOTE)
    if state.notes.read(CONNECTED_NOTE) or not since:
        return []
    away_s = now_s - float(since)
    refused = state.notes.read(REFUSED_NOTE)
    if refused and away_s >= REFUSED_AFTER_S:
        said = json.loads(refused)
        text = f"the coordinator gives this node no session: {said['reason']}: {said['message']}"
        # It chooses the words: no line of a digest may be made with them.
        plain = "".join(one if one.isprintable() else "?" for one in text[:REFUSED_CHARS_MAX])
        return [Alert("REFUSED", "", plain, _REFUSED.get(said["reason"], _OPERATOR))]
    if away_s < config.disconnected_after_s:
        return []
    text = f"no session with the coordinator for {span(away_s)}"
    remedy = "`feddp agent doctor` names what is between the two"
    return [Alert("DISCONNECTED", "", text, remedy)]


_OPERATOR: Final = (
    "ask the coordinator's operator; docs/hospital-it.md, Lost keys, says how a node that was shut "
    "out comes back"
)
_REFUSED: Final = {
    "NODE_QUARANTINED": "look for a second machine with a copy of the agent's folder, and tell the "
    "coordinator's operator at once: if there is none of yours, the keys are stolen; "
    "docs/hospital-it.md, Lost keys, says how to go on",
    "SESSION_TAKEN": "if another machine has a copy of the agent's folder, stop one of the two; if "
    "none of yours does, tell the coordinator's operator that the keys may be stolen",
}


def _disk(folder: Folder, config: AlertsConfig) -> list[Alert]:
    """Of the folder, and of the spool where that is another disk's."""
    for path in (folder.root, folder.spool):
        try:
            found = os.statvfs(path)
        except FileNotFoundError:
            continue
        free = found.f_bavail * found.f_frsize
        if free < config.disk_free_bytes_min:
            text = f"{free / 2**30:.2f} GiB are free on the disk of {path}"
            return [Alert("DISK_LOW", "", text, "free room there: an agent on a full disk stops")]
    return []


def _ledger(state: State, config: AlertsConfig) -> list[Alert]:
    found = []
    if text := state.notes.read(ROLLED_BACK_NOTE):
        remedy = "stop the agent and import the newest copy: `feddp agent ledger import`"
        found.append(Alert("LEDGER_ROLLED_BACK", "", text, remedy))
    for one in state.disputes.all():
        found.append(Alert("DISPUTE", one.account, one.text, one.advice(state.folder)))
    for kept in state.ledger.accounts():
        units = kept.filter(kept.epsilon_limit).limit_units
        share = kept.posted_units / units if units else 1.0
        if share >= config.budget_share:
            text = f"{share:.0%} of what the limit allows is used"
            remedy = "the steward decides: let it end, or raise the limit with a second person"
            if share > 1:
                text = "the limit is below what was booked, and nothing more is admitted"
                remedy = "nothing, if that is meant; else raise the limit with a second person"
            text = f"{text}: {said(asdict(booked(state, kept)))}"
            found.append(Alert("BUDGET", kept.account, text, remedy))
    return found


def _stewards(state: State, steward: Steward, faults: Mapping[str, str] | None) -> list[Alert]:
    try:
        rules = steward.rules()
    except FeddpError as error:
        remedy = "mend the file: until then nothing is allowed"
        return [Alert("POLICY_UNREADABLE", "", error.message, remedy)]
    found = []
    if steward.fault:
        remedy = "mend the file: until then the rules of before stay in force"
        found.append(Alert("POLICY_UNREADABLE", "", steward.fault, remedy))
    elif steward.slip:
        remedy = "mend the name: the rest of the rules is in force"
        found.append(Alert("POLICY_UNREADABLE", "", steward.slip, remedy))
    for one in rules.data_sets:
        text = "" if _is_there(one.source) else f"{one.source} is not there, or may not be read"
        if faults is not None:
            text = faults.get(one.name, "")
        if text:
            remedy = "put it right, or take the data set out of datasets.yaml"
            found.append(Alert("DATA_SET_UNAVAILABLE", one.name, text, remedy))
        if state.notes.read(ROWS_LEFT_OUT_NOTE + one.name):
            # How many, and where, is the records' own: it goes into no mail and no syslog.
            text = "rows of it do not read as declared, or none is left, and are not used"
            remedy = (
                "`feddp agent doctor` on the agent's machine says which; mend the records or "
                "datasets.yaml: it is over with the next attempt that reads all of them"
            )
            found.append(Alert("ROWS_LEFT_OUT", one.name, text, remedy))
    return found


def _in_two_accounts(overlaps: Sequence[Overlap]) -> list[Alert]:
    remedy = (
        "the data steward lets one account pay, or takes those patients out of one of the sources "
        "(docs/budgets.md, A patient in two data sets of one node)"
    )
    return [
        Alert("PATIENTS_IN_TWO_ACCOUNTS", " and ".join(one.data_sets), one.said(), remedy)
        for one in overlaps
    ]


def _approvals(state: State, now_s: float) -> list[Alert]:
    waiting = sorted({one.project for one in state.approvals.waiting(now_s)})
    remedy = "the steward looks at it: `feddp agent approve --list`"
    found = [
        Alert("APPROVAL_WAITING", project, "its first job waits for approval", remedy)
        for project in waiting[:PROJECTS_TOLD_MAX]
    ]
    if len(waiting) > PROJECTS_TOLD_MAX:
        text = f"first jobs of more than {PROJECTS_TOLD_MAX} projects wait for approval"
        found.append(Alert("APPROVAL_WAITING", "", text, remedy))
    return found


def _is_there(source: object) -> bool:
    """Whether a file can be read; what is not a file is looked at when it is opened."""
    return not isinstance(source, Path) or os.access(source, os.R_OK)
