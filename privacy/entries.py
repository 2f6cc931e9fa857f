"""Ledger statements and entries: canonical bytes, hash chain and signatures.

docs/ledger.md gives the canonical bytes for those who check them with other tools.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from operator import attrgetter, itemgetter
from typing import Any, Final, Literal, NamedTuple, get_args

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.canonical import (
    COUNT_MAX,
    DOMAIN,
    SIGNATURE_BYTES,
    TEXT_MAX,
    check_text,
    invalid,
    is_hex,
)
from privacy.canonical import GENESIS as GENESIS
from privacy.canonical import is_signed as is_signed
from privacy.limits import LimitChange, change_of
from privacy.releases import Mechanism, Release
from protos.errors import Malformed

Kind = Literal["reserve", "post", "void"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

EntryKind = Literal["reserve", "post", "void", "limit"]


@dataclass(frozen=True, slots=True)
class Statement:
    """What the node signs: one attempt's release, and whether it is reserved, posted or void.

    Attributes:
        account: "NODE/NAME", the patient population that pays.
        round: from 1; 0 for a release outside a round.
        unit: whose presence is protected: "patient".
        declared_n: the record count that the data steward typed; never counted.

    Raises:
        Malformed: STATEMENT_INVALID, or RELEASE_INVALID for the last four fields.
    """

    kind: Kind
    attempt_id: str
    project: str
    node: str
    account: str
    dataset: str
    job_id: str
    round: int
    unit: str
    declared_n: int
    mechanism: Mechanism
    noise_multiplier: float | None
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise invalid("kind is reserve, post or void")
        # The quick look first: a ledger has millions of statements, and nearly all are plain.
        named = (self.attempt_id, self.project, self.node, self.account, self.unit)
        try:
            together = "".join((*named, self.dataset, self.job_id))
        except TypeError:
            together = ""
        if not 0 < len(together) <= TEXT_MAX or not together.isascii() or "" in named:
            self._check_texts()
        for name, value in (("round", self.round), ("declared_n", self.declared_n)):
            if type(value) is not int or not 0 <= value <= COUNT_MAX:
                raise invalid(f"{name} is a whole number, not negative")
        if self.declared_n < 1 and self.mechanism != "no_data":
            raise invalid("declared_n is at least 1 where data is read")
        release = self.release
        # One release has one spelling, so that the same statement always has the same bytes.
        object.__setattr__(self, "noise_multiplier", release.noise_multiplier)
        object.__setattr__(self, "sample_rate", release.sample_rate)

    def _check_texts(self) -> None:
        for name in ("attempt_id", "project", "node", "account", "unit"):
            check_text(name, getattr(self, name), length_min=1)
        for name in ("dataset", "job_id"):
            check_text(name, getattr(self, name), length_min=0)

    @property
    def release(self) -> Release:
        """What leaves, or left, the node."""
        fields = (self.mechanism, self.noise_multiplier, self.sample_rate, self.steps)
        try:
            return _release(*fields)
        except TypeError:  # a list or so, which cannot be looked up: it is no release either
            return Release(*fields)

    def continues(self, reserve: "Statement") -> bool:
        """Whether both have the same fields but for their kinds; then their texts are the same."""
        return _BESIDE_KIND(self) == _BESIDE_KIND(reserve)

    def resolved(self, kind: Kind) -> "Statement":
        """The same statement with another kind."""
        return replace(self, kind=kind)

    def fields(self) -> dict[str, Any]:
        """Every field by its name, in the ledger's order."""
        return {name: getattr(self, name) for name in STATEMENT_FIELDS}

    def canonical(self) -> bytes:
        """The bytes that a node signs."""
        return self.text().canonical(self.kind)

    def digest(self) -> str:
        """BLAKE3 of the statement without its kind: what reserve, post and void have in common."""
        return self.text().digest()

    def text(self) -> "StatementText":
        """The statement written out, for all that is made of it."""
        noise = self.noise_multiplier
        return StatementText(
            f'{{"account":{_quoted(self.account)},"attempt_id":{_quoted(self.attempt_id)},'
            f'"dataset":{_quoted(self.dataset)},"declared_n":{self.declared_n},'
            f'"job_id":{_quoted(self.job_id)},"kind":"',
            f'","mechanism":"{self.mechanism}","node":{_quoted(self.node)},'
            f'"noise_multiplier":{"null" if noise is None else float.__repr__(noise)},',
            f'"project":{_quoted(self.project)},"round":{self.round},'
            f'"sample_rate":{float.__repr__(self.sample_rate)},',
            f'"steps":{self.steps},"unit":{_quoted(self.unit)}}}',
        )


class StatementText(NamedTuple):
    """A statement as JSON in four parts, cut where its kind, `prev_hash` and `seq` go.

    JSON: keys sorted, no spaces, ASCII only, floats as Python prints them; written out by hand
    because verifying a ledger makes three texts of each entry, and `json.dumps` takes most of the
    time of each. A test compares them with `json.dumps`.
    """

    until_kind: str
    until_prev_hash: str
    until_seq: str
    rest: str

    def canonical(self, kind: Kind) -> bytes:
        """The bytes that a node signs."""
        text = f"{self.until_kind}{kind}{self.until_prev_hash}{self.until_seq}{self.rest}"
        return DOMAIN + text.encode("ascii")

    def digest(self) -> str:
        """See `Statement.digest`."""
        return blake3(self.canonical("reserve")).hexdigest()

    def entry_hash(self, kind: Kind, seq: int, prev_hash: str) -> str:
        """See `entry_hash`."""
        text = (
            f'{self.until_kind}{kind}{self.until_prev_hash}"prev_hash":{_quoted(prev_hash)},'
            f'{self.until_seq}"seq":{seq},{self.rest}'
        )
        return blake3(DOMAIN + text.encode("ascii")).hexdigest()


