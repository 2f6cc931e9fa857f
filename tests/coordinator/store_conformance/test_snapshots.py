"""A snapshot is every table at one moment, whatever database they lie in."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from coordinator.backups.snapshots import snapshot
from coordinator.store import backups, booking, ledger, pauses
from coordinator.store.database import Database, newest_revision
from coordinator.store.schema import metadata, nodes
from privacy.ledger import sign
from privacy.verification import verify
from tests.coordinator.store_conformance.samples import ACCOUNT, KEY, NODE, PUBLIC, statement


def rows(connection: Connection) -> dict[str, list[Any]]:
    """Every row of every table, as Python has it."""
    return {
        table.name: sorted(map(tuple, connection.execute(select(table)).all()), key=repr)
        for table in metadata.sorted_tables
    }


def test_a_snapshot_has_the_same_rows(database: Database, url: str, tmp_path: Path) -> None:
    """Figures to the last bit, bytes and empty values, so that its chains verify as they do."""
    database.write_now(lambda c: c.execute(nodes.update().values(ledger_public_key=PUBLIC)))
    for number in range(3):
        for kind in ("reserve", "post"):
            one = statement(f"x{number}", noise=20 + 1 / 3 + number, kind=kind)
            database.write_now(lambda c, one=one: booking.book(c, one, sign(KEY, one)))
    database.write_now(lambda c: booking.book(c, statement("open")))
    database.write_now(lambda c: pauses.keep(c, 1.5, "op", "a leak, perhaps", paused=True))
    database.write_now(lambda c: backups.add(c, 1 / 3, 1 << 40, keys=True))
    snapshot(url, tmp_path / "copy.db")
    copy = Database(f"sqlite:///{tmp_path / 'copy.db'}")
    assert copy.revision() == newest_revision()
    found = copy.read_now(rows)
    assert found == database.read_now(rows)
    assert len(found["entries"]) == 7
    account = copy.read_now(lambda c: ledger.read_account(c, ACCOUNT))
    chain = copy.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))
    checked = verify(chain, {ACCOUNT: account.verifying_filter}, {NODE: PUBLIC})
    assert checked.ok
    assert checked.heads[ACCOUNT] == (7, account.head_hash)
    copy.close()


def test_a_pause_is_an_entry_and_the_newest_counts(database: Database) -> None:
    """Asked for twice it is one; who resumed stays to be read."""
    assert database.read_now(pauses.current) is None
    for paused, changed in ((False, False), (True, True), (True, False), (False, True)):
        assert changed == database.write_now(
            lambda c, paused=paused: pauses.keep(c, 5.0, "op", "why", paused=paused)
        )
        wanted = pauses.Pause(5.0, "op", "why") if paused else None
        assert database.read_now(pauses.current) == wanted
    assert len(database.read_now(rows)["pauses"]) == 2
