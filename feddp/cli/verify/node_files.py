"""What a node has seen, in a file from its hospital: read, and held against the ledger."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddp.cli.output import counted, quoted
from feddp.cli.verify import known_fields as fields
from feddp.cli.verify.history import here
from feddp.cli.verify.json_windows import once
from feddp.cli.verify.known_fields import require_known
from feddp.cli.verify.restorations import listed
from feddp.cli.verify.witnesses import NODE_FILES, Fault, Witnesses, from_json, whole_number
from privacy.canonical import bytes_of_hex
from privacy.heads import LimitInForce, Terms, short, signed_by
from protos.errors import Malformed, NotFound


@dataclass(frozen=True, slots=True)
class SignedTerms:
    """Terms and their node's signature."""

    terms: Terms
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedLimit:
    """The limit in force and its node's signature."""

    limit: LimitInForce
    signature: bytes


@dataclass(frozen=True, slots=True)
class NodeFile:
    """What `feddp agent ledger heads --json` printed at a node.

    Attributes:
        seen: heads and checkpoints; `seen.source` is the node.
        terms: of the node's own ledger, for each account that has entries there.
        limits: what its own ledger admits by; files of older agents have none.
        disputes: where the node says that the coordinator's ledger is wrong; not signed.
    """

    seen: Witnesses
    terms: Sequence[SignedTerms] = ()
    limits: Sequence[SignedLimit] = ()
    disputes: Sequence[Fault] = ()

    @property
    def node(self) -> str:
        """Who has seen it."""
        return self.seen.source


@dataclass(frozen=True, slots=True)
class Behind:
    """How far nodes' own files stand behind an account; 0 for not at all.

    Attributes:
        own_seq: the last entry that its own node's file has signed.
        terms: its own node's file says, signed, its filter, delta and first limit.
        seen_seq: the last entry below a checkpoint that some node's file holds.
        own_file: its own node's file is here, whatever it holds of the account.
    """

    own_seq: int = 0
    terms: bool = False
    seen_seq: int = 0
    own_file: bool = False

    def said(self, entries: int) -> str:
        """In words for people.

        Args:
            entries: how many the account has.
        """
        parts = []
        if self.own_seq:
            parts.append(f"its own node's file up to entry {self.own_seq} of {entries}")
        if self.seen_seq:
            parts.append(f"checkpoints in nodes' files up to entry {self.seen_seq} of {entries}")
        if not parts and self.own_file:
            none = "has signed none of its entries" if entries else "it has no entry"
            return f"its own node's file, {'which ' if entries else 'and '}{none}"
        if not parts:
            return "no node's file"
        if not self.terms:
            parts.append("no file for its filter, delta and first limit")
        return "; ".join(parts)


