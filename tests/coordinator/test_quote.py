"""What a quote says before anything runs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from certs.enrolment import new_ledger_key
from certs.mandates import parse
from coordinator.jobspec import Job
from coordinator.quoting import jobs_under_way, quote
from coordinator.rounds.events import Absence, Offer
from coordinator.rounds.live import release_of
from coordinator.rounds.node_facts import NodeFacts
from coordinator.rounds.planner import consider
from coordinator.store.people import NodeRecord
from coordinator.store.shares import Share
from feddp.cli.quotes import exit_code, lines, rows
from feddp.jobfile import facts_of
from feddp.signing import Caps, Work, mandate_for
from privacy.accounting import epsilon_spent
from privacy.calibration import units_for
from privacy.filters import make_filter
from privacy.ledger import Balance
from privacy.releases import Release
from protos.feddp.v1 import federation_pb2 as federation
from protos.feddp.v1 import jobs_pb2 as pb
from tests.coordinator.planning import HASH, SPEC, facts, job, offered, share

TWELVE = SPEC.replace(b"target_epsilon: 2.0", b"target_epsilon: 12.0")


def hospitals(*balances: Balance | None, **changes: Any) -> list[NodeFacts]:
    """One for each balance, by the names a, b, c, ..."""
    return [
        replace(facts(balance=balance, **changes), node=chr(ord("a") + index))
        for index, balance in enumerate(balances)
    ]


def spent(epsilon: float, limit: float = 10.0) -> Balance:
    """An account of `limit` that has spent at most `epsilon`, and not much less."""
    filter_ = make_filter("gdp", 0, limit, 1e-5)
    return Balance(filter_, posted_units=make_filter("gdp", 0, epsilon, 1e-5).limit_units)


def ordered(job_: Job, nodes: list[NodeFacts]) -> tuple[int, dict[str, list[Release]]]:
    """The job round by round as the coordinator does it without `participants`, each order an
    update: how many rounds, and the releases of each node."""
    made: dict[str, list[Release]] = {one.node: [] for one in nodes}
    for done in range(job_.rounds_planned):
        offers: list[tuple[int, Offer]] = []
        for index, one in enumerate(nodes):
            answer = consider(job_, HASH, one, job_.rounds_planned - done)
            if not isinstance(answer, Absence):
                offers.append((index, answer))
        if len(offers) < job_.min_participants:
            return done, made
        for index, offer in offers:
            release = release_of(offer, job_)
            one = nodes[index]
            made[one.node].append(release)
            assert one.account is not None
            units = one.account.filter.cost_units(release)
            balance = one.account.balance
            balance = replace(balance, posted_units=balance.posted_units + units)
            nodes[index] = replace(
                one,
                account=replace(one.account, balance=balance),
                job_units=one.job_units + units,
                job_releases=one.job_releases + 1,
                last_noise_multiplier=offer.noise_multiplier,
                shares=tuple(replace(s, used_units=s.used_units + units) for s in one.shares),
            )
    return job_.rounds_planned, made


def of(found: pb.QuoteJobResponse, node: str) -> pb.QuotedNode:
    return next(one for one in found.nodes if one.node == node)


def test_a_quote_names_the_tightest_limit() -> None:
    """Of the account's, the job's, and those within the account; and counts rounds by it."""
    filter_ = make_filter("gdp", 0, 5.0, 1e-5)
    release = offered(consider(job(), HASH, facts(), 4))
    cost_units = filter_.cost_units(Release("gaussian", release.noise_multiplier, 1.0, 5))

    def quoted(**changes: Any) -> tuple[int, str, float]:
        found = quote(job(), HASH, [facts(**changes)], 100)
        (one,) = found.nodes
        text = "".join(rows(found)[1][0])
        assert f"{one.tightest}: {one.tightest_epsilon:g}" in text
        return one.rounds_fit, one.tightest, one.tightest_epsilon

    fit = filter_.limit_units // cost_units
    assert quoted(per_job=10.0) == (fit, "account", 5.0)
    assert quoted(per_job=4.0)[1:] == ("job", 4.0)
    two = (share(10 * cost_units, 8 * cost_units), share(4 * cost_units, 3 * cost_units, "purpose"))
    assert quoted(shares=two[:1]) == (2, "project default", 0.7)
    assert quoted(shares=two) == (1, "purpose default", 0.7)
    spent = share(cost_units, 1)
    (one,) = quote(job(), HASH, [facts(shares=(spent,))], 100).nodes
    assert one.reason == "BUDGET"
    assert "project default" in one.message


def test_a_quote_warns_of_limits_within_an_account_from_80_percent_on() -> None:
    """In units or in epsilon, after the job, whichever comes first; the account is far from it."""
    one_job = facts(limit=1000.0, per_job=1000.0)
    (free,) = quote(job(), HASH, [one_job], 100).nodes
    cost_units = make_filter("gdp", 0, free.epsilon_after, 1e-5).limit_units
    for wanted, warned in ((4.0, False), (2.4, True)):
        limit = make_filter("gdp", 0, wanted, 1e-5)
        within = Share("purpose", "training", wanted, limit.limit_units, 0)
        assert (cost_units < 0.8 * limit.limit_units, free.epsilon_after < wanted) == (True, True)
        found = quote(job(), HASH, [replace(one_job, shares=(within,))], 100)
        (one,) = found.nodes
        assert list(one.shares_nearly_spent) == ["purpose training"] * warned
        assert not one.nearly_spent
        text = "would have spent 80 % or more of what its policy allows purpose training"
        assert (text in "".join(lines(found))) == warned


@pytest.mark.parametrize(
    "nodes",
    [
        hospitals(spent(2.0), spent(2.0), spent(2.0), limit=10.0, per_job=10.0),
        hospitals(spent(9.5), spent(2.0), None, None, limit=10.0, per_job=10.0),
        hospitals(spent(4.0), spent(2.0), spent(6.0), spent(1.0), limit=10.0, per_job=10.0),
        hospitals(None, None, None, limit=10.0, per_job=8.0),
        hospitals(None, None, None, limit=30.0, per_job=30.0, shares=(share(4 * 10**12, 10**12),)),
        hospitals(None, None, None, limit=30.0, per_job=30.0),
        hospitals(None, None, None, limit=30.0, per_job=30.0, kind="rdp", order=6),
    ],
)
def test_a_quote_is_what_the_job_would_spend(nodes: list[NodeFacts]) -> None:
    """Rounds, each hospital's epsilon and its account afterwards, whichever limit ends the job."""
    found = quote(job(TWELVE), HASH, nodes, 100)
    rounds, made = ordered(job(TWELVE), list(nodes))
    assert found.rounds_possible == rounds
    for one, facts_ in zip(found.nodes, nodes, strict=True):
        releases = made[one.node]
        account = facts_.account
        assert account is not None
        assert one.rounds == len(releases)
        if one.reason:
            assert (one.reason, one.HasField("epsilon_after")) == ("BUDGET", False)
            continue
        assert one.epsilon_job == epsilon_spent(releases, 1e-5)
        units = account.balance.posted_units + sum(map(account.filter.cost_units, releases))
        assert one.epsilon_after == account.filter.epsilon_of(units)
        own_units = sum(map(account.filter.cost_units, releases))
        assert one.epsilon_job_booked == account.filter.epsilon_of(own_units)
        assert one.epsilon_after <= one.epsilon_limit
    assert exit_code(found) == (0 if rounds == 4 else 4)


