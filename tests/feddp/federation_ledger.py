"""A ledger of three hospitals, their keys and their files, to be changed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from feddp.cli.ledgers import Ledger
from feddp.cli.verify.derived import exported
from feddp.cli.verify.witnesses import SignedHead, Witnesses
from privacy import ledger
from privacy.epochs import Epoch, sign_epoch
from privacy.figures import figures_of
from privacy.filters import make_filter
from privacy.heads import Checkpoint, Head, LimitInForce, Terms, head_of, sign_checkpoint

BUDGET = make_filter("gdp", 0, 2.0, 1e-5)
NODES = ("alpha", "beta", "gamma")


def raw(key: Ed25519PrivateKey) -> bytes:
    """The public half."""
    return key.public_key().public_bytes_raw()


def statement(kind: ledger.Kind, node: str, attempt: int) -> ledger.Statement:
    """One full-batch release of five steps."""
    return ledger.Statement(
        kind=kind,
        attempt_id=f"{node}-{attempt}",
        project="default",
        node=node,
        account=f"{node}/patients",
        dataset="heart-disease",
        job_id="j1",
        round=1,
        unit="patient",
        declared_n=199,
        mechanism="gaussian",
        noise_multiplier=20.0,
        sample_rate=1.0,
        steps=5,
    )


def account(node: str, key: Ed25519PrivateKey, entries: list[ledger.Entry]) -> dict[str, Any]:
    """What a coordinator says of an account with these entries, none of them open."""
    posted = [one.statement for one in entries if one.statement.kind == "post"]
    releases = [one.release for one in posted if isinstance(one, ledger.Statement)]
    figures = figures_of(releases, BUDGET)
    assert figures is not None
    return {
        "account": f"{node}/patients",
        "node": node,
        "data_sets": ["heart-disease"],
        "filter": "gdp",
        "rdp_order": 0,
        "epsilon_limit": 2.0,
        "delta": 1e-5,
        "epsilon_spent": figures.running,
        "pending_units": 0,
        "posted_units": sum(BUDGET.cost_units(one) for one in releases),
        "limit_units": BUDGET.limit_units,
        "guarantee": True,
        "entries": len(entries),
        "head_hash": entries[-1].hash if entries else ledger.GENESIS,
        "ledger_public_key": raw(key).hex(),
        "epsilon_limit_highest": 2.0,
        "epsilon_booked": figures.booked,
        "epsilon_naive": figures.naive,
        "efficiency": figures.efficiency,
        "booked_to_naive": figures.booked_to_naive,
        "epsilon_start": 0.0,
        "shares": [],
    }


def refit(one: dict[str, Any]) -> None:
    """Make every figure of an account with two posts fit its filter, limit and delta."""
    filter_ = make_filter(one["filter"], one["rdp_order"], one["epsilon_limit"], one["delta"])
    release = statement("post", str(one["node"]), 1).release
    figures = figures_of([release, release], filter_)
    assert figures is not None
    one["limit_units"], one["epsilon_start"] = filter_.limit_units, filter_.epsilon_start
    one["posted_units"] = 2 * filter_.cost_units(release)
    one["epsilon_spent"], one["epsilon_booked"] = figures.running, figures.booked
    one["epsilon_naive"], one["efficiency"] = figures.naive, figures.efficiency
    one["booked_to_naive"] = figures.booked_to_naive


@dataclass
class Federation:
    """Three hospitals' ledger, and the keys behind it.

    Attributes:
        checkpoints: one after each attempt of every node, and the first before any.
        moved: what each is made of.
    """

    keys: dict[str, Ed25519PrivateKey]
    coordinator: Ed25519PrivateKey
    chains: dict[str, list[ledger.Entry]]
    checkpoints: list[Checkpoint]
    moved: list[list[tuple[str, int]]]

    def export(self) -> Any:
        """As `budget ledger --json` prints it, to be changed."""
        heads = [
            SignedHead(head, self.keys[node].sign(head.canonical()))
            for node, entries in self.chains.items()
            for head in map(head_of, entries[-1:])
        ]
        witnesses = Witnesses(
            "the coordinator", heads, self.checkpoints, self.moved, raw(self.coordinator)
        )
        accounts = [account(node, self.keys[node], self.chains[node]) for node in NODES]
        entries = [one for node in NODES for one in self.chains[node]]
        made = Ledger(entries, len(entries), accounts, {}, {}, witnesses)
        return json.loads(json.dumps(made.export()))

    def heads(self, node: str) -> Any:
        """As `agent ledger heads --json` prints it at a node."""
        key, head = self.keys[node], head_of(self.chains[node][-1])
        terms = Terms(f"{node}/patients", "gdp", 0, 1e-5, 2.0)
        limit = LimitInForce(f"{node}/patients", 2.0, 0)
        seen = Witnesses(
            node,
            [SignedHead(head, key.sign(head.canonical()))],
            self.checkpoints,
            None,
            raw(self.coordinator),
        )
        return {
            "node": node,
            "ledger_public_key": raw(key).hex(),
            **seen.export(),
            "accounts": [
                {
                    **asdict(terms),
                    "node_signature": key.sign(terms.canonical()).hex(),
                    **self.signed_limit(limit),
                }
            ],
            "disputes": [],
        }

    def restored(self, places: Sequence[Head]) -> Epoch:
        """What the coordinator signs when it is restored with chains up to these places."""
        return sign_epoch(
            self.coordinator,
            None,
            self.checkpoints[-1],
            [one.leaf() for one in places],
            restored_at_s=1000,
            backup_made_at_s=500,
        )

    def signed_limit(self, limit: LimitInForce) -> dict[str, Any]:
        """What a node's file says of the limit of an account."""
        key = self.keys[limit.account.partition("/")[0]]
        return {**asdict(limit), "limit_signature": key.sign(limit.canonical()).hex()}

    def cut(self, node: str, attempts: int) -> None:
        """Take an account's last attempts away, as whoever may write there can: sums and heads
        that are the coordinator's own word are put right."""
        self.chains[node] = self.chains[node][: -2 * attempts]


def empty_account(federation: "Federation", name: str) -> dict[str, Any]:
    """The row of an account that nothing was booked on, but for what no export has."""
    node = name.partition("/")[0]
    row = exported(account(node, federation.keys[node], []))
    return {**row, "account": name, "epsilon_spent": 0.0, "efficiency": None}


def two_attempts_each(unused: Sequence[str] = ()) -> Federation:
    """Two attempts of each hospital, all signed, and three checkpoints.

    Args:
        unused: further accounts, without entries.
    """
    keys = {node: Ed25519PrivateKey.generate() for node in NODES}
    made = Federation(keys, Ed25519PrivateKey.generate(), {n: [] for n in NODES}, [], [])
    for attempt in range(3):
        for node in NODES if attempt else ():
            for kind in ("reserve", "post"):
                one = statement(kind, node, attempt)  # type: ignore[arg-type]
                chain = made.chains[node]
                last = chain[-1] if chain else None
                chain.append(ledger.append(one, last, ledger.sign(keys[node], one)))
        heads = [
            head_of(chain[-1]) if chain else Head(f"{node}/patients")
            for node, chain in made.chains.items()
        ]
        heads += map(Head, unused)
        before = made.checkpoints[-1] if made.checkpoints else None
        leaves = [one.leaf() for one in heads]
        made.checkpoints.append(sign_checkpoint(made.coordinator, before, leaves))
        places = [(one.account, one.seq) for one in heads]
        made.moved.append([one for one in places if one[1] or not before])
    return made
