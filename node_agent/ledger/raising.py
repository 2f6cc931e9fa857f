"""Raising an account's limit: one steward asks, another agrees, the node's ledger records it.

What two people sign is a small file that goes from hand to hand; nothing of it counts before
`record` has checked it against the policy and the ledger as they are then.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import load_ledger_key, new_ledger_key, public_bytes_of, save_private_key
from node_agent.data.datasets import load_data_sets
from node_agent.folder.config import Folder, parse, read_yaml
from node_agent.folder.installation import read_folder
from node_agent.ledger import proposals
from node_agent.ledger.account_filters import filter_of
from node_agent.ledger.own_ledger import KeptAccount
from node_agent.ledger.proposals import Proposal
from node_agent.ledger.reading import reading, writing
from node_agent.ledger.vouching import Vouched, sign_vouched
from node_agent.policy.policy import STEWARD_NAME, AccountPolicy, Policy, StewardPolicy
from node_agent.policy.steward import Rules, Steward, require_accounts
from node_agent.state.notes import RESTORED_NOTE, ROLLED_BACK_NOTE
from node_agent.state.state import State
from privacy.filters import Filter
from privacy.limits import (
    REASON_MAX,
    LimitTerms,
    fault_of,
    same_person,
    sign_terms,
    terms_signed,
)
from protos.errors import Malformed, NotAllowed, NotFound, WrongPhase

STEWARDS_MIN: Final = 2


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a raise means; JSON-ready with `asdict`.

    Attributes:
        epsilon_guarantee: what the account's patients can rely on with it: the highest limit that
            was ever in force, where that is above the new one.
        epsilon_booked: what the account's filter has booked so far; None without a guarantee.
        epsilon_spent: the same, under its name in 0.1.0.
        pending: whether attempts are under way that the old limit admitted.
    """

    account: str
    number: int
    epsilon_limit_old: float
    epsilon_limit_new: float
    epsilon_guarantee: float
    delta: float
    epsilon_booked: float | None
    epsilon_spent: float | None
    pending: bool
    reason: str
    asked_by: str
    agreed_by: str


def make_key(name: str, out: Path) -> str:
    """A steward's own key, in a file that only its owner can read; its public half, hexadecimal.

    Raises:
        Malformed: NAME_INVALID.
        Conflict: FILE_EXISTS.
        NotFound: FOLDER_MISSING.
    """
    if not re.fullmatch(STEWARD_NAME, name):
        raise Malformed(
            "NAME_INVALID",
            f"{name} cannot be a steward's name; use 1 to 63 of A-Z, a-z, 0-9, . - _, with a "
            "letter or a digit first",
        )
    if not out.absolute().parent.is_dir():
        raise NotFound("FOLDER_MISSING", f"{out.absolute().parent} is not a folder; make it first")
    key = new_ledger_key()
    save_private_key(out, key)
    return public_bytes_of(key).hex()


