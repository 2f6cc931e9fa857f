"""Fields that an export or a node's file may have: what nothing here proves is not passed over."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from feddp.cli.output import quoted
from protos.errors import Malformed

EXPORT: Final = frozenset({"accounts", "witnesses", "entries"})
WITNESSES: Final = frozenset({"coordinator_ledger_key", "restorations", "heads", "checkpoints"})
NODE_FILE: Final = frozenset(
    (
        *("node", "ledger_public_key", "coordinator_ledger_key", "accounts", "heads"),
        *("checkpoints", "epochs", "before", "disputes"),
    )
)
PLACE: Final = frozenset({"account", "seq"})
HEAD: Final = PLACE | {"hash"}
SIGNED_HEAD: Final = HEAD | {"node_signature"}
CHECKPOINT: Final = frozenset({"number", "prev_hash", "root", "signature"})
EPOCH: Final = frozenset(
    (
        *("number", "restored_at_s", "backup_made_at_s", "checkpoint_number"),
        *("checkpoint_hash", "heads_root", "prev_hash", "signature"),
    )
)
PAST: Final = frozenset({"since_s", "until_s"})
TERMS: Final = frozenset(
    (
        *("account", "filter", "rdp_order", "delta", "epsilon_limit_highest", "node_signature"),
        *("epsilon_limit", "raises", "limit_signature"),
    )
)
DISPUTE: Final = PLACE | {"text", "at_s"}


def require_known(value: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse an object with another field than these.

    Args:
        what: the object, for people, with its place.

    Raises:
        Malformed: FIELD_UNKNOWN.
    """
    other = next((name for name in value if name not in known), None)
    if other is not None:
        raise Malformed("FIELD_UNKNOWN", unknown_said(other, what))


def unknown_said(name: str, what: str) -> str:
    """What it means that a field is there which none of this version has."""
    return (
        f"{what} has a field {quoted(name)}, which none of this version has, so that nothing here "
        "proves it; take nothing from it. Print the file anew; if a newer version of feddp wrote "
        "the field, verify with that"
    )


def head_said(value: Mapping[str, Any], what: str = "the head") -> str:
    """A head or place by its account and entry, as far as it tells them."""
    return f"{what} {quoted(value.get('account'))}, entry {quoted(value.get('seq'))},"


def checkpoint_said(value: Mapping[str, Any]) -> str:
    """A checkpoint by its number, as far as it tells it."""
    return f"checkpoint {quoted(value.get('number'))}"


def epoch_said(value: Mapping[str, Any]) -> str:
    """A restoration by its number, as far as it tells it."""
    return f"epoch {quoted(value.get('number'))}"
