"""Both ledgers of one node, over real gRPC, with a backup of the coordinator's that is put back."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.store import booking, epochs, ledger
from coordinator.store.database import Database
from node_agent.policy.admission import Suspensions
from tests.integration.test_witness import (
    ACCOUNT,
    Bench,
    seen,  # noqa: F401 - a fixture
)
from tests.node_agent.samples import NODE, order

BACKUP = "backup.db"


class Restorable(Bench):
    """The same with a backup of the coordinator's database."""

    def back_up(self) -> None:
        """Copy the database."""
        self.database.close()
        shutil.copyfile(self.folder / "coordinator.db", self.folder / BACKUP)
        self.database = Database(f"sqlite:///{self.folder / 'coordinator.db'}")

    def put_back(self, now_s: float = 100.0, *, declared: bool = True) -> None:
        """Put the backup in its place."""
        self.database.close()
        for suffix in ("-wal", "-shm"):
            (self.folder / f"coordinator.db{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self.folder / BACKUP, self.folder / "coordinator.db")
        self.database = Database(f"sqlite:///{self.folder / 'coordinator.db'}")
        if declared:
            self.database.write_now(
                lambda c: epochs.raise_epoch(c, self.key, now_s=now_s, backup_made_at_s=now_s - 50)
            )

    def reserve_there(self, *attempt_ids: str) -> None:
        """The coordinator reserves for orders that have not reached the node."""
        for attempt_id in attempt_ids:
            one = order(attempt_id, job_id="job-there").statement(NODE, "reserve")
            self.database.write_now(lambda c, one=one: booking.book(c, one))

    def posted_units(self) -> int:
        """What the coordinator has booked."""
        account = self.database.read_now(lambda c: ledger.read_account(c, ACCOUNT))
        return account.balance.posted_units

    def own_units(self) -> int:
        """What the node has booked."""
        kept = self.state.ledger.account(ACCOUNT)
        assert kept is not None
        return kept.posted_units

    def unreconciled(self) -> frozenset[str]:
        """Accounts that the coordinator waits for."""
        return self.database.read_now(epochs.unreconciled)

    def reason(self) -> str:
        """Why the node refuses orders on the account."""
        disputed = frozenset(one.account for one in self.state.disputes.all())
        waiting = self.state.epochs.to_hand_in()
        return Suspensions(disputed=disputed, handing_in=waiting).reason(ACCOUNT)


@pytest.fixture(name="bench")
def restorable_bench(seen: Path, tmp_path: Path) -> Iterator[Restorable]:  # noqa: F811
    """20 entries in both ledgers, and a backup of them."""
    shutil.copytree(seen, tmp_path / "bench")
    opened = Restorable(tmp_path / "bench")
    opened.back_up()
    yield opened
    opened.close()