def propose(path: Path, account: str, name: str, key_file: Path, reason: str, out: Path) -> Outlook:
    """Ask for the limit that policy.yaml gives an account; writes the file that is to be agreed to.

    Raises:
        NotAllowed: STEWARDS_MISSING, STEWARD_UNKNOWN, LEDGER_DISPUTED, LEDGER_CATCHING_UP,
            LEDGER_ROLLED_BACK.
        WrongPhase: NOT_A_RAISE, NOTHING_PROMISED, POLICY_FILTER_CHANGED.
        Malformed: REASON_INVALID, POLICY_INVALID, KEY_INVALID.
        NotFound: NOT_JOINED, LEDGER_MISSING, ACCOUNT_UNKNOWN, KEY_MISSING, FOLDER_MISSING.
        Conflict: FILE_EXISTS.
    """
    reason = reason.strip()
    if not reason or len(reason) > REASON_MAX:
        raise Malformed("REASON_INVALID", f"say why, in 1 to {REASON_MAX} characters: --reason")
    if not out.absolute().parent.is_dir():
        raise NotFound("FOLDER_MISSING", f"{out.absolute().parent} is not a folder; make it first")
    with _at(path, account) as here:
        steward, key = _signer(here.rules.policy, name, key_file)
        old, new = here.filter.epsilon_limit, here.policy.epsilon_limit
        if new <= old:
            raise WrongPhase(
                "NOT_A_RAISE",
                f"the limit of account {account} is {old:g} and policy.yaml says {new:g}: write "
                "the higher epsilon_limit there first; it counts once two stewards have agreed",
            )
        terms = LimitTerms(
            account=here.account,
            node=here.node,
            number=len(here.state.ledger.raises(here.account)) + 1,
            filter=here.filter.kind,
            rdp_order=here.filter.order,
            delta=here.filter.delta,
            epsilon_limit_old=old,
            epsilon_limit_new=new,
            reason=reason,
            asked_by=name,
            asked_key=steward.public_key,
        )
        proposal = Proposal(terms, sign_terms(key, terms))
        proposals.write(out, proposal)
        return here.outlook(proposal)


def approve(path: Path, file: Path, name: str, key_file: Path) -> Outlook:
    """Agree to what another steward has asked for; the file then holds both signatures.

    Raises:
        NotAllowed: ONE_PERSON; and as `propose`.
        WrongPhase: PROPOSAL_STALE.
        Malformed: PROPOSAL_INVALID.
        NotFound: FILE_MISSING; and as `propose`.
    """
    proposal = proposals.load(file)
    terms = proposal.terms
    with _at(path, proposals.account_in(terms.account, file)) as here:
        steward, key = _signer(here.rules.policy, name, key_file)
        if same_person(terms.asked_by, terms.asked_key, name, steward.public_key):
            raise NotAllowed(
                "ONE_PERSON", f"{terms.asked_by} has asked for this; it takes another to agree"
            )
        here.require_current(terms)
        _require_steward(here.rules.policy, terms.asked_by, terms.asked_key)
        if not terms_signed(terms, terms.asked_key, proposal.asked_signature):
            raise Malformed(
                "PROPOSAL_INVALID",
                f"{file}: the signature of {terms.asked_by} is not over this raise",
            )
        agreed = replace(
            proposal,
            agreed_by=name,
            agreed_key=steward.public_key,
            agreed_signature=sign_terms(key, terms),
        )
        proposals.replace_file(file, agreed)
        return here.outlook(agreed)


def record(path: Path, file: Path, *, dry_run: bool = False) -> Outlook:
    """Check a raise against policy and ledger as they are now, and record it, unless `dry_run`.

    From then on the node holds to the new limit; a running agent tells the coordinator at once.

    Raises:
        WrongPhase: NOT_AGREED, PROPOSAL_STALE, STATE_OLDER.
        NotAllowed, Malformed, NotFound: as `propose` and `approve`.
    """
    proposal = proposals.load(file)
    change = proposal.change()
    with (
        _at(path, proposals.account_in(change.account, file), to_write=not dry_run) as here,
        contextlib.nullcontext(here.state.ledger) if dry_run else here.state.raising() as ledger,
    ):
        # Policy and ledger are read again in here: nobody else can write to the ledger meanwhile.
        here = _here(here.state, Steward(Folder(path.absolute())), here.node, here.policy.name)
        here.require_current(change.terms)
        policy = here.rules.policy
        _require_steward(policy, change.terms.asked_by, change.terms.asked_key)
        _require_steward(policy, change.agreed_by, change.agreed_key)
        text = fault_of(change, here.shown, len(ledger.raises(change.account)))
        if text:
            raise Malformed("PROPOSAL_INVALID", f"{file}: {text}")
        if not dry_run:
            ledger.fix(change.account, here.filter)
            ledger.record(change)
            here.state.coordinator_limits.forget(change.account)
        return here.outlook(proposal)


