"""What people see: protobuf messages made from phases, records and the ledger."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Connection

from coordinator import mandates
from coordinator.rounds import participation
from coordinator.rounds.events import Absence
from coordinator.rounds.live import LiveJob, release_of
from coordinator.rounds.phases import (
    Attempt,
    AttemptState,
    Ended,
    RoundRecord,
    Selecting,
    Training,
)
from coordinator.store import checkpoints as checkpoint_store
from coordinator.store import epochs, ledger, limits, people, shares
from coordinator.store.jobs import ModelRecord
from coordinator.store.joins import WaitingJoin
from privacy.accounting import epsilon_spent
from privacy.figures import Figures, figures_of
from privacy.filters import make_filter
from privacy.releases import Release
from privacy.wire import checkpoint_to_wire, epoch_to_wire, head_to_wire
from protos.errors import BudgetRefused
from protos.feddp.v1 import budgets_pb2, jobs_pb2, models_pb2, nodes_pb2

PHASES = {"Closing": "publishing"}


def node(
    record: people.NodeRecord,
    waiting: WaitingJoin | None = None,
    *,
    connected: bool,
    certificate_expires_at: float,
    quarantine: str = "",
    revoked: bool = False,
    second_agent_at: float = 0.0,
) -> nodes_pb2.Node:
    """A node for operators."""
    status = record.status
    if quarantine:
        status = "quarantined"
    elif revoked and status != "disabled":
        status = "revoked"
    return nodes_pb2.Node(
        name=record.name,
        node_class=record.node_class,
        status=status,
        connected=connected,
        last_seen_at=record.last_seen_at,
        agent_version=record.hello.agent_version,
        certificate_expires_at=certificate_expires_at,
        data_sets=[
            nodes_pb2.NodeDataSet(
                name=d.name,
                account=f"{record.name}/{d.account}",
                declared_n=d.declared_n,
                schema_json=d.schema_json,
                unavailable=d.unavailable,
            )
            for d in record.hello.data_sets
        ],
        tasks=sorted({task for d in record.hello.data_sets for task in d.tasks}),
        ledger_public_key=record.ledger_public_key,
        quarantine=quarantine,
        waiting_key=waiting.key_digest if waiting is not None else "",
        waiting_for_steward=waiting is not None and waiting.confirming,
        second_agent_at=second_agent_at,
    )


def model(record: ModelRecord) -> models_pb2.Model:
    """A model for engineers."""
    return models_pb2.Model(
        digest=record.digest,
        job_id=record.job_id,
        kind=record.kind,
        round=record.round,
        bytes=record.bytes,
        created_at=record.created_at,
        project=record.project,
    )


def accounts(connection: Connection, data_set: str) -> list[budgets_pb2.BudgetAccount]:
    """Accounts, or those that pay for one data set, with their guarantee and running epsilon."""
    nodes = {record.name: record for record in people.all_nodes(connection)}
    found = []
    known = ledger.all_accounts(connection)
    guarantees = limits.guarantees(connection, known)
    for account in known:
        owner = nodes[account.node]
        published = [
            d.name
            for d in owner.hello.data_sets
            if f"{account.node}/{d.account}" == account.account
            and d.unavailable != "DATA_SET_MOVED"  # it pays from the account of before, for ever
        ]
        posted = ledger.posted_to(connection, account.account)
        data_sets = sorted({*published, *(dataset for dataset, _ in posted)})
        if data_set and data_set not in data_sets:
            continue
        filter_, balance = account.filter, account.balance
        counts: Counter[Release] = Counter()
        for (_, release), count in posted.items():
            counts[release] += count
        # One spelling of the same counts, so that the same account has the same figures.
        spelt = tuple(sorted(counts.items(), key=repr))
        figures = _figures(spelt, filter_.kind, filter_.order, filter_.epsilon_limit, filter_.delta)
        found.append(
            budgets_pb2.BudgetAccount(
                account=account.account,
                node=account.node,
                data_sets=data_sets,
                filter=filter_.kind,
                rdp_order=filter_.order,
                epsilon_limit=filter_.epsilon_limit,
                delta=filter_.delta,
                epsilon_spent=figures.running if figures else None,
                pending_units=balance.pending_units,
                posted_units=balance.posted_units,
                limit_units=filter_.limit_units,
                guarantee=balance.guarantee,
                entries=account.entries,
                head_hash=account.head_hash,
                ledger_public_key=owner.ledger_public_key,
                epsilon_limit_highest=account.epsilon_limit_highest,
                epsilon_booked=figures.booked if figures else None,
                epsilon_naive=figures.naive if figures else None,
                efficiency=figures.efficiency if figures else None,
                booked_to_naive=figures.booked_to_naive if figures else None,
                epsilon_start=filter_.epsilon_start,
                shares=_shares(connection, account, owner),
                epsilon_guarantee=guarantees[account.account],
            )
        )
    return found


def _shares(
    connection: Connection, account: ledger.Account, owner: people.NodeRecord
) -> list[budgets_pb2.AccountShare]:
    """The limits within an account; none if its node no longer publishes it."""
    name = account.account.removeprefix(f"{owner.name}/")
    told = next((one for one in owner.hello.accounts if one.name == name), None)
    if told is None:
        return []
    return [
        budgets_pb2.AccountShare(
            kind=one.kind,
            name=one.name,
            epsilon_limit=one.epsilon_limit,
            used_units=one.used_units,
            limit_units=one.limit_units,
        )
        for one in shares.shares_of(connection, account, told, owner.hello)
    ]


def checkpoints(
    connection: Connection, coordinator_ledger_key: bytes
) -> budgets_pb2.ListCheckpointsResponse:
    """Checkpoints and countersigned heads, for officers."""
    return budgets_pb2.ListCheckpointsResponse(
        checkpoints=map(checkpoint_to_wire, checkpoint_store.all_of(connection)),
        countersigned=[
            head_to_wire(one.head, one.signature)
            for one in checkpoint_store.countersigned(connection)
        ],
        coordinator_ledger_key=coordinator_ledger_key,
        leaves=[
            budgets_pb2.CheckpointLeaves(added=added)
            for added in checkpoint_store.leaves_added(connection)
        ],
        restorations=[
            budgets_pb2.Restoration(
                epoch=epoch_to_wire(one),
                places=map(head_to_wire, epochs.places(connection, one.number)),
                reconciled=[
                    budgets_pb2.ReconciledAccount(account=at.account, seq=at.seq)
                    for at in epochs.reconciled_at(connection, one.number)
                ],
            )
            for one in epochs.all_of(connection)
        ],
    )


@lru_cache(maxsize=4096)
def _figures(
    counts: tuple[tuple[Release, int], ...], kind: str, order: int, limit: float, delta: float
) -> Figures | None:
    """What an account's posted releases come to; None without a guarantee.

    None as well for what the filter never admitted: the ledger is damaged, and its check names
    the entry.
    """
    try:
        return figures_of(dict(counts), make_filter(kind, order, limit, delta))
    except BudgetRefused:
        return None


@lru_cache(maxsize=4096)
def reported(releases: tuple[Release, ...], delta: float) -> float | None:
    """Running epsilon of what was posted, rounded up; None without a guarantee."""
    return epsilon_spent(releases, delta)


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a job's view needs of the store.

    Attributes:
        posted: each node's releases with the round that they belong to, in chain order.
        limits: each node's account limit now, and its guarantee; see `limits.guarantees`.
        classes: each node's class.
    """

    posted: dict[str, list[tuple[int, Release]]]
    limits: dict[str, tuple[float, float | None]]
    classes: dict[str, str]


