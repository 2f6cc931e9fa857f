"""Commands that the database alone answers, carried out inside the turn that asked for them:
who could take part, reservations, the list of models."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from coordinator import mandates
from coordinator.compared import model_damaged
from coordinator.pausing import Pausing, absence
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import planner
from coordinator.rounds.effects import list_model, reserve_statement
from coordinator.rounds.live import LiveJob
from coordinator.rounds.node_facts import NodeFacts
from coordinator.rounds.phases import CUT_OFF, NO_UPDATE, Publishing, Reserving, Selecting, Training
from coordinator.sessions import Sessions
from coordinator.store import damage, epochs, ledger, people, shares
from coordinator.store.booking import Books
from privacy.releases import Release
from protos.errors import BudgetRefused, FeddpError, NotFound
from protos.feddp.v1 import federation_pb2 as federation

Taken = Callable[[LiveJob, str], e.Absence | None]
"""Whether another job has a node now, or goes first for it."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers commands; keeps no state of its own.

    Attributes:
        is_gone: whether the model of this digest lies nowhere.
    """

    sessions: Sessions
    taken: Taken
    pausing: Pausing | None = None
    is_gone: Callable[[str], bool] = field(default=lambda _: False)

    def __call__(self, books: Books, live: LiveJob, command: c.InsideCommand) -> e.Event | None:
        """The event that answers `command`, or None if the job has moved on meanwhile."""
        match command:
            case c.Survey():
                return self._survey(books, live)
            case c.ReserveBudgets():
                return reserve(books, live, command)
            case c.PublishModel():
                return publish(books, live, command)

    def _survey(self, books: Books, live: LiveJob) -> e.NodesSurveyed | e.StepFailed:
        gone = self._gone(live.phase.course.model)
        if gone is not None and isinstance(live.phase, Selecting):
            return e.StepFailed(f"{gone.message} (Survey: {gone.reason})")
        facts = self.facts(books, live)
        rounds_left = live.job.rounds_planned - len(live.phase.course.done)
        return e.NodesSurveyed(*planner.survey(live.job, live.record.task_hash, facts, rounds_left))

    def facts(self, books: Books, live: LiveJob) -> list[NodeFacts]:
        """Every node that publishes the job's data set, as the store and the sessions know it."""
        books.flush()  # what this turn has booked is read with the rest
        connection, wanted = books.connection, live.job.dataset
        found = []
        for node in people.all_nodes(connection):
            data_set = next((d for d in node.hello.data_sets if d.name == wanted), None)
            if data_set is not None:
                found.append((node, data_set, f"{node.name}/{data_set.account}"))
        names = [name for _, _, name in found]
        known = {a.account: a for a in ledger.named_accounts(connection, names)}
        damaged = damage.damaged(connection, names)
        unreconciled = epochs.unreconciled(connection, names)
        epoch = epochs.newest(connection)
        # A backup's journal lacks what nodes have released since; they have handed it in.
        held = None if epoch is None else ledger.held_by(connection, live.job_id)
        mandate = mandates.kept(live.record.mandate)
        gone, facts = self._gone(live.phase.course.model), []
        for node, data_set, name in found:
            account = known.get(name)  # missing if its policy was refused; the planner says so
            units, releases = _spent(live, account, held) if account else (0, 0)
            steward = next((a for a in node.hello.accounts if a.name == data_set.account), None)
            facts.append(
                NodeFacts(
                    node=node.name,
                    connected=self.sessions.connected(node.name),
                    disabled=node.status == "disabled",
                    data_set=data_set,
                    steward=steward,
                    account=account,
                    job_units=units,
                    job_releases=releases,
                    last_noise_multiplier=live.last_noise(node.name),
                    job_no_updates=live.ended(node.name, NO_UPDATE),
                    job_cut_off=live.ended(node.name, CUT_OFF),
                    taken=self.taken(live, node.name),
                    steps_possible=live.steps_possible(node.name),
                    shares=_shares(connection, live, node.hello, account, steward),
                    barred=self._paused(node.name)
                    or _barred(live, node.name, time.time())
                    or (e.Absence(node.name, gone.reason, gone.message) if gone else None),
                    damaged=name in damaged,
                    restored_from=epoch.backup_made if epoch and name in unreconciled else "",
                    signed_epsilon=mandate.epsilon_max if mandate is not None else None,
                )
            )
        return facts

    def _gone(self, digest: str) -> NotFound | None:
        """Why nobody can be ordered to train: what is reserved for an order that cannot be sent is
        charged all the same. None if they can, or before there is a model."""
        return model_damaged(digest) if digest and self.is_gone(digest) else None

    def _paused(self, node: str) -> e.Absence | None:
        now = self.pausing.now if self.pausing is not None else None
        return absence(now, node) if now is not None else None