@dataclass(frozen=True, slots=True)
class _Here:
    """Where an account stands at this node.

    Attributes:
        account: "NODE/NAME".
        filter: at the limit that a raise goes on from: the lower of this node's and of what the
            coordinator holds the account to.
        shown: at the limit that the account's own chain shows.
    """

    node: str
    account: str
    rules: Rules
    policy: AccountPolicy
    state: State
    kept: KeptAccount | None
    filter: Filter
    shown: Filter

    def outlook(self, proposal: Proposal) -> Outlook:
        """What the raise means here."""
        terms, kept = proposal.terms, self.kept
        posted = kept.posted_units if kept else 0
        spent = self.filter.epsilon_of(posted) if kept is None or kept.guarantee else None
        highest = self.state.epsilon_guarantee(kept) if kept else terms.epsilon_limit_old
        return Outlook(
            account=terms.account,
            number=terms.number,
            epsilon_limit_old=terms.epsilon_limit_old,
            epsilon_limit_new=terms.epsilon_limit_new,
            epsilon_guarantee=max(highest, terms.epsilon_limit_new),
            delta=terms.delta,
            epsilon_booked=spent,
            epsilon_spent=spent,
            pending=bool(self.state.attempts.pending_on(terms.account)),
            reason=terms.reason,
            asked_by=terms.asked_by,
            agreed_by=proposal.agreed_by,
        )

    def require_current(self, terms: LimitTerms) -> None:
        """Refuse what was signed about another state of things.

        Raises:
            WrongPhase: PROPOSAL_STALE.
        """
        next_number = len(self.state.ledger.raises(self.account)) + 1
        filter_ = self.filter
        if terms.number < next_number:
            what = f"raise {terms.number} of this account is recorded already"
        elif terms.epsilon_limit_new != self.policy.epsilon_limit:
            what = (
                f"it is for a limit of {terms.epsilon_limit_new:g}, and policy.yaml says "
                f"{self.policy.epsilon_limit:g}"
            )
        elif (terms.epsilon_limit_old, terms.number, terms.node) != (
            filter_.epsilon_limit,
            next_number,
            self.node,
        ):
            what = (
                f"it goes on from a limit of {terms.epsilon_limit_old:g} as raise {terms.number} at"
                f" node {terms.node}, and the limit is {filter_.epsilon_limit:g}, raise "
                f"{next_number} would be next, and this is {self.node}"
            )
        else:
            return
        raise WrongPhase("PROPOSAL_STALE", f"nothing was changed: {what}; propose it anew")


@contextlib.contextmanager
def _at(path: Path, account: str, *, to_write: bool = False) -> Iterator[_Here]:
    folder = Folder(path.absolute())
    _, identity = read_folder(folder)
    with (writing if to_write else reading)(folder, identity) as state:
        yield _here(state, Steward(folder), identity.node, account)


def _here(state: State, steward: Steward, node: str, account: str) -> _Here:
    rules = steward.rules()
    policy = rules.policy.account(account)
    if policy is None:
        known = ", ".join(one.name for one in rules.policy.accounts) or "none"
        raise NotFound("ACCOUNT_UNKNOWN", f"policy.yaml has no account {account}; it has: {known}")
    _require_stewards(rules.policy)
    full = f"{node}/{account}"
    if state.notes.read(ROLLED_BACK_NOTE):
        raise NotAllowed(
            "LEDGER_ROLLED_BACK",
            "this node's ledger lacks what the node has signed; stop the agent and run `feddp "
            "agent ledger import` first",
        )
    if state.notes.read(RESTORED_NOTE):
        raise NotAllowed(
            "LEDGER_CATCHING_UP",
            "this node's ledger was restored from a copy and is still reading what was recorded "
            "since; let the agent connect first",
        )
    if state.disputes.on(full) is not None:
        raise NotAllowed(
            "LEDGER_DISPUTED",
            f"this node's ledger and the coordinator's disagree about account {account}; settle "
            "that first: `feddp agent status`",
        )
    kept, there = state.ledger.account(full), state.coordinator_limits.of(full)
    limits = [one for one in (kept.epsilon_limit if kept else None, there) if one is not None]
    if not limits or (kept is None and (there or 0.0) >= policy.epsilon_limit):
        raise WrongPhase(
            "NOTHING_PROMISED",
            f"account {account} has no entry yet, so its limit is what policy.yaml says: write the "
            "number there, nothing else is needed",
        )
    at_limit = policy.model_copy(update={"epsilon_limit": min(limits)})
    filter_ = filter_of(at_limit, rules.data_sets, kept.fixed if kept else None)
    shown = state.ledger.shown(kept) if kept else filter_
    return _Here(node, full, rules, policy, state, kept, filter_, shown)


