"""The tables of a restored coordinator: a backup's rows in a database that has none, as they are to
be served from, all of it in one transaction."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, func, inspect, select, text

from certs.authority import Authority
from coordinator.backups.snapshots import copy_rows
from coordinator.config.config import CoordinatorConfig
from coordinator.installation import OPERATOR, issue_operator
from coordinator.keyring import ledger_key
from coordinator.restoring.restored import Changes, settle
from coordinator.restoring.revocations import Kept
from coordinator.restoring.target import PROFILE, Target, refuse_rows
from coordinator.store import epochs, revocations, users
from coordinator.store.certificates import revoked_identities
from coordinator.store.database import MIGRATING, Database
from coordinator.store.schema import metadata
from coordinator.store.standings import Carried, carry
from protos.content import sync_directory
from protos.errors import invariant


@dataclass(frozen=True, slots=True)
class Filled:
    """What is in the database now.

    Attributes:
        revoked: certificates that the backup did not know to be revoked.
        nodes: that it did not know to be shut out, or let in.
        profile: an operator's new profile; None where there is one, or no operator may have one.
    """

    changes: Changes
    revoked: int
    nodes: Carried
    epoch: int
    profile: Path | None


def fill(
    target: Target,
    made_at_s: float,
    known: Kept,
    now_s: float,
    told: Callable[[int], None],
) -> Filled:
    """Fill the target's database from the copy in `target.work`; it appears whole or not at all.

    Args:
        made_at_s: when the backup was made.
        known: who was shut out, from elsewhere.
        now_s: of the restore.
        told: the number of rows so far.

    Raises:
        Conflict: RESTORE_TARGET_NOT_EMPTY, somebody else has filled it meanwhile.
        Unavailable: DATABASE_UNREACHABLE.
    """
    copy = Database(f"sqlite:///{target.work}")
    url = f"sqlite:///{target.growing}" if target.growing else target.config.storage.database_url
    database = Database(url)
    try:
        copy.migrate()  # tables of an older version are brought to this one's first
        database.migrate()

        def work(inside: Connection) -> Filled:
            if inside.dialect.name == "postgresql":
                inside.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATING})"))
            refuse_rows(inside)
            copy.read_now(lambda source: copy_rows(source, inside, told))
            _set_sequences(inside)
            revoked = revocations.replay(inside, known.revocations)
            stood = [(one.at_ms / 1000, one.standing) for one in known.standings]
            carried = carry(inside, stood, made_at_s)
            changes = settle(inside, made_at_s, now_s)
            key = ledger_key(target.config.storage.pki_dir, epochs.signed_last(inside))
            epoch = epochs.raise_epoch(inside, key, now_s=now_s, backup_made_at_s=made_at_s)
            return Filled(changes, revoked, carried, epoch.number, _operator(inside, target))

        filled = database.write_now(work)
    finally:
        copy.close()
        database.close()
    if target.growing is not None and target.database_file is not None:
        _put_in_place(target.growing, target.database_file)
    return filled


def _set_sequences(connection: Connection) -> None:
    """On PostgreSQL, numbers that the server gives go on after those that were copied."""
    if connection.dialect.name != "postgresql":
        return
    for table in metadata.sorted_tables:
        for column in inspect(connection).get_columns(table.name):
            name = connection.scalar(
                select(func.pg_get_serial_sequence(table.name, column["name"]))
            )
            newest = connection.scalar(select(func.max(table.c[column["name"]]))) if name else None
            if newest is not None:
                connection.execute(select(func.setval(name, newest)))


def _operator(connection: Connection, target: Target) -> Path | None:
    """A profile for whoever looks first; unless the operator's certificates were all revoked."""
    if not target.with_profile or OPERATOR not in users.all_users(connection):
        return None
    authority = Authority.load(target.config.storage.pki_dir)
    identity = f"spiffe://{authority.trust_domain}/user/{OPERATOR}"
    if identity in revoked_identities(connection):
        return None
    folder = target.folder / PROFILE
    issue_operator(connection, folder, authority, _address(target.config), datetime.now(UTC))
    return folder


def _address(config: CoordinatorConfig) -> str:
    return f"{config.server.public_host}:{config.server.public_port}"


def _put_in_place(growing: Path, file: Path) -> None:
    """Fold its journal in, which a full disk may have kept from happening when it was closed; the
    name is the last that it gets."""
    with closing(sqlite3.connect(growing)) as database:
        (mode,) = database.execute("PRAGMA journal_mode=DELETE").fetchone()
    invariant(mode == "delete", "nobody else has a database open that is being restored")
    descriptor = os.open(growing, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    growing.replace(file)
    sync_directory(file.parent)