def job_facts(connection: Connection, live: LiveJob) -> JobFacts:
    """Read a job's postings and its nodes' accounts."""
    posted: dict[str, list[tuple[int, Release]]] = defaultdict(list)
    of_nodes: dict[str, tuple[float, float | None]] = {}
    names = {a.offer.account for one in live.attempted() for a in one.attempts}
    known = ledger.named_accounts(connection, sorted(names))
    guarantees = limits.guarantees(connection, known)
    for account in known:
        of_nodes[account.node] = (account.filter.epsilon_limit, guarantees[account.account])
    for statement in ledger.posted_by(connection, live.job_id):
        posted[statement.node].append((statement.round, statement.release))
    classes = {record.name: record.node_class for record in people.all_nodes(connection)}
    return JobFacts(dict(posted), of_nodes, classes)


def job(live: LiveJob, facts: JobFacts) -> jobs_pb2.Job:
    """A job for engineers."""
    phase, spec = live.phase, live.job
    done = phase.course.done
    ended = phase if isinstance(phase, Ended) else None
    status = ended.status if ended else "waiting" if live.is_waiting() else "running"
    name = type(phase).__name__
    mandate = mandates.kept(live.record.mandate)
    return jobs_pb2.Job(
        job_id=live.job_id,
        project=live.record.project,
        name=spec.name,
        status=status,
        phase=PHASES.get(name, name.lower()),
        round=max(1, len(live.rounds())) if ended else phase.course.next_round,
        rounds_done=len(done),
        rounds_planned=spec.rounds_planned,
        waiting=_waiting(live),
        nodes=[_node(live, facts, node) for node in sorted(facts.limits)],
        rounds=[_round(live, facts, one) for one in live.rounds()],
        model_digest=ended.answer if ended else "",
        data_set=spec.dataset,
        task=spec.task,
        created_at=live.record.created_at,
        ended_at=ended.ended_at_s if ended else 0.0,
        message=ended.message if ended else "",
        submitted_by=live.record.submitted_by,
        spec_digest=live.spec_digest,
        target_epsilon=spec.target_epsilon or 0.0,
        delta=spec.delta,
        convergence_threshold=spec.convergence_threshold,
        priority=spec.priority,
        warnings=participation.warnings(phase.course),
        signed_by=mandate.public_key if mandate else "",
        signed_until=float(mandate.expires_at_s) if mandate else 0.0,
    )