def test_fewer_rounds_than_planned_are_a_verdict() -> None:
    """Two of four rounds fit: each hospital has a line, the job has one, and the code says so."""
    used = [spent(2.0)] * 3
    found = quote(job(TWELVE), HASH, hospitals(*used, limit=10.0, per_job=10.0), 100)
    assert (found.rounds_possible, found.rounds_planned) == (2, 4)
    said = "\n".join(lines(found))
    for name in "abc":
        assert f"{name}: 2 of 4 rounds fit its limit (account: 10); it would take part in 2" in said
    assert "the job would do 2 of 4 rounds: then fewer than 3 hospitals can pay" in said
    # Epsilon 8.2751 of 10, though not 80 % of the units.
    assert said.count("would have spent 80 % of its budget or more") == 3
    assert exit_code(found) == 4


def test_a_hospital_that_runs_out_does_not_end_a_job_that_has_enough_others() -> None:
    """Its line stands there, and nothing else is wrong."""
    used = [spent(2.0, 20.0)] * 3
    nodes = hospitals(*used, limit=20.0, per_job=20.0)
    nodes += [replace(hospitals(spent(2.0), limit=10.0, per_job=10.0)[0], node="d")]
    found = quote(job(TWELVE), HASH, nodes, 100)
    assert (found.rounds_possible, of(found, "d").rounds, of(found, "a").rounds) == (4, 2, 4)
    said = "\n".join(lines(found))
    assert "d: 2 of 4 rounds fit" in said
    assert "the job would do" not in said
    assert exit_code(found) == 0


