"""How far a job gets on today's budgets, if every order gives an update and no other job spends.
Pure; the planner itself is asked about each round, so that a forecast is what would be ordered."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from coordinator.jobspec import Job
from coordinator.rounds import planner
from coordinator.rounds.allowances import allowances, tightest
from coordinator.rounds.events import Offer
from coordinator.rounds.live import release_of
from coordinator.rounds.node_facts import NodeFacts
from coordinator.rounds.participation import in_turn, wanted
from privacy.releases import Release

_NO_ROUND: Final[Mapping[Release, int]] = {}


@dataclass(frozen=True, slots=True)
class Forecast:
    """A job, played through.

    Attributes:
        rounds: that the job does before it is done, or too few hospitals can take part.
        by_node: the releases of each that takes part, in the order of their first.
    """

    rounds: int
    by_node: Mapping[str, Mapping[Release, int]]

    def releases(self, node: str) -> Mapping[Release, int]:
        """Each release of a node, with how many rounds have it."""
        return self.by_node.get(node, _NO_ROUND)


def forecast(job: Job, task_hash: str, nodes: Sequence[NodeFacts]) -> Forecast:
    """Play the job through; nodes that are busy now count as free, as they will be.

    With fewer nodes than `min_participants`, no round is done and `by_node` tells what each would
    do in rounds that others make possible.
    """
    now = {facts.node: replace(facts, taken=None) for facts in nodes}
    made: defaultdict[str, Counter[Release]] = defaultdict(Counter)
    rounds_by_node: defaultdict[str, list[int]] = defaultdict(list)
    most = wanted(job.participants, job.over_selection) or len(now)
    done = 0
    needed = job.min_participants
    starts = True
    while done < job.rounds_planned:
        offers, _ = planner.survey(job, task_hash, list(now.values()), job.rounds_planned - done)
        if done == 0 and len(offers) < needed:
            starts, needed = False, 1
        if len(offers) < needed:
            break
        chosen = in_turn(offers, rounds_by_node)[:most]
        # While nobody drops out and all are chosen each round is like the one before.
        times = job.rounds_planned - done if len(chosen) == len(offers) else 1
        times = min([times, *(_fit(now[one.node], release_of(one, job)) for one in chosen)])
        for one in chosen:
            release = release_of(one, job)
            now[one.node] = _after(now[one.node], one, release, times)
            made[one.node][release] += times
            rounds_by_node[one.node] += range(done + 1, done + 1 + times)
        done += times
    return Forecast(done if starts else 0, {node: dict(one) for node, one in made.items()})


def _fit(facts: NodeFacts, release: Release) -> int:
    """Rounds of `release` that every limit allows; at least the one that was offered."""
    account, steward = facts.account, facts.steward
    if account is None or steward is None or release.noise_multiplier is None:
        return 1 << 31
    left_units = tightest(allowances(facts, account, steward)).left_units
    return max(1, left_units // account.filter.cost_units(release))


def _after(facts: NodeFacts, offer: Offer, release: Release, times: int) -> NodeFacts:
    """The node once it was charged for `times` such rounds."""
    account = facts.account
    if account is None:
        return facts
    units = times * account.filter.cost_units(release)
    balance = replace(account.balance, posted_units=account.balance.posted_units + units)
    return replace(
        facts,
        account=replace(account, balance=balance),
        job_units=facts.job_units + units,
        job_releases=facts.job_releases + times,
        last_noise_multiplier=offer.noise_multiplier,
        shares=tuple(replace(one, used_units=one.used_units + units) for one in facts.shares),
    )
