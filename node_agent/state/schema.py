"""All tables of `state.db`, each written beside its class, and what brings an older one to them."""

import sqlite3
from pathlib import Path
from typing import Final

from node_agent.ledger.disputes import SCHEMA as DISPUTES_SCHEMA
from node_agent.ledger.epochs_seen import SCHEMA as EPOCHS_SCHEMA
from node_agent.ledger.lost_ledger import ledger_missing
from node_agent.ledger.own_ledger import RAISES_SCHEMA
from node_agent.ledger.own_ledger import SCHEMA as LEDGER_SCHEMA
from node_agent.ledger.payers import SCHEMA as PAYERS_SCHEMA
from node_agent.ledger.payers import TAKEN_OVER
from node_agent.ledger.witnessed import SCHEMA as WITNESS_SCHEMA
from node_agent.policy.approvals import BOUND, OTHERS_SET_APART
from node_agent.policy.approvals import SCHEMA as APPROVALS_SCHEMA
from node_agent.policy.job_mandates import SCHEMA as MANDATES_SCHEMA
from node_agent.state.kept_attempts import SCHEMA as ATTEMPTS_SCHEMA
from node_agent.state.kept_attempts import SHARES_ADDED, KeptAttempts
from node_agent.state.notes import SCHEMA as NOTES_SCHEMA
from node_agent.state.notes import Notes
from protos.errors import Malformed, WrongPhase

SCHEMA_VERSION: Final = 7
"""2 since the coordinator's ledger is followed, 3 since a limit is raised by an entry, 4 since it
is kept which account each data set has paid from, 5 since orders are signed, 6 since a
coordinator that was restored says so, 7 since a project is known to one coordinator."""

_FOLLOWED: Final = f"{WITNESS_SCHEMA}{DISPUTES_SCHEMA}"
_ASKED: Final = f"{MANDATES_SCHEMA}{APPROVALS_SCHEMA}{EPOCHS_SCHEMA}"

_STEPS: Final = {
    0: f"{NOTES_SCHEMA}{ATTEMPTS_SCHEMA}{LEDGER_SCHEMA}{_FOLLOWED}{RAISES_SCHEMA}{PAYERS_SCHEMA}"
    f"{_ASKED}",
    1: f"{SHARES_ADDED}{_FOLLOWED}{RAISES_SCHEMA}{PAYERS_SCHEMA}{TAKEN_OVER}{_ASKED}"
    f"{OTHERS_SET_APART}",
    2: f"{RAISES_SCHEMA}{PAYERS_SCHEMA}{TAKEN_OVER}{_ASKED}{OTHERS_SET_APART}",
    3: f"{PAYERS_SCHEMA}{TAKEN_OVER}{_ASKED}{OTHERS_SET_APART}",
    4: f"{_ASKED}{OTHERS_SET_APART}",
    5: f"{EPOCHS_SCHEMA}{BOUND}{OTHERS_SET_APART}",
    6: f"{BOUND}{OTHERS_SET_APART}",
}
"""What brings a database of each older version to this one."""


def version_of(connection: sqlite3.Connection) -> int:
    """Which schema a database has; 0 for an empty one."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def prepare(
    connection: sqlite3.Connection,
    path: Path,
    node: str,
    *,
    bring: bool = True,
    begin: bool = False,
) -> None:
    """Bring a database to this version.

    Args:
        bring: False: one of an older version is refused.
        begin: it was made by this process, and is empty. One that is empty otherwise was emptied.

    Raises:
        NotFound: LEDGER_MISSING, it is empty.
        Malformed: STATE_NEWER, STATE_OF_ANOTHER_NODE.
        WrongPhase: STATE_OLDER, nothing was changed.
    """
    notes, attempts = Notes(connection), KeptAttempts(connection, node)
    version = version_of(connection)
    if version == 0 and not begin:
        raise ledger_missing(path)
    if version > SCHEMA_VERSION:
        raise Malformed(
            "STATE_NEWER",
            f"{path} was written by a newer agent (schema {version}); upgrade this one",
        )
    if version < SCHEMA_VERSION and not bring:
        raise WrongPhase(
            "STATE_OLDER",
            f"{path} is of an older release (schema {version}, this is {SCHEMA_VERSION}), whose "
            "agent could not open it again once it was brought along; nothing was changed. Start "
            "the agent of this version once, which brings it along, and run this again",
        )
    if version < SCHEMA_VERSION:
        script = f"{_STEPS[version]}PRAGMA user_version = {SCHEMA_VERSION};"
        connection.executescript(f"BEGIN IMMEDIATE;{script}COMMIT;")
    if version == 1:
        for row in attempts.all():
            attempts.change(row.order.attempt_id, project=row.order.project)
    if version == 0:
        notes.keep("node", node)
    whose = notes.read("node")
    if not whose:
        raise ledger_missing(path)
    if whose != node:
        raise Malformed(
            "STATE_OF_ANOTHER_NODE",
            f"{path} is the ledger of node {whose}, not of {node}; "
            "restore the folder from its own backup",
        )
