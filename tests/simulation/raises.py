"""Two stewards raise a limit in virtual time: what `feddp agent limit` runs, on a node's disk.

People work whether or not the agent runs; their commands are the product's. What they leave in a
file, and their keys, are kept in memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from node_agent.ledger import proposals, raising
from node_agent.ledger.coordinator_limits import CoordinatorLimits
from node_agent.ledger.proposals import Proposal
from protos.errors import FeddpError
from tests.simulation.hospital import PEOPLE
from tests.simulation.stores import Seam

if TYPE_CHECKING:
    from tests.simulation.node_side import Node
    from tests.simulation.world import World

LIMIT_MAX = 40.0
TRIES = 3
"""Of people who find that what they signed is about another state of things."""

REFUSALS = {"PROPOSAL_STALE", "NOT_A_RAISE", "NOTHING_PROMISED", "NOT_AGREED"}
"""Where the policy, or the account, has changed meanwhile."""

ANNA, BERT = (Path(name) for name in PEOPLE)


class Interrupted(Exception):
    """A steward's command was killed."""


class Desk:
    """What lies on the stewards' desks: the files of raises, and the seams of their commands."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._files: dict[Path, Proposal] = {}
        self.at_work: dict[str, list[Raise]] = {}

    def seams(self) -> list[Seam]:
        """Folders, keys and files of the product, for as long as the seed is played."""
        files = SimpleNamespace(
            load=self._files.__getitem__,
            write=self._files.__setitem__,
            replace_file=self._files.__setitem__,
            account_in=proposals.account_in,
        )
        return [
            (raising, "_at", self._at),
            (raising, "Steward", lambda folder: self._world.nodes[folder.root.name].steward),
            (raising, "load_ledger_key", lambda file: PEOPLE[file.name]),
            (raising, "proposals", files),
            (CoordinatorLimits, "forget", self._last_step(CoordinatorLimits.forget)),
        ]

    @contextlib.contextmanager
    def _at(self, path: Path, account: str, *, to_write: bool = False) -> Iterator[Any]:
        node = self._world.nodes[path.name]
        yield raising._here(node.disk_.state, node.steward, node.name, account)

    def _last_step(
        self, forget: Callable[[CoordinatorLimits, str], None]
    ) -> Callable[[CoordinatorLimits, str], None]:
        """The command may be killed in the middle of its transaction, with the raise written."""

        def last_step(limits: CoordinatorLimits, account: str) -> None:
            forget(limits, account)
            if self._world.nodes[account.partition("/")[0]].strike("raise_interrupted"):
                raise Interrupted("before the commit")

        return last_step

    def begin(self, node: "Node") -> None:
        """One steward of a node wants more for one of its accounts."""
        Raise(self._world, node, self._world.random.choice(list(node.steward.limits))).begin()

    def hurry(self, node: "Node") -> None:
        """Whoever is at work for a node takes the next step now."""
        for one in list(self.at_work.get(node.name, [])):
            one.go_on()

    @property
    def busy(self) -> bool:
        """Whether anybody is at work."""
        return any(self.at_work.values())


class Raise:
    """One raise, from the wish to the ledger."""

    def __init__(self, world: "World", node: "Node", account: str) -> None:
        self._world, self._node, self._account = world, node, account
        self._root, self._file = Path(node.name), Path(f"raise {world.events} {account}")
        self._tries = 0
        self._next: Callable[[], None] | None = None

    def begin(self) -> None:
        """Write the number that is wanted, and go to the other steward."""
        dice, steward = self._world.random, self._node.steward
        wanted = min(LIMIT_MAX, steward.limits[self._account] * dice.choice([1.5, 2.0, 4.0]))
        steward.write_limit(self._account, wanted)
        self._note(f"wants {wanted:g}")
        self._world.desk.at_work.setdefault(self._node.name, []).append(self)
        self._then(self._propose)

    def go_on(self) -> None:
        """Take the next step."""
        step, self._next = self._next, None
        if step is None:
            return
        try:
            step()
        except Interrupted:
            self._note("interrupted")
            self._then(step)
        except FeddpError as error:
            self._refused(error)

    def _then(self, step: Callable[[], None]) -> None:
        self._next = step

        def due() -> None:
            if self._next is step:
                self.go_on()

        self._world.later(self._world.random.uniform(0.05, 12.0), due)

    def _propose(self) -> None:
        raising.propose(self._root, self._account, ANNA.name, ANNA, "a study", self._file)
        self._then(self._approve)

    def _approve(self) -> None:
        if self._world.random.random() < 0.2:
            self._alone()
        raising.approve(self._root, self._file, BERT.name, BERT)
        self._then(self._record)

    def _alone(self) -> None:
        """One who has asked cannot agree, nor apply what nobody agreed to."""
        for alone in (
            lambda: raising.approve(self._root, self._file, ANNA.name, ANNA),
            lambda: raising.record(self._root, self._file),
        ):
            try:
                alone()
            except FeddpError as error:
                if error.reason not in {"ONE_PERSON", *REFUSALS}:
                    raise
            else:
                self._world.checker.broken("two-people", f"{ANNA.name} raises a limit alone")

    def _record(self) -> None:
        limits = self._world.checker.limits
        if self._world.random.random() < 0.2:
            raising.record(self._root, self._file, dry_run=True)
            limits.look(self._node.disk_)
        raising.record(self._root, self._file)
        limits.recorded(self._node.disk_, f"{self._node.name}/{self._account}")
        self._world.faults.note("raise_recorded")
        self._note("recorded")
        if self._node.strike("raise_interrupted"):
            self._then(self._record_again)
        else:
            self._over()

    def _record_again(self) -> None:
        """Whoever did not hear that it is recorded says it once more."""
        try:
            raising.record(self._root, self._file)
        except FeddpError as error:
            if error.reason not in REFUSALS:
                raise
            self._over()
        else:
            self._world.checker.broken("raised-once", f"{self._file} is recorded twice")

    def _refused(self, error: FeddpError) -> None:
        self._note(f"refused: {error.reason}")
        if error.reason not in REFUSALS:
            self._world.checker.broken("raise-refused", f"{self._file}: {error.message}")
        if error.reason == "PROPOSAL_STALE" and self._tries < TRIES:
            self._tries += 1
            self._world.faults.note("raise_stale")
            self._then(self._propose)
        else:
            self._over()

    def _over(self) -> None:
        self._world.desk.at_work[self._node.name].remove(self)

    def _note(self, text: str) -> None:
        self._world.note(f"{self._node.name} raise of {self._account}: {text}")