def _spent(
    live: LiveJob, account: ledger.Account, held: Mapping[str, Mapping[Release, int]] | None
) -> tuple[int, int]:
    """(filter units, number of releases) that a job has posted or holds in an account.

    Args:
        held: by the ledger, for every account; None where the job's journal knows all of it.
    """
    if held is None:
        return live.spent(account.account, account.filter)
    made = held.get(account.account, {})
    units = sum(count * account.filter.cost_units(one) for one, count in made.items())
    return units, sum(made.values())


def _barred(live: LiveJob, node: str, now_s: float) -> e.Absence | None:
    """Why a node would refuse the job by what its engineer signed, whatever else it thinks."""
    mandate = mandates.kept(live.record.mandate)
    if mandate is None:
        return None
    if node not in mandate.nodes:
        return e.Absence(
            node, "MANDATE_OTHER_NODES", "is not among the nodes that the job was signed for"
        )
    if now_s >= mandate.expires_at_s:
        return e.Absence(
            node,
            "MANDATE_EXPIRED",
            "gets no order any more: what was signed of the job has ended; cancel the job and "
            "submit it again",
        )
    return None


def _shares(
    connection: Connection,
    live: LiveJob,
    hello: federation.Hello,
    account: ledger.Account | None,
    steward: federation.Account | None,
) -> tuple[shares.Share, ...]:
    """Those limits within the account that the job counts against."""
    if account is None or steward is None or not steward.shares:
        return ()
    job_task = (live.job.task, live.record.task_hash)
    purpose = next((t.purpose for t in hello.tasks if (t.name, t.content_hash) == job_task), "")
    mine = {"project": live.record.project, "purpose": purpose, "account": steward.name}
    found = shares.shares_of(connection, account, steward, hello)
    return tuple(one for one in found if mine.get(one.kind) == one.name)


def reserve(books: Books, live: LiveJob, command: c.ReserveBudgets) -> e.BudgetsReserved | None:
    """Reserve for each offer that the ledger admits, or for none if too few are admitted."""
    match live.phase:
        case Reserving():
            wanted = live.phase.course.next_round == command.round
        case Training():
            wanted = live.phase.round.number == command.round and bool(live.phase.topping_up)
        case _:
            wanted = False
    if not wanted:
        return None
    made = [e.Grant(secrets.token_hex(12), offer) for offer in command.offers]
    books.expect(
        account_names=[one.account for one in command.offers],
        attempt_ids=[one.attempt_id for one in made],
    )
    grants: list[e.Grant] = []
    refused: list[e.Absence] = []
    before = books.mark()
    for grant in made:
        try:
            books.book(reserve_statement(live, command.round, grant))
            grants.append(grant)
        except BudgetRefused as error:
            refused.append(e.Absence(grant.offer.node, "BUDGET", error.message))
        except FeddpError as error:
            refused.append(e.Absence(grant.offer.node, error.reason, error.message))
    if len(grants) < command.at_least:
        books.go_back(before)
        grants = []
    return e.BudgetsReserved(tuple(grants), tuple(refused))


def publish(books: Books, live: LiveJob, command: c.PublishModel) -> e.ModelPublished | None:
    """List the round's model."""
    if not isinstance(live.phase, Publishing) or live.phase.round.number != command.round:
        return None
    list_model(books.connection, live, "round", command.round, command.digest, command.model_bytes)
    return e.ModelPublished(command.round, None)