@lru_cache(maxsize=1024, typed=True)
def _release(*fields: Any) -> Release:
    """Of many statements a few releases are made."""
    return Release(*fields)


STATEMENT_FIELDS: Final = tuple(Statement.__dataclass_fields__)
_BESIDE_KIND: Final = attrgetter(*(one for one in STATEMENT_FIELDS if one != "kind"))
_FIELDS_OF: Final = itemgetter(*STATEMENT_FIELDS)
ENTRY_FIELDS: Final = ("seq", *STATEMENT_FIELDS, "prev_hash", "hash", "node_signature")
_ENDS: Final = ("seq", "prev_hash", "hash", "node_signature")
"""What an entry adds to its statement."""
_ENDS_OF: Final = itemgetter(*_ENDS)
_SIGNATURE_CHARS: Final = 2 * SIGNATURE_BYTES
_HASHES_BYTES: Final = len(GENESIS)
"""Of two hashes: two digits are a byte."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an account's chain.

    Attributes:
        statement: of an attempt, or a raise of the account's limit.
        seq: position in the account's chain, from 1.
        prev_hash: `hash` of the entry before; GENESIS for the first.
        hash: BLAKE3 over the statement, `seq` and `prev_hash`.
        node_signature: Ed25519 over `statement.canonical()`; empty until the node has signed.
    """

    seq: int
    statement: Statement | LimitChange
    prev_hash: str
    hash: str
    node_signature: bytes = b""


def append(
    statement: Statement | LimitChange, prev: Entry | None, node_signature: bytes = b""
) -> Entry:
    """The entry that follows `prev` (None: the account's first).

    Raises:
        Malformed: STATEMENT_INVALID, `prev` belongs to another account.
    """
    if prev is not None and prev.statement.account != statement.account:
        raise invalid("an entry follows one of its own account")
    seq, prev_hash = (1, GENESIS) if prev is None else (prev.seq + 1, prev.hash)
    digest = entry_hash(seq, prev_hash, statement)
    return Entry(seq, statement, prev_hash, digest, node_signature)


def entry_hash(seq: int, prev_hash: str, statement: Statement | LimitChange) -> str:
    """BLAKE3, hexadecimal, over the canonical bytes of the statement, `seq` and `prev_hash`."""
    if isinstance(statement, LimitChange):
        return statement.entry_hash(seq, prev_hash)
    return statement.text().entry_hash(statement.kind, seq, prev_hash)


def sign(key: Ed25519PrivateKey, statement: Statement | LimitChange) -> bytes:
    """The node's signature over a statement, 64 bytes."""
    return key.sign(statement.canonical())


def signature_ok(public_key: bytes, statement: Statement | LimitChange, signature: bytes) -> bool:
    """Whether the 32 raw bytes of `public_key` signed exactly this statement."""
    return is_signed(public_key, statement.canonical(), signature)


def to_json(entry: Entry) -> dict[str, Any]:
    """Flat, with the field names of LedgerEntry in ledger.proto; the signature in hexadecimal."""
    return {
        "seq": entry.seq,
        **entry.statement.fields(),
        "prev_hash": entry.prev_hash,
        "hash": entry.hash,
        "node_signature": entry.node_signature.hex(),
    }


def from_json(value: Mapping[str, Any]) -> Entry:
    """The entry that `to_json` gave; every field present, none besides, one spelling of each.

    Raises:
        Malformed: ENTRY_INVALID, STATEMENT_INVALID or RELEASE_INVALID.
    """
    if type(value) is not dict and not isinstance(value, Mapping):
        raise Malformed("ENTRY_INVALID", "An entry is a set of named fields.")
    is_limit = value.get("kind") == LimitChange.kind
    try:
        seq, prev_hash, digest, signature = _ENDS_OF(value)
        # As many names as there are, and each of them there: no other is.
        fields = None if is_limit else _FIELDS_OF(value)
    except KeyError:
        raise _wrong_fields() from None
    if not is_limit and len(value) != len(ENTRY_FIELDS):
        raise _wrong_fields()
    if type(seq) is not int or not 1 <= seq <= COUNT_MAX:
        raise Malformed("ENTRY_INVALID", "seq is a whole number from 1.")
    signature_bytes = _signature_of(prev_hash, digest, signature)
    statement: Statement | LimitChange
    if fields is None:
        statement = change_of({name: one for name, one in value.items() if name not in _ENDS})
    else:
        statement = Statement(*fields)
    return Entry(seq, statement, prev_hash, digest, signature_bytes)


def _wrong_fields() -> Malformed:
    return Malformed("ENTRY_INVALID", f"An entry has the fields {', '.join(ENTRY_FIELDS)}.")


def _signature_of(prev_hash: object, digest: object, signature: object) -> bytes:
    """The signature's bytes; all three are lower-case hexadecimal of their length."""
    # All three at one look, since nearly all are plain; then which of them is not.
    if isinstance(prev_hash, str) and isinstance(digest, str) and isinstance(signature, str):
        hashes, chars = len(prev_hash) == len(digest) == len(GENESIS), len(signature)
        if hashes and chars in (0, _SIGNATURE_CHARS):
            together = prev_hash + digest + signature
            found = _bytes_of(together)
            if found is not None and found.hex() == together:  # spaces and capitals are let through
                return found[_HASHES_BYTES:]
    for name, one in (("prev_hash", prev_hash), ("hash", digest)):
        if not isinstance(one, str) or not is_hex(one) or len(one) != len(GENESIS):
            raise Malformed("ENTRY_INVALID", f"{name} is 64 lower-case hexadecimal digits.")
    raise Malformed("ENTRY_INVALID", "node_signature is empty or 128 hexadecimal digits.")


def _bytes_of(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None
