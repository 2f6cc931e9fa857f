"""The fourth kind of ledger entry: an account's limit is raised, by two people of the hospital.

One of the stewards that the node's policy names asks, another agrees; both sign the same bytes,
and the node signs the whole. docs/ledger.md gives the bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.canonical import (
    COUNT_MAX,
    DOMAIN,
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    check_text,
    invalid,
    is_hex,
    is_signed,
)
from privacy.filters import Filter, make_filter
from protos.errors import FeddpError, Malformed

LIMIT: Final = "limit"
TERMS_DOMAIN: Final = b"feddp-ledger-limit-v1\n"

NAME_MAX: Final = 63
REASON_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class LimitTerms:
    """What two people of the hospital sign: an account's limit goes from one epsilon to another.

    Its form alone is checked here; `fault_of` says whether a raise holds.

    Attributes:
        account: "NODE/NAME".
        number: 1 for the account's first raise, then one more each time, so that what was signed
            for one raise serves for no other.
        filter, rdp_order, delta: how the account counts, which a raise never changes.
        epsilon_limit_old: at most the limit that the account's chain shows; lower where the
            steward had lowered it since, which is no entry.
        asked_by: a steward's name, as the node's policy has it.
        asked_key: this steward's raw Ed25519 public key, hexadecimal.

    Raises:
        Malformed: STATEMENT_INVALID.
    """

    account: str
    node: str
    number: int
    filter: str
    rdp_order: int
    delta: float
    epsilon_limit_old: float
    epsilon_limit_new: float
    reason: str
    asked_by: str
    asked_key: str

    def __post_init__(self) -> None:
        for name in ("account", "node"):
            check_text(name, getattr(self, name), length_min=1)
        check_text("asked_by", self.asked_by, length_min=1, length_max=NAME_MAX)
        check_text("reason", self.reason, length_min=1, length_max=REASON_MAX)
        if type(self.number) is not int or not 1 <= self.number <= COUNT_MAX:
            raise invalid("number is a whole number from 1")
        if not isinstance(self.filter, str) or type(self.rdp_order) is not int:
            raise invalid("filter is gdp or rdp, and rdp_order a whole number")
        for name in ("delta", "epsilon_limit_old", "epsilon_limit_new"):
            if type(getattr(self, name)) is not float:
                raise invalid(f"{name} is a number with a decimal point")
        _check_hex("asked_key", self.asked_key, PUBLIC_KEY_BYTES)
        try:
            self.filter_of(self.epsilon_limit_old)
            self.filter_of(self.epsilon_limit_new)
        except FeddpError as error:
            raise invalid(f"no account can count so: {error.message}") from None

    def filter_of(self, epsilon_limit: float) -> Filter:
        """The account's filter with this limit.

        Raises:
            Malformed: there is no such filter.
        """
        return make_filter(self.filter, self.rdp_order, epsilon_limit, self.delta)

    def fields(self) -> dict[str, Any]:
        """Every field by its name, in the ledger's order."""
        return {name: getattr(self, name) for name in TERMS_FIELDS}

    def canonical(self) -> bytes:
        """The bytes that both people sign."""
        return TERMS_DOMAIN + _json({"kind": LIMIT, **self.fields()})


@dataclass(frozen=True, slots=True)
class LimitChange:
    """What the node signs: the terms of a raise, and that two people have signed them.

    Attributes:
        asked_signature: by `terms.asked_key` over the terms, hexadecimal.
        agreed_by, agreed_key: another steward's name and key.
        agreed_signature: by that key over the same bytes, hexadecimal.

    Raises:
        Malformed: STATEMENT_INVALID.
    """

    kind: ClassVar[Literal["limit"]] = "limit"

    terms: LimitTerms
    asked_signature: str
    agreed_by: str
    agreed_key: str
    agreed_signature: str

    def __post_init__(self) -> None:
        check_text("agreed_by", self.agreed_by, length_min=1, length_max=NAME_MAX)
        _check_hex("agreed_key", self.agreed_key, PUBLIC_KEY_BYTES)
        for name in ("asked_signature", "agreed_signature"):
            _check_hex(name, getattr(self, name), SIGNATURE_BYTES)

    @property
    def account(self) -> str:
        """See `LimitTerms`."""
        return self.terms.account

    @property
    def node(self) -> str:
        """The node that holds the patients."""
        return self.terms.node

    def raised(self) -> Filter:
        """The account's filter with the new limit."""
        return self.terms.filter_of(self.terms.epsilon_limit_new)

    def fields(self) -> dict[str, Any]:
        """Every field by its name, in the ledger's order."""
        added = {name: getattr(self, name) for name in _ADDED_FIELDS}
        return {"kind": self.kind, **self.terms.fields(), **added}

    def canonical(self) -> bytes:
        """The bytes that the node signs, the people's signatures among them."""
        return DOMAIN + _json(self.fields())

    def digest(self) -> str:
        """BLAKE3 of the canonical bytes, hexadecimal: what a table may know the raise by."""
        return blake3(self.canonical()).hexdigest()

    def entry_hash(self, seq: int, prev_hash: str) -> str:
        """BLAKE3 over the fields, `seq` and `prev_hash`."""
        body = {**self.fields(), "seq": seq, "prev_hash": prev_hash}
        return blake3(DOMAIN + _json(body)).hexdigest()