def test_a_job_that_chooses_in_turn_is_quoted_turn_by_turn() -> None:
    """Three of six in each of four rounds: two each, those that start late with less noise in each
    and the whole target all the same."""
    spec = SPEC.replace(b"local_steps: 5", b"local_steps: 5, participants: 3")
    found = quote(job(spec), HASH, hospitals(*[None] * 6), 100)
    assert [one.rounds for one in found.nodes] == [2] * 6
    assert of(found, "a").noise_multiplier > of(found, "f").noise_multiplier
    assert of(found, "a").epsilon_job < of(found, "f").epsilon_job <= 2.0
    assert exit_code(found) == 0


def test_what_stops_a_job_other_than_budgets_has_its_own_exit_code() -> None:
    """A script that reads 0 may go on: not with too few hospitals, for whatever reason."""
    spec = SPEC.replace(b"target_epsilon: 2.0, delta: 1.0e-5", b"noise_multiplier: 0.2")
    found = quote(job(spec), HASH, hospitals(None, None, None), 100)
    assert {one.reason for one in found.nodes} == {"NOISE_TOO_LOW"}
    assert (found.rounds_possible, exit_code(found)) == (0, 1)
    assert "the job cannot start now" in "\n".join(lines(found))
    assert exit_code(quote(job(), HASH, hospitals(None, None), 100)) == 1
    assert exit_code(quote(job(), HASH, hospitals(None, None, None), 100)) == 0
    broke = hospitals(*[spent(9.9999)] * 3, limit=10.0)
    assert exit_code(quote(job(), HASH, broke, 100)) == 4


def test_a_hospital_that_is_away_is_told_what_it_would_spend() -> None:
    """It takes part once it is back; what it would be refused for then is not told as a cost."""
    away = replace(facts(), connected=False)
    (one,) = quote(job(), HASH, [away], 100).nodes
    (there,) = quote(job(), HASH, [facts()], 100).nodes
    assert one.reason == "OFFLINE"
    assert one.message == (
        "is not connected; once it is back it takes part, and spends epsilon "
        f"{there.epsilon_job:g} at most"
    )
    assert one.epsilon_job_booked == there.epsilon_job_booked > 0
    (spent_up,) = quote(
        job(), HASH, [replace(facts(balance=spent(5.0, 5.0)), connected=False)], 0
    ).nodes
    assert spent_up.message == "is not connected"
    (disabled,) = quote(job(), HASH, [replace(away, disabled=True)], 100).nodes
    assert disabled.reason == "DISABLED"
    assert "once it is back" not in disabled.message


def test_a_quote_warns_of_jobs_under_way_that_spend_from_the_same_account() -> None:
    """One line names accounts, whatever data set of theirs the jobs are on; jobs that spend nothing
    do not count, nor do other data sets' jobs."""
    declared = [federation.DataSet(name="heart-disease", account="patients")]
    declared.append(federation.DataSet(name="lungs", account="patients"))
    nodes = [
        NodeRecord("a", "edge", "enrolled", b"", 0.0, federation.Hello(data_sets=declared)),
        NodeRecord("b", "edge", "enrolled", b"", 0.0, federation.Hello(data_sets=declared[1:])),
    ]
    specs = [SPEC, SPEC.replace(b"heart-disease", b"lungs"), SPEC.replace(b"heart-disease", b"x")]
    unnoised = SPEC.replace(b"target_epsilon: 2.0", b"mechanism: none")
    live = [SimpleNamespace(job=job(one)) for one in (*specs, unnoised)]
    assert jobs_under_way(nodes, cast(Any, live)) == {"a/patients": 2, "b/patients": 1}
    found = quote(job(), HASH, hospitals(None, None, None), 100)
    assert "under way" not in "\n".join(lines(found))
    found.nodes[0].jobs_under_way = 2
    (warning,) = [one for one in lines(found) if "under way" in one]
    assert warning.startswith("warning: a/patients: up to 2 jobs that are under way will spend")


