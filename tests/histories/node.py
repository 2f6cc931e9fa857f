"""One hospital of a history: its ledger, the copies of it, and what it has ever signed."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.folder.config import Folder
from node_agent.policy.admission import Admission
from node_agent.policy.steward import Steward
from node_agent.state.notes import RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from privacy.filters import make_filter
from privacy.ledger import Statement
from tests.node_agent.samples import LEDGER_KEY, TASKS, write_rules

FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
KEYS = {"alpha": LEDGER_KEY, "beta": Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}
MODEL_BYTES_MAX = 1_000_000


@dataclass
class Node:
    """What happened here is kept beside the ledger, which may forget it.

    Attributes:
        posts: units of every attempt whose post was ever signed here.
        voids: attempts whose void was ever signed here.
        opened: attempts for which data was read.
        doubted: attempts that a copy held reserved when it took the ledger's place.
        forgotten: attempts whose signed post a copy lacked when it took the ledger's place.
        worked_twice: attempts that were reserved again after their post was signed.
    """

    name: str
    folder: Path
    state: State = field(init=False)
    copies: list[Path] = field(default_factory=list)
    posts: dict[str, int] = field(default_factory=dict)
    voids: set[str] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)
    doubted: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    worked_twice: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The folder of a hospital that allows what `tests.node_agent.samples.order` asks."""
        self.folder.mkdir()
        write_rules(self.folder)
        self._steward = Steward(Folder(self.folder))
        self._open_state()

    @property
    def account(self) -> str:
        """The one that every order is paid from."""
        return f"{self.name}/patients"

    @property
    def key(self) -> Ed25519PrivateKey:
        """Of its ledger."""
        return KEYS[self.name]

    @property
    def admission(self) -> Admission:
        """The agent's own, on the ledger of now."""
        return Admission(self.name, self.state, self._steward, lambda: TASKS, MODEL_BYTES_MAX)

    @property
    def is_in_doubt(self) -> bool:
        """Whether the ledger is a copy that has not read the chain yet, or disputed."""
        notes = self.state.notes
        return bool(
            notes.read(RESTORED_NOTE)
            or notes.read(ROLLED_BACK_NOTE)
            or self.state.disputes.on(self.account)
        )

    def booked(self) -> set[tuple[str, str]]:
        """Attempts and kinds of what this ledger holds."""
        said = (entry.statement for entry in self.state.ledger.entries())
        return {(one.attempt_id, one.kind) for one in said if isinstance(one, Statement)}

    def posted(self) -> set[str]:
        """Attempts that this ledger holds posted."""
        return {attempt_id for attempt_id, kind in self.booked() if kind == "post"}

    def keep_post(self, said: Statement) -> None:
        """The post of it was signed here."""
        self.posts.setdefault(said.attempt_id, FILTER.cost_units(said.release))

    def export_copy(self) -> int:
        """Copy the ledger; the copy's number."""
        path = self.folder / f"copy{len(self.copies)}.db"
        self.state._connection.execute("VACUUM INTO ?", (str(path),))
        self.copies.append(path)
        return len(self.copies) - 1

    def import_copy(self, number: int) -> list[str]:
        """The ledger is lost, and a copy takes its place; attempts that the copy holds reserved."""
        self.state.close()
        for suffix in ("-wal", "-shm"):
            Path(f"{self.folder / 'state.db'}{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self.copies[number], self.folder / "state.db")
        self._open_state()
        live = self.state.attempts.live()
        reserved = [row.order.attempt_id for row in live if row.state == "reserved"]
        self.doubted.update(reserved)
        self.state.become_copy()
        self.forgotten |= self.posts.keys() - self.posted()
        return reserved

    def _open_state(self) -> None:
        self.state = State(self.folder / "state.db", self.name, self.key)
