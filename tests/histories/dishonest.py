"""A coordinator that rewrites one account of its ledger, and hides it as well as it can."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from privacy.entries import GENESIS, Entry, entry_hash
from privacy.heads import Checkpoint, Head, sign_checkpoint
from privacy.ledger import Statement
from tests.attackers import drop_guards
from tests.histories.node import FILTER, Node
from tests.histories.world import World
from tests.integration.test_witness import row_of
from tests.node_agent.samples import order

KINDS: Final = ("project", "insert", "drop", "unpost", "swap", "uncharge", "cut")
"""What it rewrites: an attempt is another project's; one is made up; one is gone; a post is gone;
two entries change places; what was charged or voided without the node is gone; the end is gone."""

MADE_UP: Final = "forged"

Checkpoints = str
"""What becomes of its signed checkpoints: `keep`, or `resign` them so that they fit."""


def rewritten(rng: random.Random, chain: Sequence[Entry], node: Node, upto: int, kind: str) -> Any:
    """Another chain, different from some entry <= upto on; None where that kind is impossible.

    Args:
        kind: of KINDS.
    """
    if not 1 <= upto <= len(chain):
        return None
    at = rng.randrange(upto)
    said = [one.statement for one in chain]
    match kind:
        case "project":
            other = replace(chain[at].statement, project="other")
            changed = replace(chain[at], statement=other, node_signature=b"")
            return rehashed([*chain[:at], changed, *chain[at + 1 :]])
        case "insert":
            name = f"{MADE_UP}{rng.randrange(10**9)}"
            one = order(name, job_id=MADE_UP).statement(node.name, "reserve")
            made_up = [Entry(1, each, "", "", b"") for each in (one, one.resolved("post"))]
            return rehashed([*chain[:at], *made_up, *chain[at:]])
        case "drop":
            return _without(chain, said[at].attempt_id)
        case "unpost":
            posts = [each for each in range(upto) if said[each].kind == "post"]
            if not posts:
                return None
            gone = rng.choice(posts)
            return rehashed([*chain[:gone], *chain[gone + 1 :]])
        case "swap":
            return _swapped(chain, at)
        case "uncharge":
            names = (one.attempt_id for one in said[:upto])
            name = next((one for one in names if one not in node.posts), "")
            return _without(chain, name) if name else None
        case "cut":
            return rehashed(chain[:at])
    raise AssertionError(kind)


def rehashed(chain: Sequence[Entry]) -> list[Entry]:
    """The same statements, numbered and hashed so that they fit."""
    made: list[Entry] = []
    for seq, one in enumerate(chain, 1):
        prev_hash = made[-1].hash if made else GENESIS
        digest = entry_hash(seq, prev_hash, one.statement)
        made.append(Entry(seq, one.statement, prev_hash, digest, one.node_signature))
    return made


def _without(chain: Sequence[Entry], attempt_id: str) -> list[Entry]:
    return rehashed([one for one in chain if one.statement.attempt_id != attempt_id])


def _swapped(chain: Sequence[Entry], at: int) -> list[Entry] | None:
    """Entry `at`, or the next one before it that belongs to another attempt, with the one after."""
    for first in range(min(at, len(chain) - 2), -1, -1):
        one, two = chain[first : first + 2]
        if one.statement.attempt_id != two.statement.attempt_id:
            return rehashed([*chain[:first], two, one, *chain[first + 2 :]])
    return None


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What the account becomes in the coordinator's tables."""

    world: World
    node: Node
    old: Sequence[Entry]
    new: Sequence[Entry]

    def write(self, checkpoints: Checkpoints) -> None:
        """As somebody does it who has the database and the ledger key."""

        def work(connection: Any) -> None:
            drop_guards(connection.connection.cursor())
            execute = connection.exec_driver_sql
            self._entries(execute)
            self._reservations(execute)
            self._countersignatures(execute)
            if checkpoints == "resign":
                self._resign(execute)

        self.world.database.write_now(work)

    def _entries(self, execute: Any) -> None:
        account = self.node.account
        execute("DELETE FROM entries WHERE account = ?", (account,))
        for one in self.new:
            _insert(execute, "entries", row_of(one))
        said = [one.statement for one in self.new]
        posted = sum(FILTER.cost_units(one.release) for one in said if one.kind == "post")
        head = self.new[-1].hash if self.new else GENESIS
        execute(
            "UPDATE accounts SET entries = ?, head_hash = ?, posted_units = ? WHERE account = ?",
            (len(self.new), head, posted, account),
        )

    def _reservations(self, execute: Any) -> None:
        account = self.node.account
        open_: dict[str, Statement] = {}
        for said in (one.statement for one in self.new):
            if said.kind == "reserve":
                open_[said.attempt_id] = said
            else:
                open_.pop(said.attempt_id, None)
        execute("DELETE FROM reservations WHERE account = ?", (account,))
        for name, said in open_.items():
            row = {"attempt_id": name, "account": account, "job_id": said.job_id}
            units = FILTER.cost_units(said.release)
            row |= {"units": units, "digest": said.digest(), "accounted": True}
            _insert(execute, "reservations", row)

    def _countersignatures(self, execute: Any) -> None:
        """Those that do not fit any more are thrown away."""
        account, hashes = self.node.account, {one.seq: one.hash for one in self.new}
        asked = "SELECT seq, hash FROM countersignatures WHERE account = ?"
        for seq, digest in execute(asked, (account,)).fetchall():
            if hashes.get(seq) != digest:
                execute(
                    "DELETE FROM countersignatures WHERE account = ? AND seq = ?", (account, seq)
                )

    def _resign(self, execute: Any) -> None:
        """Every checkpoint anew, each with the head that the account now has in its place."""
        seq_of = {self._leaf(one): one.seq for one in self.old}
        asked = "SELECT number, leaves, made_at FROM checkpoints ORDER BY number"
        rows = execute(asked).fetchall()
        execute("DELETE FROM checkpoints")
        before: Checkpoint | None = None
        for _, leaves, made_at in rows:
            made = sorted(
                self._leaf_at(seq_of[leaf]) if leaf in seq_of else leaf
                for leaf in leaves.decode().split()
            )
            before = sign_checkpoint(self.world.key, before, made)
            row = {"number": before.number, "prev_hash": before.prev_hash, "root": before.root}
            row |= {"signature": before.signature, "made_at": made_at}
            _insert(execute, "checkpoints", row | {"leaves": "\n".join(made).encode()})

    def _leaf_at(self, seq: int) -> str:
        known = min(seq, len(self.new))
        head = self.new[known - 1].hash if known else GENESIS
        return Head(self.node.account, known, head).leaf()

    def _leaf(self, entry: Entry) -> str:
        return Head(self.node.account, entry.seq, entry.hash).leaf()


def _insert(execute: Any, table: str, row: dict[str, Any]) -> None:
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608
