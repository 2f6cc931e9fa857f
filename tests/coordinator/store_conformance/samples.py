"""One node, one account, and statements that it pays for."""

from typing import get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.store import ledger, people
from coordinator.store.database import Database
from privacy.ledger import Kind, Statement

NODE, ACCOUNT = "a", "a/patients"
SPIFFE = "spiffe://test.example/node/a"
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
KINDS = get_args(Kind)


def invite(database: Database, secret_hash: str, *, now_s: float = 0.0) -> None:
    """A token for the node."""
    database.write_now(
        lambda c: people.invite(
            c, NODE, "hpc", secret_hash, spiffe_id=SPIFFE, now_s=now_s, expires_at_s=now_s + 1000
        )
    )


def open_account(database: Database, account: str = ACCOUNT, epsilon: float = 1.0) -> None:
    """An account that counts full batches."""
    database.write_now(lambda c: ledger.open_account(c, account, NODE, "gdp", 0, epsilon, 1e-5))


def with_account(database: Database) -> None:
    """The node, with the token "s", and its account of epsilon 1."""
    invite(database, "s")
    open_account(database)


def statement(
    attempt_id: str, noise: float = 20.0, kind: Kind = "reserve", account: str = ACCOUNT
) -> Statement:
    """A full-batch release of 5 steps; at noise 20 about 0.17 of the account's mu squared."""
    return Statement(
        kind=kind,
        attempt_id=attempt_id,
        project="default",
        node=NODE,
        account=account,
        dataset="heart",
        job_id="j",
        round=1,
        unit="patient",
        declared_n=100,
        mechanism="gaussian",
        noise_multiplier=noise,
        sample_rate=1.0,
        steps=5,
    )


def kinds(database: Database, account: str = ACCOUNT) -> list[str]:
    """Kinds in an account's chain."""
    return database.read_now(lambda c: [e.statement.kind for e in ledger.chain(c, account)])
