"""What left this hospital, what is about to, and what each cost: from `state.db`, the spool and the
node's own ledger, which is what its patients' guarantee rests on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from google.protobuf.json_format import MessageToDict

from node_agent.folder.config import Folder
from node_agent.folder.installation import read_folder
from node_agent.ledger.booked import booked as booked_of
from node_agent.ledger.own_ledger import KeptAccount
from node_agent.ledger.payers import require_kept
from node_agent.ledger.reading import reading
from node_agent.policy.admission import Admission
from node_agent.policy.steward import Rules, Steward
from node_agent.session.greeting import hello
from node_agent.state.kept_attempts import AttemptRow
from node_agent.state.notes import LEFT_NOTE, MOVED_NOTE
from node_agent.state.state import State
from node_agent.tasks.registry import installed
from protos.errors import FeddpError

Standing = Literal[
    "left",
    "unconfirmed",
    "removed",
    "no_update",
    "leaving",
    "told_soon",
    "under_way",
    "reserved",
    "nothing",
]

STANDINGS: Final[dict[Standing, str]] = {
    "left": "the coordinator acknowledged the update",
    "unconfirmed": "an update is booked and the coordinator has not acknowledged it: it came too "
    "late or was rejected, or the answer is not known; it may have left, whole or in part",
    "removed": "an update is booked and was removed here before the coordinator acknowledged it: "
    "withdrawn by the policy, or its file was gone; what was handed in before may have left",
    "no_update": "its data was opened and no update left; booked whole all the same",
    "leaving": "an update is booked and leaves as soon as the coordinator takes it",
    "told_soon": "no update; the coordinator is told so at the tick, and is told nothing else",
    "under_way": "the data is open; at the tick an update leaves, or the words that there is none",
    "reserved": "nothing left, and nothing was opened; its cost is set aside",
    "nothing": "refused: the data was not opened, and reason and sentence were told",
}


_UPDATES: Final[dict[str, Standing]] = {
    "UPDATE_ACKNOWLEDGED": "left",
    "UPDATE_WITHDRAWN": "removed",
    "UPDATE_VANISHED": "removed",
}
"""A `Fate`, and how the attempt stands once it is closed; anything else is unconfirmed."""


@dataclass(frozen=True, slots=True)
class Item:
    """One attempt.

    Attributes:
        account: "NODE/NAME".
        opened_at_s: 0 where the data was not opened.
        leaves_at_s: the tick at which its outcome leaves; 0 where that is past or not known.
        digest: BLAKE3 of the update; empty for none.
        update_bytes: of an update that waits in the spool, else None.
        units: what it takes, or took, of the account, in its filter's units.
        epsilon_alone: of this release by itself, at the account's delta; None without accounting.
        booked: "reserve", "post", "void", or "" where the ledger holds nothing of it.
        told: reason and sentence that the coordinator was told; empty but for "nothing".
    """

    attempt_id: str
    job_id: str
    round: int
    project: str
    task: str
    data_set: str
    account: str
    standing: Standing
    opened_at_s: float
    leaves_at_s: float
    digest: str
    update_bytes: int | None
    mechanism: str
    noise_multiplier: float | None
    steps: int
    units: int
    epsilon_alone: float | None
    booked: str
    told: str


def outbox(path: Path, job_id: str = "") -> dict[str, Any]:
    """Everything, JSON-ready: `published` is what each session says first, `items` the attempts in
    the order of arrival, `accounts` what they come to.

    Args:
        job_id: only this job's attempts; empty for all.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
    """
    folder = Folder(path.absolute())
    _, identity = read_folder(folder, to_read=True)
    with reading(folder, identity) as state:
        kept = {one.account: one for one in state.ledger.accounts()}
        spent = {name: asdict(booked_of(state, one)) for name, one in kept.items()}
        booked = {}
        for entry in state.ledger.entries():
            attempt_id = getattr(entry.statement, "attempt_id", "")
            booked[attempt_id] = entry.statement.kind
        rows = state.attempts.all()
        live = [row.order.attempt_id for row in state.attempts.live()]
        published = _published(folder, state, live)
    items = [
        _item(row, identity.node, folder, kept, booked)
        for row in rows
        if not job_id or row.order.job_id == job_id
    ]
    known = {row.order.attempt_id for row in rows}
    return {
        "node": identity.node,
        "published": published,
        "items": [asdict(one) for one in items],
        "restored": sum(1 for one in booked if one and one not in known and not job_id),
        "accounts": [
            {
                "posted_units": one.posted_units,
                "limit_units": one.filter(one.epsilon_limit).limit_units,
            }
            | spent[one.account]
            for one in kept.values()
        ],
    }


def _item(
    row: AttemptRow,
    node: str,
    folder: Folder,
    kept: Mapping[str, KeptAccount],
    booked: Mapping[str, str],
) -> Item:
    order = row.order
    account = f"{node}/{order.account}"
    standing = standing_of(row)
    size = None
    if standing == "leaving":
        try:
            size = (folder.spool / "updates" / row.update_digest).stat().st_size
        except FileNotFoundError:
            standing = "removed"
    return Item(
        attempt_id=order.attempt_id,
        job_id=order.job_id,
        round=order.round,
        project=order.project,
        task=order.task,
        data_set=order.data_set,
        account=account,
        standing=standing,
        opened_at_s=row.opened_at_s,
        leaves_at_s=(
            row.opened_at_s + row.tick_s
            if standing in ("leaving", "told_soon", "under_way")
            else 0.0
        ),
        digest=row.update_digest,
        update_bytes=size,
        mechanism=order.release.mechanism,
        noise_multiplier=order.release.noise_multiplier,
        steps=order.release.steps,
        units=0 if row.outcome == "void" else row.units,
        epsilon_alone=_epsilon_alone(row, kept.get(account)),
        booked=booked.get(order.attempt_id, ""),
        told=f"{row.reason}: {row.message}" if standing == "nothing" and row.reason else "",
    )


def _epsilon_alone(row: AttemptRow, kept: KeptAccount | None) -> float | None:
    if row.order.release.mechanism == "none" and row.outcome != "void":
        return None
    if kept is None or row.outcome == "void":
        return 0.0
    return kept.filter(kept.epsilon_limit).epsilon_of(row.units)


def standing_of(row: AttemptRow) -> Standing:
    """How an attempt stands, by its row alone: the spool is not looked at."""
    match row.state:
        case "reserved":
            return "reserved"
        case "opened":
            return "under_way"
        case "spooled":
            return "removed" if row.reason == "UPDATE_WITHDRAWN" else "leaving"
        case "no_update":
            return "told_soon"
        case "closed" if row.outcome == "post":
            return _UPDATES.get(row.reason, "unconfirmed") if row.update_digest else "no_update"
    return "nothing"


def _published(folder: Folder, state: State, open_attempts: Sequence[str]) -> dict[str, Any]:
    """What the next session says first: the Hello itself, made as the agent makes it. Why a data
    set's file cannot be read is known to the running agent alone, and so is its instance's id."""
    steward = Steward(folder)
    raised = state.ledger.raise_counts()
    rules: Rules | None = None
    fault = ""
    try:
        rules = steward.rules()
        require_kept(rules.policy, state.accounts_kept())
    except FeddpError as error:
        fault = error.reason
    suspended = Admission(state.node, state, steward, installed, 0).suspensions()
    came = state.notes.read(MOVED_NOTE) or state.notes.read(LEFT_NOTE)
    said = hello(
        rules,
        installed(),
        state.fixed_filter,
        open_attempts,
        state.share_units,
        state.ledger.unseen_raises(),
        lambda name: suspended.reason(f"{state.node}/{name}"),
        state.payers.moved,
        whole=state.account_units if came else None,
        fault=fault,
        raised={name.removeprefix(f"{state.node}/"): count for name, count in raised.items()},
        quietly=True,
    )
    said.instance_id = ""
    found: dict[str, Any] = MessageToDict(said, preserving_proto_field_name=True)
    return {
        "data_sets": [
            {
                "name": one.name,
                "declared_n": one.declared_n,
                "version": one.version,
                "account": one.account,
                "columns": json.loads(one.schema_json)["columns"],
                "tasks": list(one.tasks),
                "unavailable": one.unavailable,
            }
            for one in said.data_sets
        ],
        "accounts": found.get("accounts", []),
        "tasks": [f"{one.name}@{one.content_hash}" for one in said.tasks],
        "open_attempts": list(said.open_attempts),
        "limits": found.get("limits", []),
        "agent_version": said.agent_version,
        "protocol_version": said.protocol_version,
    }