def from_node_file(path: Path) -> NodeFile:
    """What `feddp agent ledger heads --json` printed at a node.

    Raises:
        NotFound: FILE_MISSING.
        Malformed: FILE_UNREADABLE, HEADS_INVALID; HEADS_EMPTY, it can prove nothing.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=once)
        _require_known(content)
        found = NodeFile(
            from_json(content, str(content["node"])),
            # A file of an older agent has none, or no limits among them.
            [_terms(one) for one in listed(content.get("accounts", []))],
            [_limit(one) for one in content.get("accounts", []) if "limit_signature" in one],
            [
                (str(one["account"]), whole_number(one["seq"]), str(one["text"]))
                for one in listed(content["disputes"])
            ],
        )
        if not found.seen.node_key:
            raise ValueError("a node's file names its ledger key")
    except FileNotFoundError:
        raise NotFound("FILE_MISSING", f"there is no file {path}") from None
    except Malformed as error:
        raise Malformed("HEADS_INVALID", f"{path}: {error.message}") from None
    except OSError as error:
        raise Malformed("FILE_UNREADABLE", f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        raise Malformed(
            "HEADS_INVALID", f"{path} is not what `feddp agent ledger heads --json` prints"
        ) from None
    seen = found.seen
    if not (seen.heads or seen.checkpoints or seen.past or found.disputes):
        raise Malformed(
            "HEADS_EMPTY",
            f"{path}: node {found.node} has seen no entry and no checkpoint, which proves nothing; "
            "leave it out, or print it anew once the node has had a session",
        )
    return found


def _require_known(content: Mapping[str, Any]) -> None:
    """What `from_json` does not look at."""
    require_known(content, fields.NODE_FILE, "the file")
    for one in listed(content.get("accounts", [])):
        require_known(one, fields.TERMS, f"account {quoted(one.get('account'))}")
    for one in listed(content.get("epochs", [])):
        require_known(one, fields.EPOCH, fields.epoch_said(one))
    for one in listed(content["disputes"]):
        require_known(one, fields.DISPUTE, fields.head_said(one, "the dispute on"))


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError("a number was to be here")
    return float(value)


def _terms(one: Mapping[str, Any]) -> SignedTerms:
    terms = Terms(
        account=str(one["account"]),
        filter=str(one["filter"]),
        rdp_order=whole_number(one["rdp_order"]),
        delta=_number(one["delta"]),
        epsilon_limit_highest=_number(one["epsilon_limit_highest"]),
    )
    return SignedTerms(terms, bytes_of_hex(one["node_signature"]))


def _limit(one: Mapping[str, Any]) -> SignedLimit:
    limit = LimitInForce(
        str(one["account"]), _number(one["epsilon_limit"]), whole_number(one["raises"])
    )
    return SignedLimit(limit, bytes_of_hex(one["limit_signature"]))


def file_faults(
    files: Sequence[NodeFile],
    accounts: Iterable[Mapping[str, Any]],
    keys: Mapping[str, bytes],
    raises: Mapping[str, int],
    *,
    whole: bool,
) -> list[Fault]:
    """Where nodes' files are not of this ledger, say other terms than it, or dispute it.

    Args:
        accounts: BudgetAccount as JSON has it.
        keys: node -> its raw ledger key.
        raises: account -> how many its entries hold.
        whole: these are all accounts; else what is said of others is passed over.
    """
    known = {str(one["account"]): one for one in accounts}
    nodes = {str(one["node"]) for one in known.values()}
    found: list[Fault] = []
    for file in files:
        if file.node not in nodes:
            if whole:
                text = f"there is a file of node {file.node}, and no account of that node is here"
                found.append((NODE_FILES, 0, text))
        elif keys.get(file.node) != file.seen.node_key:
            text = f"the file of node {file.node} names another ledger key than the ledger does"
            found.append((NODE_FILES, 0, text))
        named = [
            *(one.head.account for one in file.seen.heads),
            *(one.terms.account for one in file.terms),
            *(one.limit.account for one in file.limits),
        ]
        for account in dict.fromkeys(named):
            if account.partition("/")[0] != file.node:
                text = f"the file of node {file.node} speaks of this account, which is not its own"
                found.append((account, 0, text))
        for said in file.terms:
            account = said.terms.account
            text = _terms_fault(said, known.get(account), file)
            if text and (whole or account in known):
                found.append((account, 0, text))
        for at in file.limits:
            account = at.limit.account
            text = _limit_fault(at, known.get(account), raises.get(account, 0), file)
            if text:
                found.append((account, 0, text))
        for account, seq, text in file.disputes:
            found.append((account, seq, f"node {file.node} disputes this: {text}"))
    return found


def _terms_fault(said: SignedTerms, account: Mapping[str, Any] | None, file: NodeFile) -> str:
    """Why an account is not what its node has promised; empty where it is."""
    terms = said.terms
    if not signed_by(file.seen.node_key, terms, said.signature):
        return _unsigned("terms", file)
    if account is None:
        return f"node {file.node} has entries of this account, and it is not here"
    for name in ("filter", "rdp_order", "delta", "epsilon_limit_highest"):
        told, own = account[name], getattr(terms, name)
        if told != own:
            return (
                f"the account says {name} {told}, and its node's own ledger {own}, signed in the "
                f"file of node {file.node}; ask the hospital, whose policy.yaml says which it is"
            )
    return ""


def _limit_fault(
    said: SignedLimit, account: Mapping[str, Any] | None, raises: int, file: NodeFile
) -> str:
    """Why an account's limit of now is not what its node admits by; empty where it is, or where
    the account was raised since the file was made."""
    limit = said.limit
    if not signed_by(file.seen.node_key, limit, said.signature):
        return _unsigned("a limit in force", file)
    if account is None or raises > limit.raises:
        return ""
    own = f"{limit.epsilon_limit:g}"
    if raises < limit.raises:
        return (
            f"the node has recorded {counted(limit.raises, 'raise')} of its limit, to {own} now, "
            f"and {here(raises)} here: export the ledger anew once the node has had a session; if "
            "it is still missing then, ask the operator"
        )
    if account["epsilon_limit"] != limit.epsilon_limit:
        return (
            f"the account says epsilon_limit {account['epsilon_limit']:g}, and its node admits by "
            f"{own}, signed in the file of node {file.node}. If the policy was changed meanwhile, "
            "make the file and then the export anew; if they differ again, ask the hospital"
        )
    return ""


def _unsigned(what: str, file: NodeFile) -> str:
    return (
        f"the file of node {file.node} holds {what} without the signature of its ledger key "
        f"{short(file.seen.node_key.hex())}: let the hospital print it anew"
    )


def backing(
    accounts: Iterable[Mapping[str, Any]],
    kept: Witnesses,
    files: Sequence[NodeFile],
    keys: Mapping[str, bytes],
) -> dict[str, Behind]:
    """Account -> how far nodes' files stand behind it, where nothing is wrong with them.

    Args:
        kept: what the coordinator shows.
    """
    sound = [one for one in files if one.seen.node_key == keys.get(one.node)]
    newest = max((at.number for file in sound for at in file.seen.checkpoints), default=0)
    reached: dict[str, int] = {}
    for one, moved in zip(kept.checkpoints, kept.moved or (), strict=False):
        if one.number <= newest:
            reached.update(moved)
    own: dict[str, int] = {}
    for file in sound:
        for signed in file.seen.heads:
            own[signed.head.account] = max(signed.head.seq, own.get(signed.head.account, 0))
    promised = {said.terms.account for file in sound for said in file.terms}
    return {
        name: Behind(
            own.get(name, 0),
            name in promised,
            reached.get(name, 0),
            name.partition("/")[0] in {one.node for one in sound},
        )
        for name in (str(one["account"]) for one in accounts)
    }


def nodes_said(files: Iterable[NodeFile], nodes: Iterable[str]) -> str:
    """How many nodes' files there are: each node once, and none that the ledger does not know."""
    known = {file.node for file in files} & set(nodes)
    return f"what {counted(len(known), 'node')} {'has' if len(known) == 1 else 'have'} seen"
