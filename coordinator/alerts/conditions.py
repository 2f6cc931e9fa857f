"""What is wrong now, as somebody must be told: pure, from facts that `watch` has gathered.

Nothing here comes from records: names of nodes, accounts and jobs, ledgers' states, and times.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from coordinator.replicas.shared_blobs import Away

Severity = Literal["critical", "warning"]

DISPUTES: Final = frozenset({"LEDGER_DISPUTED", "LEDGER_ROLLED_BACK"})
"""Why a node refuses an account when its ledger and ours do not agree."""

NAMES_SHOWN_MAX: Final = 8
STORE_AWAY_S: Final = 120.0
DISK_FREE_SHARE_MIN: Final = 0.1


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that is wrong.

    Attributes:
        labels: with the name they say whether two alarms are the same one; sorted.
        summary: what is wrong, one sentence.
        description: what to do.
    """

    name: str
    severity: Severity
    labels: tuple[tuple[str, str], ...]
    summary: str
    description: str

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, the same for the same alarm."""
        text = "\n".join((self.name, *(f"{key}={value}" for key, value in self.labels)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class NodeFact:
    """A node that an operator has let in, and has not disabled.

    Attributes:
        heard_at_s: when it was connected last, or from when on it is missed.
        quarantine: why it is shut out; empty if it is not.
        refuses: (account, reason) for each that it takes no order on.
        certificate_ends_s: 0 for none.
    """

    name: str
    connected: bool
    heard_at_s: float
    quarantine: str = ""
    refuses: tuple[tuple[str, str], ...] = ()
    certificate_ends_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that cannot go on by itself."""

    job_id: str
    since_s: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen at one look.

    Attributes:
        remaining: account -> epsilon that is left of it.
        damaged: accounts whose row and chain do not belong together.
        certificates: what -> when it ends; the server's and the authority's.
        store: if the shared store is away.
        disk_free_share: of the disk of models and updates, 0 to 1.
    """

    now_s: float
    nodes: tuple[NodeFact, ...] = ()
    remaining: dict[str, float] = field(default_factory=dict)
    damaged: frozenset[str] = frozenset()
    jobs: tuple[WaitingJob, ...] = ()
    certificates: dict[str, float] = field(default_factory=dict)
    store: Away | None = None
    disk_free_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """From when on it is told.

    Attributes:
        budget_remaining: epsilon.
        certificate_s: before its end, for the server's and the authority's.
        node_certificate_s: the same for a node's, which renews itself long before.
    """

    node_lost_s: float
    job_waiting_s: float
    budget_remaining: float
    certificate_s: float
    node_certificate_s: float


def conditions(facts: Facts, limits: Limits) -> list[Alarm]:
    """Everything that is wrong, each once."""
    return [
        *_nodes(facts, limits),
        *_accounts(facts, limits),
        *_jobs(facts, limits),
        *_certificates(facts, limits),
        *_store(facts),
        *_disk(facts),
    ]


def _nodes(facts: Facts, limits: Limits) -> Iterator[Alarm]:
    for node in facts.nodes:
        labels = (("node", node.name),)
        if node.quarantine:
            yield Alarm(
                *("NodeQuarantined", "critical", labels),
                f"Node {node.name} is shut out: {node.quarantine}.",
                f"Ask the hospital which machine is the right one; then `feddp node release "
                f"{node.name}`, or a new token if a key may be stolen.",
            )
        elif not node.connected and facts.now_s - node.heard_at_s >= limits.node_lost_s:
            yield Alarm(
                *("NodeUnhealthy", "critical", labels),
                f"Node {node.name} is not connected.",
                "Its hospital runs `feddp agent doctor`; jobs go on without it where they can.",
            )
        for account, reason in node.refuses:
            if reason in DISPUTES:
                yield Alarm(
                    *("LedgerDisagreement", "critical"),
                    (("account", f"{node.name}/{account}"), ("node", node.name)),
                    f"Node {node.name} refuses orders on account {account}: {reason}.",
                    "Compare both ledgers with its data steward (docs/ledger.md, `feddp budget "
                    "verify --heads`); the steward ends it with `feddp agent ledger settle` or "
                    "`import`.",
                )


def _accounts(facts: Facts, limits: Limits) -> Iterator[Alarm]:
    for account in sorted(facts.damaged):
        yield Alarm(
            *("LedgerDamaged", "critical", (("account", account),)),
            f"The coordinator's ledger of account {account} is damaged; nothing is booked on it.",
            "Run `feddp budget verify` and restore the database from a backup.",
        )
    for account, left in sorted(facts.remaining.items()):
        if left < limits.budget_remaining:
            yield Alarm(
                *("PrivacyBudgetExhausted", "critical", (("account", account),)),
                f"Less than epsilon {limits.budget_remaining:g} is left of account {account}.",
                "Jobs on it are refused; only its hospital's stewards can raise the limit.",
            )


def _jobs(facts: Facts, limits: Limits) -> Iterator[Alarm]:
    for job in facts.jobs:
        if facts.now_s - job.since_s < limits.job_waiting_s:
            continue
        shown = ", ".join(job.nodes[:NAMES_SHOWN_MAX]) + (
            f" and {len(job.nodes) - NAMES_SHOWN_MAX} more"
            if len(job.nodes) > NAMES_SHOWN_MAX
            else ""
        )
        yield Alarm(
            *("JobWaiting", "warning", (("job_id", job.job_id),)),
            f"Job {job.job_id} waits for hospitals{f': {shown}' if shown else ''}.",
            f"`feddp job show {job.job_id}` says for whom and why.",
        )


def _certificates(facts: Facts, limits: Limits) -> Iterator[Alarm]:
    for what, ends_s in sorted(facts.certificates.items()):
        if ends_s - facts.now_s < limits.certificate_s:
            yield Alarm(
                *("CertificateExpiring", "critical", (("certificate", what),)),
                f"The certificate of the {what} ends soon, or has ended.",
                "`feddp coordinator check` says which file it is; the log says why it was not "
                "renewed.",
            )
    for node in facts.nodes:
        ends_s = node.certificate_ends_s
        if ends_s and ends_s - facts.now_s < limits.node_certificate_s:
            yield Alarm(
                *("CertificateExpiring", "warning"),
                (("certificate", "node"), ("node", node.name)),
                f"The certificate of node {node.name} was not renewed and ends soon, or has ended.",
                "Its hospital runs `feddp agent doctor`; an agent that runs renews it by itself.",
            )


def _store(facts: Facts) -> Iterator[Alarm]:
    if facts.store is not None and facts.now_s - facts.store.since_s >= STORE_AWAY_S:
        yield Alarm(
            *("StoreUnreachable", "critical", ()),
            f"{facts.store.sentence[0].upper()}{facts.store.sentence[1:]}.",
            "No update is taken and no job goes on until it answers; `feddp coordinator check` "
            "tries it (docs/runbooks/StoreUnreachable.md).",
        )


def _disk(facts: Facts) -> Iterator[Alarm]:
    if facts.disk_free_share < DISK_FREE_SHARE_MIN:
        yield Alarm(
            *("DiskFilling", "critical", ()),
            "The coordinator's disk has less than a tenth of its room left.",
            "When it is full no update is taken and no round published; what to make room of: "
            "docs/runbooks/DiskFilling.md.",
        )