def _waiting(live: LiveJob) -> list[jobs_pb2.Waiting]:
    phase = live.phase
    if not isinstance(phase, Selecting | Training) or not live.is_waiting():
        return []
    need = phase.course.plan.min_participants
    if isinstance(phase, Training):
        have, what = len(phase.round.received), "updates are here"
    else:
        have, what = len(phase.ready), "nodes are ready"
    summary = f"{have} of at least {need} {what}"
    return [
        jobs_pb2.Waiting(reason="QUORUM", message=summary),
        *(jobs_pb2.Waiting(node=a.node, reason=a.reason, message=a.message) for a in phase.waiting),
    ]


def _node(live: LiveJob, facts: JobFacts, name: str) -> jobs_pb2.JobNode:
    limit, guarantee = facts.limits[name]
    delta = live.job.delta
    releases = tuple(release for _, release in facts.posted.get(name, []))
    return jobs_pb2.JobNode(
        name=name,
        node_class=facts.classes.get(name, ""),
        epsilon_spent=reported(releases, delta),
        epsilon_limit=live.job.target_epsilon or limit,
        delta=delta,
        rounds_participated=sum(
            any(a.node == name for a in one.received) for one in live.phase.course.done
        ),
        account_epsilon_limit=limit,
        epsilon_guarantee=guarantee,
    )


_OUTCOMES = {
    AttemptState.ORDERED: "open",
    AttemptState.ACCEPTED: "open",
    AttemptState.RECEIVED: "update",
    AttemptState.NO_UPDATE: "no_update",
    AttemptState.REFUSED: "refused",
    AttemptState.LATE: "late",
    AttemptState.LOST: "lost",
}


def _round(live: LiveJob, facts: JobFacts, one: RoundRecord) -> jobs_pb2.Round:
    newest: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in one.attempts:
        newest[attempt.node].append(attempt)
    took_part = [_participation(live, facts, one, tries) for tries in newest.values()]
    left_out = [_left_out(absence) for absence in one.left_out if absence.node not in newest]
    return jobs_pb2.Round(
        number=one.number,
        started_at=one.started_at_s,
        ended_at=one.published_at_s,
        reserving_s=max(0.0, one.reserved_at_s - one.started_at_s),
        training_s=max(0.0, one.trained_at_s - one.reserved_at_s),
        aggregating_s=max(0.0, one.folded_at_s - one.trained_at_s),
        publishing_s=max(0.0, one.published_at_s - one.folded_at_s),
        model_bytes=one.model_bytes,
        update_bytes=sum(a.update_bytes for a in one.received),
        participation=took_part + left_out,
        drift=one.drift,
        drift_noise=one.drift_noise,
        model_digest=one.model,
    )


def _participation(
    live: LiveJob, facts: JobFacts, one: RoundRecord, tries: list[Attempt]
) -> jobs_pb2.Participation:
    last = tries[-1]
    releases = tuple(r for number, r in facts.posted.get(last.node, []) if number <= one.number)
    outcome = _OUTCOMES[last.state]
    return jobs_pb2.Participation(
        node=last.node,
        outcome=outcome,
        reason=last.reason,
        message=last.message,
        noise_multipliers=[
            a.offer.noise_multiplier for a in tries if a.offer.noise_multiplier is not None
        ],
        epsilon_after=reported(releases, live.job.delta),
        seconds=max(0.0, last.ended_at_s - last.ordered_at_s) if last.ended_at_s else 0.0,
        local_steps=release_of(last.offer, live.job).steps,
        declared_n=last.offer.declared_n,
    )


def _left_out(absence: Absence) -> jobs_pb2.Participation:
    return jobs_pb2.Participation(
        node=absence.node, outcome="left_out", reason=absence.reason, message=absence.message
    )