TERMS_FIELDS: Final = tuple(LimitTerms.__dataclass_fields__)
_ADDED_FIELDS: Final = ("asked_signature", "agreed_by", "agreed_key", "agreed_signature")
CHANGE_FIELDS: Final = (*TERMS_FIELDS, *_ADDED_FIELDS)


def change_of(value: Mapping[str, Any]) -> LimitChange:
    """The change that `LimitChange.fields` gave: every field, and none besides.

    Raises:
        Malformed: ENTRY_INVALID, STATEMENT_INVALID.
    """
    if set(value) != {"kind", *CHANGE_FIELDS} or value["kind"] != LIMIT:
        raise Malformed(
            "ENTRY_INVALID", f"A limit entry has the fields kind, {', '.join(CHANGE_FIELDS)}."
        )
    terms = LimitTerms(**{name: value[name] for name in TERMS_FIELDS})
    return LimitChange(terms, **{name: value[name] for name in _ADDED_FIELDS})


def sign_terms(key: Ed25519PrivateKey, terms: LimitTerms) -> str:
    """One person's signature, hexadecimal."""
    return key.sign(terms.canonical()).hex()


def terms_signed(terms: LimitTerms, public_key: str, signature: str) -> bool:
    """Whether the key, hexadecimal, has signed these terms."""
    return is_signed(bytes.fromhex(public_key), terms.canonical(), bytes.fromhex(signature))


def fault_of(change: LimitChange, filter_: Filter, raises: int) -> str:
    """Why a raise does not hold, but for the node's signature; empty when it does.

    That the keys are the stewards' is what the node says: its policy names them, and it alone
    checks that.

    Args:
        filter_: of the account, at the limit that its chain shows before this entry.
        raises: how many limit entries are before it.
    """
    terms = change.terms
    if terms.number != raises + 1:
        return (
            f"raise {raises + 1} of this account would be next, and this is number {terms.number}:"
            " it was made for another moment, or is recorded already"
        )
    if (terms.filter, terms.rdp_order, terms.delta) != (
        filter_.kind,
        filter_.order,
        filter_.delta,
    ):
        return "the raise names another filter or delta than the account's, which never change"
    if terms.epsilon_limit_old > filter_.epsilon_limit:
        return (
            f"the raise goes on from a limit of {terms.epsilon_limit_old:g}, and the account's "
            f"was {filter_.epsilon_limit:g}"
        )
    if terms.epsilon_limit_new <= terms.epsilon_limit_old:
        return (
            f"a limit of {terms.epsilon_limit_new:g} does not raise one of "
            f"{terms.epsilon_limit_old:g}"
        )
    if same_person(terms.asked_by, terms.asked_key, change.agreed_by, change.agreed_key):
        return f"one person, {terms.asked_by}, has asked and agreed; it takes two"
    for name, key, signature in (
        (terms.asked_by, terms.asked_key, change.asked_signature),
        (change.agreed_by, change.agreed_key, change.agreed_signature),
    ):
        if not terms_signed(terms, key, signature):
            return f"the signature of {name} is not over this raise"
    return ""


def same_person(name: str, key: str, other_name: str, other_key: str) -> bool:
    """Whether two names are one but for their case, or two keys are one."""
    return name.casefold() == other_name.casefold() or key == other_key


def _check_hex(name: str, value: object, size: int) -> None:
    if not isinstance(value, str) or not is_hex(value) or len(value) != 2 * size:
        raise invalid(f"{name} is {2 * size} lower-case hexadecimal digits")


def _json(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")