def test_a_hospital_whose_account_is_damaged_is_named_by_that_first() -> None:
    """It may dispute the ledger for the same reason, which its steward cannot settle."""
    nodes = hospitals(None, None, None)
    assert nodes[0].steward is not None
    nodes[0].steward.refuses = "LEDGER_DISPUTED"
    found = quote(job(), HASH, [replace(nodes[0], damaged=True), *nodes[1:]], 100)
    assert of(found, "a").reason == "LEDGER_DAMAGED"
    assert "feddp budget verify" in of(found, "a").message


def test_a_quote_shows_at_what_an_rdp_account_starts() -> None:
    """So that AFTER less BEFORE and the job's epsilon add up for who reads the table."""
    nodes = hospitals(None, None, None, limit=30.0, per_job=30.0, kind="rdp", order=6)
    found = quote(job(TWELVE), HASH, nodes, 100)
    headers, (row, *_) = rows(found)
    assert row[headers.index("STARTS AT")] == "1.762"
    assert "STARTS AT is the conversion cost" in "\n".join(lines(found))
    headers, _ = rows(quote(job(), HASH, hospitals(None, None, None), 100))
    assert "STARTS AT" not in headers


def test_a_quote_tells_the_guarantee_beside_the_limit_and_never_the_limit_as_it() -> None:
    """A lowered limit is none; what a coordinator of before does not tell is not made up."""
    found = quote(job(), HASH, hospitals(None, None, None), 100)
    found.nodes[0].epsilon_guarantee = 20.0
    found.nodes[2].ClearField("epsilon_before")  # its account has released without noise
    headers, told = rows(found)
    shown = [[row[headers.index(name)] for name in ("LIMIT", "GUARANTEE", "DELTA")] for row in told]
    limit = f"{found.nodes[0].epsilon_limit:g}"
    assert shown == [
        [limit, "20", "1e-05"],
        [limit, "not told", "1e-05"],
        [limit, "none", "1e-05"],
    ]
    text = "\n".join(lines(found))
    assert "GUARANTEE is the highest limit that was ever in force" in text
    assert "BOOKED BEFORE and AFTER are what the account's filter holds" in text
    assert "running figures" not in text


def test_what_a_quote_says_at_most_is_never_less_and_noise_never_more() -> None:
    """2.4 hours are no "at most 2 h", and noise of 1.1041956 is not 1.1042."""
    found = quote(job(), HASH, hospitals(None, None, None), 100)
    for seconds, said in ((8640.0, "2.4 h"), (1200.0, "20 min"), (7261.0, "2.02 h"), (9.0, "9 s")):
        found.seconds_max = seconds
        assert f"at most {said} while" in "\n".join(lines(found))
    for size, said in ((1_231_000, "1.24 MB"), (999_999, "1000 kB"), (480, "480 bytes")):
        for one in found.nodes:
            one.download_bytes = size
        assert f"at most {said} in" in "\n".join(lines(found))
    found.nodes[0].noise_multiplier = 1.1041956
    headers, (row, *_) = rows(found)
    assert row[headers.index("NOISE")] == "1.104195"


def test_one_hospital_publishes_and_one_round_is_done() -> None:
    """Numbers and words agree."""
    one = quote(replace(job(), rounds_planned=1), HASH, hospitals(None), 100)
    text = "\n".join(lines(one))
    assert "only 1 hospital publishes this data set" in text
    assert "; 1 round\n" in text
    two = "\n".join(lines(quote(job(), HASH, hospitals(None, None), 100)))
    assert "only 2 hospitals publish this data set" in two


