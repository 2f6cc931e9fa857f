"""The coordinator of a history, with its backups, and its two hospitals."""

import random
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coordinator.keyring import ledger_key
from coordinator.store import booking, epochs, ledger, people
from coordinator.store.booking import Books
from coordinator.store.database import Database
from privacy.entries import Entry
from privacy.ledger import Statement
from protos.errors import FeddpError
from tests.histories.node import KEYS, PUBLIC, Node

RESTORING_S = 100.0
"""Between a restoration and the next."""


class World:
    """Everything that a history is made of; `log` tells it step by step."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.log: list[str] = []
        self.now_s, self.orders = 100.0, 0
        self.backups: list[tuple[Path, float]] = []
        self.database = self._open()
        self.database.migrate()
        self.key = ledger_key(folder)
        self.nodes = {name: Node(name, folder / name) for name in KEYS}
        for node in self.nodes.values():
            self._join(node)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.database.close()
        for node in self.nodes.values():
            node.state.close()

    def say(self, text: str) -> None:
        """One step of the transcript."""
        self.log.append(text)

    def any_node(self) -> Node:
        """One of the two."""
        return self.rng.choice([*self.nodes.values()])

    def book(self, statement: Statement, signature: bytes = b"") -> str:
        """The coordinator books; why it does not, or nothing."""
        try:
            self.database.write_now(lambda c: booking.book(c, statement, signature))
        except FeddpError as error:
            return error.reason
        return ""

    def keep_signature(self, attempt_id: str, signature: bytes) -> None:
        """The coordinator hears that the node has reserved as well."""

        def work(connection: Any) -> None:
            books = Books(connection)
            books.expect(attempt_ids=[attempt_id])
            books.keep_signature(attempt_id, signature)
            books.flush()

        self.database.write_now(work)

    def chain(self, node: Node) -> list[Entry]:
        """What the coordinator holds of the node's account."""
        return self.database.read_now(lambda c: list(ledger.chain(c, node.account)))

    def said_there(self, node: Node) -> list[tuple[Statement, bytes]]:
        """The same without raised limits: statements, with the node's signature of each."""
        found = ((one.statement, one.node_signature) for one in self.chain(node))
        return [(said, signed) for said, signed in found if isinstance(said, Statement)]

    def open_there(self, node: Node) -> dict[str, Statement]:
        """What the coordinator holds reserved, by attempt."""
        found: dict[str, Statement] = {}
        for said, _ in self.said_there(node):
            if said.kind == "reserve":
                found[said.attempt_id] = said
            else:
                found.pop(said.attempt_id, None)
        return found

    def back_up(self) -> None:
        """Copy the coordinator's database."""
        self.database.close()
        path = self.folder / f"backup{len(self.backups)}.db"
        shutil.copyfile(self.folder / "coordinator.db", path)
        self.database = self._open()
        self.backups.append((path, self.now_s))
        self.say(f"backup {len(self.backups) - 1}")

    def put_back(self, number: int) -> None:
        """A backup takes the database's place, and nothing says so."""
        self.database.close()
        for suffix in ("-wal", "-shm"):
            (self.folder / f"coordinator.db{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self.backups[number][0], self.folder / "coordinator.db")
        self.database = self._open()

    def declare(self, backup_made_at_s: float) -> None:
        """The coordinator says that it was restored."""
        self.now_s += RESTORING_S
        self.database.write_now(
            lambda c: epochs.raise_epoch(
                c, self.key, now_s=self.now_s, backup_made_at_s=backup_made_at_s
            )
        )

    def restore(self, number: int | None = None) -> None:
        """As `feddp coordinator restore` does it, from any backup where none is named."""
        if not self.backups:
            return
        chosen = self.rng.randrange(len(self.backups)) if number is None else number
        self.put_back(chosen)
        self.declare(self.backups[chosen][1])
        self.say(f"restore {chosen} at {self.now_s}")

    def _open(self) -> Database:
        return Database(f"sqlite:///{self.folder / 'coordinator.db'}")

    def _join(self, node: Node) -> None:
        invitation = {"spiffe_id": node.name, "now_s": 0.0, "expires_at_s": 1.0}

        def work(connection: Any) -> None:
            people.invite(connection, node.name, "hpc", node.name, **invitation)
            connection.exec_driver_sql(
                "UPDATE nodes SET ledger_public_key = ? WHERE name = ?",
                (PUBLIC[node.name], node.name),
            )
            ledger.open_account(connection, node.account, node.name, "gdp", 0, 10.0, 1.0e-5)

        self.database.write_now(work)
