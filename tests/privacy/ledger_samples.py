"""Statements, chains and keys for tests of the ledger."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.filters import make_filter
from privacy.ledger import Entry, Statement, append, sign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ACCOUNT = "alpha/patients"
FILTER = make_filter("gdp", 0, 1.0, 1e-5)
FILTERS = {ACCOUNT: FILTER}
KEYS = {"alpha": PUBLIC}
TENTH = (10 / 0.0718514) ** 0.5
"""Noise multiplier of one step that costs about a tenth of FILTER's limit."""


def statement(attempt: str = "a1", kind: str = "reserve", **changes: Any) -> Statement:
    fields: dict[str, Any] = {
        "kind": kind,
        "attempt_id": attempt,
        "project": "default",
        "node": "alpha",
        "account": ACCOUNT,
        "dataset": "heart-disease",
        "job_id": "job-1",
        "round": 1,
        "unit": "patient",
        "declared_n": 199,
        "mechanism": "gaussian",
        "noise_multiplier": TENTH,
        "sample_rate": 1.0,
        "steps": 1,
    }
    return Statement(**{**fields, **changes})


def chain(*statements: Statement, key: Ed25519PrivateKey | None = KEY) -> list[Entry]:
    entries: list[Entry] = []
    for one in statements:
        signature = b"" if key is None else sign(key, one)
        entries.append(append(one, entries[-1] if entries else None, signature))
    return entries


def good_chain() -> list[Entry]:
    """Two posted, one void, one open; the second post without signature."""
    steps = [("a1", "reserve"), ("a2", "reserve"), ("a1", "post"), ("a3", "reserve")]
    entries = chain(*(statement(a, k) for a, k in [*steps, ("a3", "void"), ("a4", "reserve")]))
    return [*entries, append(statement("a2", "post"), entries[-1])]
