"""SPIFFE IDs: the one name by which a certificate says whose it is."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from protos.errors import Malformed

Kind = Literal["node", "user", "coordinator", "router", "gateway"]

_NAMED = ("node", "user")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,253}[a-z0-9])?")
_SHOWN_CHARACTERS_MAX = 80


def check_name(name: str) -> str:
    """`name` itself, if a node or user may have it.

    Raises:
        Malformed: NAME_INVALID.
    """
    if not _NAME.fullmatch(name):
        raise Malformed(
            "NAME_INVALID",
            f"{_shown(name)} cannot be a name; use 1 to 63 of a-z, 0-9 and - (no capitals, "
            "no umlauts, no dots), with no - at either end",
        )
    return name


def check_trust_domain(text: str) -> str:
    """`text` itself, if it can be a trust domain.

    Raises:
        Malformed: SPIFFE_INVALID.
    """
    if not _TRUST_DOMAIN.fullmatch(text):
        raise Malformed(
            "SPIFFE_INVALID",
            f"{_shown(text)} cannot be a trust domain; use a name such as hospitals.example, in "
            "lower-case letters, digits, dots, hyphens and underscores",
        )
    return text


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """Who a certificate belongs to.

    Attributes:
        trust_domain: the federation that issued it, such as `hospitals.example`.
        kind: what it is; only a node and a user have a name.
        name: the node's or user's name; empty for the others.

    Raises:
        Malformed: NAME_INVALID, SPIFFE_INVALID.
    """

    trust_domain: str
    kind: Kind
    name: str = ""

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        if self.kind in _NAMED:
            check_name(self.name)
        elif self.kind not in get_args(Kind) or self.name:
            raise Malformed(
                "SPIFFE_INVALID",
                f"there is no identity of kind {_shown(self.kind)} with the name "
                f"{_shown(self.name)}; a node and a user have a name, the others have none",
            )

    @classmethod
    def parse(cls, text: str) -> "SpiffeId":
        """Read exactly what `str()` writes; no other spelling of the same URI is accepted.

        Raises:
            Malformed: SPIFFE_INVALID.
        """
        trust_domain, _, path = text.removeprefix("spiffe://").partition("/")
        kind, _, name = path.partition("/")
        for known in get_args(Kind):
            if kind == known:
                try:
                    identity = cls(trust_domain, known, name)
                except Malformed:
                    break
                if str(identity) == text:
                    return identity
        raise Malformed(
            "SPIFFE_INVALID",
            f"{_shown(text)} is not an identity of this system; it must read "
            "spiffe://TRUST_DOMAIN/node/NAME, /user/NAME, /coordinator or /router",
        )

    def __str__(self) -> str:
        path = f"{self.kind}/{self.name}" if self.name else self.kind
        return f"spiffe://{self.trust_domain}/{path}"


def _shown(text: str) -> str:
    shown = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
    return ascii(shown)
