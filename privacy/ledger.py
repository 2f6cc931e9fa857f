"""The privacy ledger as others import it; each part is in a module of its own."""

from privacy.balance import Balance, Pending
from privacy.entries import (
    GENESIS,
    KINDS,
    Entry,
    EntryKind,
    Kind,
    Statement,
    append,
    entry_hash,
    from_json,
    sign,
    signature_ok,
    to_json,
)
from privacy.limits import LimitChange
from privacy.verification import Problem, Verification, verify

__all__ = [
    "GENESIS",
    "KINDS",
    "Balance",
    "Entry",
    "EntryKind",
    "Kind",
    "LimitChange",
    "Pending",
    "Problem",
    "Statement",
    "Verification",
    "append",
    "entry_hash",
    "from_json",
    "sign",
    "signature_ok",
    "to_json",
    "verify",
]