def _require_stewards(policy: Policy) -> None:
    if len(policy.stewards) < STEWARDS_MIN:
        count = len(policy.stewards)
        named = "1 steward" if count == 1 else f"{count} stewards"
        raise NotAllowed(
            "STEWARDS_MISSING",
            f"policy.yaml names {named} and a raise takes two: each makes "
            "a key with `feddp agent limit key NAME --out FILE`, and the line that it prints goes "
            "under `stewards:` in policy.yaml",
        )


def _require_steward(policy: Policy, name: str, public_key: str) -> StewardPolicy:
    found = policy.steward(name)
    if found is None or found.public_key != public_key:
        what = "names no steward" if found is None else "has another key for"
        raise NotAllowed("STEWARD_UNKNOWN", f"policy.yaml {what} {name}; nothing was changed")
    return found


def vouch(path: Path, name: str, key_file: Path) -> Vouched:
    """Sign, as a steward, what policy.yaml says of why no patient is in two of its accounts, whose
    data sets are those that datasets.yaml declares.

    Nothing is written: the steward puts the lines into the file.

    Raises:
        NotAllowed: STEWARD_UNKNOWN.
        WrongPhase: ONE_ACCOUNT, NOTHING_SAID.
        Malformed: POLICY_INVALID, DATASETS_INVALID, KEY_INVALID.
        NotFound: KEY_MISSING.
    """
    folder = Folder(path.absolute())
    file = folder.policy_yaml
    content = read_yaml(file, "POLICY_INVALID")
    accounts = content.get("accounts") or []
    if not isinstance(accounts, list) or len(accounts) < 2:
        raise WrongPhase("ONE_ACCOUNT", f"{file} has one account at most: nobody needs to vouch")
    # It is refused as long as nobody has signed, so each account is looked at by itself.
    unsigned = {"disjoint_data_sets": {}, "disjoint_signed_by": "", "disjoint_signature": ""}
    one_each = [
        parse(Policy, {**content, **unsigned, "accounts": [one]}, file, "POLICY_INVALID")
        for one in accounts
    ]
    policy = one_each[0]
    if not policy.disjoint_patients.strip():
        raise WrongPhase(
            "NOTHING_SAID",
            f"say in disjoint_patients in {file} why no patient is in two accounts, and since when",
        )
    steward, key = _signer(policy, name, key_file)
    data_sets = load_data_sets(folder.root)
    names = sorted(one.accounts[0].name for one in one_each)
    require_accounts(data_sets, names)
    paid_by = {name: sorted(d.name for d in data_sets if d.account == name) for name in names}
    said = policy.disjoint_patients
    return Vouched(paid_by, said, steward.name, sign_vouched(key, paid_by, said, steward.name))


def _signer(policy: Policy, name: str, key_file: Path) -> tuple[StewardPolicy, Ed25519PrivateKey]:
    """A steward who holds the key that the policy names."""
    key = load_ledger_key(key_file)
    return _require_steward(policy, name, public_bytes_of(key).hex()), key
