"""The ledger read straight from the database, with the server running or stopped."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, inspect, text

from coordinator import views
from coordinator.config.config import CoordinatorConfig, load_config
from coordinator.installation import CONFIG_FILE
from coordinator.keyring import ledger_public_key
from coordinator.store import ledger as ledger_store
from coordinator.store.database import Database
from coordinator.store.diagnosis import sqlite_file
from coordinator.store.engines import is_sqlite
from coordinator.store.limits import OUTER
from privacy.filters import Filter
from privacy.ledger import Entry, LimitChange
from protos.errors import FeddpError, NotFound
from protos.feddp.v1 import budgets_pb2


@dataclass(frozen=True, slots=True)
class LedgerView:
    """Every entry of some accounts, and what `privacy.verification` needs to check them."""

    entries: list[Entry]
    accounts: list[budgets_pb2.BudgetAccount]
    filters: Mapping[str, Filter]
    public_keys: Mapping[str, bytes]
    witnesses: budgets_pb2.ListCheckpointsResponse


def ledger(folder: Path, data_set: str | None = None) -> LedgerView:
    """The ledger of the installation in `folder`.

    Raises:
        NotFound: INSTALLATION_MISSING, DATABASE_MISSING.
        Malformed: CONFIG_INVALID, DATABASE_DRIVER_MISSING.
        Unavailable: DATABASE_UNREACHABLE.
    """
    database, config = _open(folder)
    key = ledger_public_key(config.storage.pki_dir)

    def work(connection: Connection) -> LedgerView:
        accounts = views.accounts(connection, data_set or "")
        names = {account.account for account in accounts}
        known = [a for a in ledger_store.all_accounts(connection) if a.account in names]
        return LedgerView(
            entries=[
                entry for name in sorted(names) for entry in ledger_store.chain(connection, name)
            ],
            accounts=accounts,
            filters={account.account: account.verifying_filter for account in known},
            public_keys={account.node: account.ledger_public_key for account in accounts},
            witnesses=views.checkpoints(connection, key),
        )

    try:
        return database.read_now(work)
    finally:
        database.close()


def stored_entries(folder: Path) -> list[dict[str, Any]]:
    """Every ledger row as it stands, with an entry's field names, whether it makes sense or not.

    Raises:
        NotFound: INSTALLATION_MISSING, DATABASE_MISSING.
        Malformed: CONFIG_INVALID, DATABASE_DRIVER_MISSING.
        Unavailable: DATABASE_UNREACHABLE.
    """
    database, _ = _open(folder)
    # Without the schema's types: a tampered value would fail in their conversion.
    query = text("SELECT * FROM entries ORDER BY account, seq")
    try:
        rows = database.read_now(lambda connection: connection.execute(query).mappings().all())
    finally:
        database.close()
    return [_as_exported(row) for row in rows]


def _as_exported(row: RowMapping) -> dict[str, Any]:
    """A row with the names of an export: of a raise what only a raise has, of others the rest."""
    fields = {
        name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()
    }
    change = fields.pop("limit_change")
    if fields["kind"] != LimitChange.kind:
        return fields if change is None else {**fields, "limit_change": change}
    try:
        inner = dict(json.loads(change))
    except (ValueError, TypeError):
        inner = {"limit_change": change}
    outer = ("seq", *OUTER, "prev_hash", "hash", "node_signature")
    return {**inner, **{name: fields[name] for name in outer}}


def _open(folder: Path) -> tuple[Database, CoordinatorConfig]:
    """The database, which must be there: opening it would make an empty one."""
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise NotFound("INSTALLATION_MISSING", f"{folder} holds no {CONFIG_FILE}")
    # As for the server, the environment goes before the file: the password may be there alone.
    config = load_config(config_path, os.environ)
    url = config.storage.database_url
    if is_sqlite(url) and not (path := sqlite_file(url)).is_file():
        raise NotFound("DATABASE_MISSING", f"{path} is missing; restore it from a backup")
    database = Database(url)
    if not is_sqlite(url) and not _has_tables(database):
        database.close()
        raise NotFound(
            "DATABASE_MISSING", "the PostgreSQL database is empty; restore it from a backup"
        )
    return database, config


def _has_tables(database: Database) -> bool:
    try:
        return database.read_now(lambda connection: inspect(connection).has_table("entries"))
    except FeddpError:
        database.close()
        raise
