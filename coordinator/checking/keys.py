"""Whether the ledger key is the one that nodes remember."""

from collections.abc import Iterator
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from coordinator import keyring
from coordinator.config.config import CoordinatorConfig
from coordinator.store import epochs
from coordinator.store.database import Database
from coordinator.store.diagnosis import fault
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
        key = keyring.check_ledger_key(pki, signed or [], shared=is_shared)
    except FeddpError as error:
        yield "error", "ledger key", error.message
        return
    if key is None or signed is None:
        return  # the first start makes it; the database is told already
    if signed:
        text = "it has signed the newest checkpoint, so nodes know it"
    else:
        text = "it is there, and has signed nothing yet"
    yield "ok", "ledger key", text


def _signed(config: CoordinatorConfig) -> list[Epoch | Checkpoint] | None:
    """What was signed last; None where the database cannot be read."""
    if fault(config.storage.database_url):
        return None  # and none is opened where none is, which would make a file
    database = Database(config.storage.database_url)
    try:
        return database.read_now(epochs.signed_last)
    except (FeddpError, SQLAlchemyError):
        return None
    finally:
        database.close()