def test_a_hospital_that_refuses_orders_is_not_counted() -> None:
    """While a node disputes the ledger it refuses every order, and has said so."""
    nodes = hospitals(None, None, None)
    assert nodes[0].steward is not None
    nodes[0].steward.refuses = "LEDGER_DISPUTED"
    found = quote(job(), HASH, nodes, 100)
    assert of(found, "a").reason == "LEDGER_DISPUTED"
    assert "feddp agent ledger settle" in of(found, "a").message
    assert "2 of at least 3 hospitals can take part" in "\n".join(lines(found))
    assert exit_code(found) == 1


@pytest.mark.parametrize("reason", ["SCHEMA_MISMATCH", "SOURCE_MISSING", "OF_A_NEWER_AGENT"])
def test_a_hospital_whose_data_set_cannot_be_read_is_not_counted(reason: str) -> None:
    """Its agent has looked at the header and said so; a job that reads nothing does not care."""
    nodes = hospitals(None, None, None)
    nodes[1].data_set.unavailable = reason
    found = quote(job(), HASH, nodes, 100)
    assert of(found, "b").reason == reason
    assert "its data steward sees more with `feddp agent status`" in of(found, "b").message
    assert "2 of at least 3 hospitals can take part" in "\n".join(lines(found))
    assert exit_code(found) == 1
    reads_nothing = replace(job(), mechanism="no_data", target_epsilon=None)
    assert of(quote(reads_nothing, HASH, nodes, 100), "b").reason == ""


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("DATA_SET_MOVED", "declared on another account than the one that it has paid from"),
        ("ACCOUNT_LEFT_OUT", "leaves out an account that has entries"),
        ("DELTA_TOO_LARGE", "delta of its account is too large"),
        ("POLICY_FILTER_CHANGED", "another filter or delta than its entries"),
        ("POLICY_INVALID", "policy cannot be read"),
        ("DATA_SET_UNSIGNED", "no steward has signed"),
    ],
)
def test_a_hospital_whose_stewards_files_are_broken_is_named_with_its_reason(
    reason: str, said: str
) -> None:
    """It publishes no account then; it would refuse a job that reads nothing as well."""
    nodes = hospitals(None, None, None)
    nodes[1] = replace(nodes[1], steward=None)
    nodes[1].data_set.unavailable = reason
    reads_nothing = replace(job(), mechanism="no_data", target_epsilon=None)
    for one in (job(), reads_nothing):
        found = quote(one, HASH, nodes, 100)
        assert of(found, "b").reason == reason
        assert said in of(found, "b").message


def test_a_quote_says_of_which_backup_a_hospital_is_still_to_hand_in() -> None:
    """Nothing is planned on its account before, whatever it could pay."""
    nodes = hospitals(None, None)
    nodes[1] = replace(nodes[1], restored_from="2026-11-27 05:00:00 UTC")
    quoted = quote(job(), HASH, nodes, 1000)
    assert [one.reason for one in quoted.nodes] == ["", "LEDGER_RECONCILING"]
    assert "from a backup of 2026-11-27 05:00:00 UTC" in quoted.nodes[1].message
    assert "has not yet handed in" in quoted.nodes[1].message


@pytest.mark.parametrize("connected", [True, False])
def test_what_is_signed_by_a_quote_covers_the_job_at_every_account(connected: bool) -> None:
    """An rdp account, which starts at its conversion cost, books more for a small job than the job
    comes to by itself: signed for that alone, its node would refuse each order."""
    spec = SPEC.replace(b"target_epsilon: 2.0", b"noise_multiplier: 20.0")
    nodes = hospitals(None, None, limit=10.0)
    nodes.append(replace(facts(limit=10.0, kind="rdp", order=5), node="c", connected=connected))
    _, made = ordered(job(spec), [replace(one, connected=True) for one in nodes])
    work = Work(spec, facts_of(spec), HASH, HASH, ["a", "b", "c"])
    signed = mandate_for(new_ledger_key(), work, Caps(), lambda: quote(job(spec), HASH, nodes, 100))
    most = parse(signed.body).epsilon_max
    for one in nodes:
        assert one.account is not None
        filter_ = one.account.filter
        units = sum(map(filter_.cost_units, made[one.node]))
        assert 0 < units <= units_for(filter_.kind, filter_.order, most, filter_.delta)
