"""Statements, chains and keys for tests of the ledger."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.filters import make_filter
from privacy.ledger import Entry, LimitChange, Statement, append, sign
from privacy.limits import LimitTerms, sign_terms

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


def chain(*statements: Statement | LimitChange, key: Ed25519PrivateKey | None = KEY) -> list[Entry]:
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


ANNA = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
BERT = Ed25519PrivateKey.from_private_bytes(bytes([2] * 32))


def raised(
    old: float = 1.0,
    new: float = 2.0,
    *,
    asked: tuple[str, Ed25519PrivateKey] = ("anna", ANNA),
    agreed: tuple[str, Ed25519PrivateKey] = ("bert", BERT),
    **changes: Any,
) -> LimitChange:
    """The account's first raise, asked for by anna and agreed to by bert."""
    fields: dict[str, Any] = {
        "account": ACCOUNT,
        "node": "alpha",
        "number": 1,
        "filter": "gdp",
        "rdp_order": 0,
        "delta": 1e-5,
        "epsilon_limit_old": old,
        "epsilon_limit_new": new,
        "reason": "a second study",
        "asked_by": asked[0],
        "asked_key": asked[1].public_key().public_bytes_raw().hex(),
    }
    terms = LimitTerms(**{**fields, **changes})
    return LimitChange(
        terms,
        asked_signature=sign_terms(asked[1], terms),
        agreed_by=agreed[0],
        agreed_key=agreed[1].public_key().public_bytes_raw().hex(),
        agreed_signature=sign_terms(agreed[1], terms),
    )
