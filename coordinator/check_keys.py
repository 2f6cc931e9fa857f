"""Whether the ledger key is the one that nodes remember."""

from collections.abc import Iterator
from typing import Literal

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import SQLAlchemyError

from coordinator import keyring
from coordinator.config import CoordinatorConfig
from coordinator.store import epochs
from coordinator.store.database import Database
from privacy.epochs import Epoch
from privacy.heads import Checkpoint
from protos.errors import FeddpError

Found = tuple[Literal["ok", "error"], str, str]
"""(level, subject, text)."""


def ledger_key_found(config: CoordinatorConfig) -> Iterator[Found]:
    """As a start would: it makes none, and none is made here."""
    pki, is_shared = config.storage.pki_dir, bool(config.server.replica_host)
    try:
        signed = _signed(config)
        if not (pki / keyring.FILE).exists() and not signed and not is_shared:
            return  # the first start makes it
        keyring.ledger_key(pki, signed, shared=is_shared)
    except FeddpError as error:
        yield "error", "ledger key", error.message
        return
    if signed:
        text = "it has signed the newest checkpoint, so nodes know it"
    else:
        text = "it is there, and has signed nothing yet"
    yield "ok", "ledger key", text


def _signed(config: CoordinatorConfig) -> list[Epoch | Checkpoint]:
    """What was signed last; nothing where the database cannot be read, which is said already."""
    try:
        database = Database(config.storage.database_url)
    except FeddpError:
        return []
    try:
        return database.read_now(_signed_last)
    except (FeddpError, SQLAlchemyError):
        return []
    finally:
        database.close()


def _signed_last(connection: Connection) -> list[Epoch | Checkpoint]:
    there = inspect(connection)
    if not there.has_table("epochs"):
        return []  # an older version's, which this one has not upgraded
    return epochs.signed_last(connection)
