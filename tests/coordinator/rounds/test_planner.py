"""Who may take part, and with which noise."""

import math
import re
from dataclasses import replace

import pytest

from coordinator.rounds.ending import exhausted_message
from coordinator.rounds.events import Absence, Offer
from coordinator.rounds.noise_plan import NOISE_OVER_PLAN_MAX
from coordinator.rounds.planner import consider
from privacy.accounting import epsilon_spent
from privacy.calibration import REPORT_SLACK_UNITS
from privacy.filters import default_filter, make_filter
from privacy.ledger import Balance, Pending
from privacy.releases import Release
from protos.feddp.v1 import federation_pb2 as federation
from tests.coordinator.planning import HASH, SPEC, absent, facts, job, offered, share


def test_the_planned_rounds_together_cost_the_target_and_not_more() -> None:
    """Four rounds of five steps at the offered noise spend epsilon 2, by dp-accounting."""
    offer = offered(consider(job(), HASH, facts(), 4))
    release = Release("gaussian", offer.noise_multiplier, 1.0, 5)
    spent = epsilon_spent([release] * 4, 1e-5)
    assert spent is not None
    assert 1.999 < spent <= 2.0


def test_noise_stays_the_same_from_round_to_round_when_nothing_went_wrong() -> None:
    """What remains over the rounds that remain is the same share each round."""
    first = offered(consider(job(), HASH, facts(), 4))
    cost = facts().account.filter.cost_units(  # type: ignore[union-attr]
        Release("gaussian", first.noise_multiplier, 1.0, 5)
    )
    for done in (1, 2, 3):
        later = facts(job_units=done * cost, job_releases=done, last=first.noise_multiplier)
        assert offered(consider(job(), HASH, later, 4 - done)) == first


def test_fewer_steps_than_were_refused_have_less_noise() -> None:
    """An order that a node refuses, as so many steps do not fit, costs nothing: the next one is as
    if it had never been, and takes the target up."""
    spec = SPEC.replace(b"local_steps: 5", b"local_steps: 10000")
    refused = offered(consider(job(spec), HASH, facts(), 4))
    now = replace(facts(last=refused.noise_multiplier), steps_possible=5)
    assert offered(consider(job(spec), HASH, now, 4)) == offered(consider(job(), HASH, facts(), 4))


def test_what_a_round_without_the_node_has_left_is_spread_over_the_others() -> None:
    """One that was not chosen for the second of four rounds spends its target in three."""
    first = offered(consider(job(), HASH, facts(), 4))
    release = Release("gaussian", first.noise_multiplier, 1.0, 5)
    cost = facts().account.filter.cost_units(release)  # type: ignore[union-attr]
    now = facts(job_units=cost, job_releases=1, last=first.noise_multiplier)
    third = offered(consider(job(), HASH, now, 2))
    later = Release("gaussian", third.noise_multiplier, 1.0, 5)
    spent = epsilon_spent([release, later, later], 1e-5)
    assert spent is not None
    assert 1.999 < spent <= 2.0


def test_noise_at_the_policys_least_stays_there() -> None:
    """However much of the target it leaves, and with fewer steps too."""
    spec = SPEC.replace(b"rounds: 4", b"rounds: 1").replace(b"epsilon: 2.0", b"epsilon: 1000")
    bare = facts(limit=1000.0, per_job=1000.0)
    first = offered(consider(job(spec), HASH, bare, 1))
    assert first.noise_multiplier == 0.3
    now = replace(facts(limit=1000.0, per_job=1000.0, last=0.3), steps_possible=1)
    assert offered(consider(job(spec), HASH, now, 1)).noise_multiplier == 0.3


def test_every_release_leaves_its_part_of_the_target_unused() -> None:
    """Those that were made and those to come: each adds to what another accountant reports."""
    small = job(SPEC.replace(b"target_epsilon: 2.0", b"target_epsilon: 0.05"))
    account = facts().account
    assert account is not None
    units, last = 0, None
    attempts = (4, 4, 4, 3, 2, 1)  # rounds left; two attempts at the first came to nothing
    for made, rounds_left in enumerate(attempts):
        now = facts(job_units=units, job_releases=made, last=last)
        last = offered(consider(small, HASH, now, rounds_left)).noise_multiplier
        units += account.filter.cost_units(Release("gaussian", last, 1.0, 5))
    unused = make_filter("gdp", 0, 0.05, 1e-5).limit_units - units
    assert len(attempts) <= unused / REPORT_SLACK_UNITS < len(attempts) + 1


def test_an_attempt_that_came_to_nothing_costs_noise_later_and_never_the_promise() -> None:
    """Two charges in round one: the rest of the budget is spread over the four rounds left."""
    first = offered(consider(job(), HASH, facts(), 4))
    release = Release("gaussian", first.noise_multiplier, 1.0, 5)
    cost = facts().account.filter.cost_units(release)  # type: ignore[union-attr]
    charged = facts(job_units=cost, job_releases=1, last=first.noise_multiplier)
    again = offered(consider(job(), HASH, charged, 4))
    assert again.noise_multiplier is not None
    assert first.noise_multiplier is not None
    assert again.noise_multiplier > first.noise_multiplier
    repeated = Release("gaussian", again.noise_multiplier, 1.0, 5)
    spent = epsilon_spent([release, *([repeated] * 4)], 1e-5)
    assert spent is not None
    assert spent <= 2.0


def test_after_many_failed_attempts_the_report_still_shows_at_most_the_target() -> None:
    """The accountant's rounding grows with each entry; room for it is kept for all of them."""
    spec = SPEC.replace(b"target_epsilon: 2.0", b"target_epsilon: 0.2").replace(
        b"rounds: 4", b"rounds: 60"
    )
    made: list[Release] = []
    account = facts().account
    assert account is not None
    last: float | None = None
    for rounds_left in [*range(60, 30, -1), *[30] * 3, *range(30, 0, -1)]:
        units = sum(account.filter.cost_units(one) for one in made)
        now = facts(job_units=units, job_releases=len(made), last=last)
        last = offered(consider(job(spec), HASH, now, rounds_left)).noise_multiplier
        made.append(Release("gaussian", last, 1.0, 5))
    spent = epsilon_spent(made, 1e-5)
    assert spent is not None
    assert 0.199 < spent <= 0.2


@pytest.mark.parametrize(("kind", "order"), [("gdp", 0), ("rdp", 5)])
def test_a_node_is_ordered_no_more_than_what_was_signed(kind: str, order: int) -> None:
    """It would refuse, for good, and the others would be charged for a round that comes to nothing.
    It counts by its account's filter, by which an rdp account starts at epsilon 2.26."""
    fixed = job(SPEC.replace(b"target_epsilon: 2.0", b"noise_multiplier: 9.0"))
    filter_ = make_filter(kind, order, 5.0, 1e-5)
    cost_units = filter_.cost_units(Release("gaussian", 9.0, 1.0, 5))
    signed = filter_.epsilon_of(2 * cost_units) * 1.0001

    def asked(done: int, signed: float) -> Offer | Absence:
        now = facts(kind=kind, order=order, job_units=done * cost_units, signed=signed)
        return consider(fixed, HASH, now, 4)

    assert offered(asked(1, signed)).noise_multiplier == 9.0
    answer = absent(asked(2, signed))
    assert (answer.reason, answer.for_good) == ("BUDGET", True)
    assert answer.message == (
        f"the job was signed for epsilon {signed:g} at one hospital in all (`--epsilon-max`), and "
        "another round would pass it"
    )
    assert absent(asked(0, 1e-3)).reason == "BUDGET"


def test_nothing_left_of_the_jobs_share_is_a_budget_absence_for_good() -> None:
    """A share that is used up cannot come back during the job."""
    share = make_filter("gdp", 0, 2.0, 1e-5).limit_units
    answer = absent(consider(job(), HASH, facts(job_units=share, last=9.0), 1))
    assert (answer.reason, answer.for_good) == ("BUDGET", True)


def charged(times: float, rounds_left: int, **more: int) -> Offer | Absence:
    """What a node is told that the job has charged for so many of four planned rounds."""
    first = offered(consider(job(), HASH, facts(), 4)).noise_multiplier
    share = make_filter("gdp", 0, 2.0, 1e-5)
    units = int(times * share.cost_units(Release("gaussian", first, 1.0, 5)))
    now = facts(job_units=units, job_releases=math.ceil(times), last=first, **more)  # type: ignore[arg-type]
    return consider(job(), HASH, now, rounds_left)


def test_no_update_of_pure_noise_is_ordered_when_the_last_attempt_came_to_nothing() -> None:
    """Four rounds are charged and the last one is to do: what is left would need a noise of
    hundreds, so that the node is left out, with who spent what of which limit."""
    answer = absent(charged(3.999, 1, no_updates=1))
    assert (answer.reason, answer.for_good) == ("BUDGET", True)
    assert "its data was opened and no update came of it, which stays charged" in answer.message
    assert "the job's own target_epsilon 2 " in answer.message
    assert "not the one of account a/patients" in answer.message
    assert re.search(r"noise multiplier of \d{3}.*more than 3 times the 8\.9166 ", answer.message)
    assert "hospital's own log" in answer.message
    said = exhausted_message((answer,))
    assert "or of the job's own target (a: its data was opened" in said


def test_where_no_noise_is_enough_the_attempts_are_named_and_not_the_plan() -> None:
    """More is charged than the plan has: the sentence is about the attempts, as before."""
    answer = absent(charged(5, 1, no_updates=2, cut_off=1))
    assert "came of it (2 times) and a round closed before it had answered, " in answer.message
    assert "another release there, whatever its noise; " in answer.message
    assert "A plan of" not in answer.message


@pytest.mark.parametrize(
    ("times", "rounds_left", "over_plan"),
    [(1, 4, 4 / 3), (3, 2, 2.0), (3.5, 2, 4.0), (3.75, 2, 8.0), (3.89, 1, 9.1)],
)
def test_noise_grows_by_what_attempts_cost_up_to_three_times_the_plans(
    times: float, rounds_left: int, over_plan: float
) -> None:
    """`over_plan` is of the variance: up to nine times the plan's, the hospital takes part."""
    first = offered(consider(job(), HASH, facts(), 4)).noise_multiplier
    assert first is not None
    answer = charged(times, rounds_left, no_updates=1)
    if over_plan > NOISE_OVER_PLAN_MAX**2:
        assert absent(answer).reason == "BUDGET"
    else:
        noise = offered(answer).noise_multiplier
        assert noise == pytest.approx(first * over_plan**0.5, rel=1e-3)


def test_a_stewards_least_noise_is_part_of_the_plan() -> None:
    """Who asks for ten times the noise has it in every round, and is not left out for it."""
    first = offered(consider(job(), HASH, facts(), 4)).noise_multiplier
    assert first is not None
    strict = facts(job_units=1, job_releases=1, last=first, no_updates=1)
    assert strict.steward is not None
    strict.steward.noise_multiplier_min = 10 * first
    assert offered(consider(job(), HASH, strict, 4)).noise_multiplier == 10 * first


def test_who_came_late_may_try_again_with_the_noise_of_the_plan() -> None:
    """In the last of four rounds it spends its whole target at once; half of it is left after an
    attempt at the last but one, which is less noise than the others have."""
    late = offered(consider(job(), HASH, facts(), 2)).noise_multiplier
    cost = make_filter("gdp", 0, 2.0, 1e-5).cost_units(Release("gaussian", late, 1.0, 5))
    again = facts(job_units=cost, job_releases=1, last=late, no_updates=1)
    early = offered(consider(job(), HASH, facts(), 4)).noise_multiplier
    noise = offered(consider(job(), HASH, again, 2)).noise_multiplier
    assert noise is not None
    assert noise == pytest.approx(early, rel=1e-3)


def test_an_account_that_cannot_pay_is_left_out_with_its_figures() -> None:
    """The message says how much was spent of how much, which the ledger shows anyway."""
    filter_ = make_filter("gdp", 0, 5.0, 1e-5)
    spent = Balance(filter_, posted_units=filter_.limit_units - 10)
    answer = absent(consider(job(), HASH, facts(balance=spent), 4))
    assert (answer.reason, answer.for_good) == ("BUDGET", True)
    assert "has booked epsilon 5 of 5 at delta 1e-05" in answer.message


def test_a_pending_reservation_of_another_job_is_not_for_good() -> None:
    """It may still be voided, so the job waits."""
    filter_ = make_filter("gdp", 0, 5.0, 1e-5)
    held = Balance(filter_, pending=(Pending("other", filter_.limit_units - 10, HASH),))
    answer = absent(consider(job(), HASH, facts(balance=held), 4))
    assert (answer.reason, answer.for_good) == ("BUDGET", False)


def test_the_stewards_limit_for_one_job_holds() -> None:
    """Epsilon 0.5 a job: the first of four rounds of an epsilon-2 job already passes it."""
    answer = absent(consider(job(), HASH, facts(per_job=0.5), 4))
    assert answer.reason == "BUDGET"
    assert "for one job" in answer.message


@pytest.mark.parametrize("kind", ["project", "purpose"])
def test_a_round_that_passes_a_limit_within_the_account_is_not_ordered(kind: str) -> None:
    """To meet it is allowed; one unit less, and the hospital is left out with the limit's name."""
    offer = offered(consider(job(), HASH, facts(), 4))
    release = Release("gaussian", offer.noise_multiplier, 1.0, 5)
    cost_units = make_filter("gdp", 0, 5.0, 1e-5).cost_units(release)
    enough = share(3 * cost_units, 2 * cost_units, kind)
    assert offered(consider(job(), HASH, facts(shares=(enough,)), 4)) == offer
    short = share(3 * cost_units, 2 * cost_units + 1, kind)
    answer = absent(consider(job(), HASH, facts(shares=(enough, short)), 4))
    assert (answer.reason, answer.for_good) == ("BUDGET", True)
    assert f"{kind} default epsilon 0.7 of account a/patients" in answer.message


def test_what_others_hold_of_a_limit_may_come_back() -> None:
    """Reservations that are open may be void: the job waits for them."""
    filter_ = make_filter("gdp", 0, 5.0, 1e-5)
    held = Balance(filter_, pending=(Pending("other", 900, HASH),))
    full = share(filter_.limit_units // 2, filter_.limit_units // 2)
    answer = absent(consider(job(), HASH, facts(balance=held, shares=(full,)), 4))
    assert (answer.reason, answer.for_good) == ("BUDGET", True)
    held = Balance(filter_, pending=(Pending("other", filter_.limit_units // 2, HASH),))
    answer = absent(consider(job(), HASH, facts(balance=held, shares=(full,)), 4))
    assert (answer.reason, answer.for_good) == ("BUDGET", False)


def test_a_limit_that_the_filter_cannot_count_by_is_named() -> None:
    """The node refuses every order by it, for as long as its policy says so."""
    broken = replace(share(0, 0), fault="An rdp account of order 3 starts at epsilon 4.80.")
    answer = absent(consider(job(), HASH, facts(shares=(broken,)), 4))
    assert (answer.reason, answer.for_good) == ("POLICY_INVALID", False)
    assert "project default: An rdp account" in answer.message


def test_large_data_sets_are_sampled_and_small_ones_are_not() -> None:
    """Poisson sampling from 1,000 declared records, on an account whose filter covers it."""
    spec = SPEC.replace(b"target_epsilon: 2.0", b"target_epsilon: 8.0")
    large = facts(kind="rdp", order=4, limit=10.0, declared_n=5000, per_job=10.0)
    offer = offered(consider(job(spec), HASH, large, 4))
    assert (offer.mechanism, offer.sample_rate) == ("poisson_gaussian", 256 / 5000)
    first = facts(kind="rdp", order=4, limit=10.0, declared_n=1000, per_job=10.0)
    assert offered(consider(job(spec), HASH, first, 4)).mechanism == "poisson_gaussian"
    small = facts(kind="rdp", order=4, limit=10.0, declared_n=999, per_job=10.0)
    assert offered(consider(job(spec), HASH, small, 4)).mechanism == "gaussian"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"connected": False}, "OFFLINE"),
        ({"disabled": True}, "DISABLED"),
        ({"account": None}, "ACCOUNT_UNKNOWN"),
        ({"restored_from": "2026-11-27 05:00:00 UTC"}, "LEDGER_RECONCILING"),
        ({"restored_from": "2026-11-27 05:00:00 UTC", "damaged": True}, "LEDGER_DAMAGED"),
        ({"data_set": federation.DataSet(name="heart-disease")}, "TASK_NOT_ALLOWED"),
        ({"data_set": federation.DataSet(unavailable="DATA_SET_WITHDRAWN")}, "DATA_SET_WITHDRAWN"),
    ],
)
def test_each_absence_has_its_own_reason(change: dict[str, object], reason: str) -> None:
    """People read these to know whom to call."""
    answer = consider(job(), HASH, replace(facts(), **change), 4)  # type: ignore[arg-type]
    assert absent(answer).reason == reason


def test_another_delta_or_filter_than_the_accounts_is_an_absence_with_its_own_reason() -> None:
    """Such a round could be ordered and would be refused by every node."""
    spec = SPEC.replace(b"delta: 1.0e-5", b"delta: 1.0e-6")
    assert absent(consider(job(spec), HASH, facts(), 4)).reason == "DELTA_MISMATCH"
    changed = facts()
    assert changed.steward is not None
    changed.steward.filter = "rdp"
    assert absent(consider(job(), HASH, changed, 4)).reason == "ACCOUNT_CHANGED"


def test_a_delta_of_one_over_the_declared_patients_keeps_the_node_out() -> None:
    """At 100,000 declared patients delta 1e-5 would let one record go whole."""
    assert isinstance(consider(job(), HASH, facts(declared_n=99_999), 4), Offer)
    answer = absent(consider(job(), HASH, facts(declared_n=100_000), 4))
    assert answer.reason == "DELTA_TOO_LARGE"
    assert "1/100000" in answer.message
    nothing_read = replace(job(), mechanism="no_data", target_epsilon=None)
    assert isinstance(consider(nothing_read, HASH, facts(declared_n=100_000), 4), Offer)
    asked = SPEC.replace(b"delta: 1.0e-5", b"delta: 0.01")
    answer = absent(consider(job(asked), HASH, facts(declared_n=303), 4))
    assert answer.reason == "DELTA_TOO_LARGE"  # though it is not the account's either
    assert "delta must be below 1/303, and the job asks for 0.01" in answer.message
    assert answer.message.endswith("set privacy.delta to 1e-05 in the job")


@pytest.mark.parametrize(
    ("target", "kind", "order", "least"),
    [("3.0", "rdp", 4, "starts at epsilon 3.09"), ("0.0001", "gdp", 0, "takes epsilon 0.0")],
)
def test_a_target_below_what_one_round_costs_says_what_the_least_is(
    target: str, kind: str, order: int, least: str
) -> None:
    """Below the conversion cost of rdp, or too little for any noise: a sentence with a number."""
    spec = SPEC.replace(b"target_epsilon: 2.0", f"target_epsilon: {target}".encode())
    answer = absent(consider(job(spec), HASH, facts(kind=kind, order=order, limit=10.0), 100))
    assert (answer.reason, answer.for_good) == ("BUDGET", True)
    assert least in answer.message


def test_a_policy_that_makes_no_sense_keeps_only_its_own_node_out() -> None:
    """A per-job limit below the filter's conversion cost is this node's absence, no error."""
    spec = SPEC.replace(b"target_epsilon: 2.0", b"target_epsilon: 8.0")
    broken = facts(kind="rdp", order=3, limit=10.0, declared_n=5000, per_job=3.0)
    assert absent(consider(job(spec), HASH, broken, 4)).reason == "POLICY_INVALID"


def test_a_higher_least_noise_is_taken_up_within_the_job() -> None:
    """The steward asks for more noise after round one: later rounds have it."""
    first = offered(consider(job(), HASH, facts(), 4)).noise_multiplier
    assert first is not None
    stricter = facts(last=first)
    assert stricter.steward is not None
    stricter.steward.noise_multiplier_min = 2 * first
    assert offered(consider(job(), HASH, stricter, 3)).noise_multiplier == 2 * first


def test_a_job_without_noise_needs_the_stewards_word() -> None:
    """`unaccounted: allow` must stand in the policy; it is refused by default."""
    spec = SPEC.replace(b"target_epsilon: 2.0, delta: 1.0e-5", b"mechanism: none")
    assert absent(consider(job(spec), HASH, facts(), 4)).reason == "UNACCOUNTED_REFUSED"
    allowed = facts()
    assert allowed.steward is not None
    allowed.steward.unaccounted_allowed = True
    offer = offered(consider(job(spec), HASH, allowed, 4))
    assert (offer.mechanism, offer.noise_multiplier) == ("none", None)


def test_a_fixed_noise_below_the_stewards_minimum_is_refused() -> None:
    """The steward's least noise holds whatever the job asks."""
    spec = SPEC.replace(b"target_epsilon: 2.0, delta: 1.0e-5", b"noise_multiplier: 0.2")
    assert absent(consider(job(spec), HASH, facts(), 4)).reason == "NOISE_TOO_LOW"


def test_a_node_that_comes_late_splits_its_share_over_the_rounds_that_it_will_be_in() -> None:
    """Two of four rounds are gone: what it spends in the two that are left is the target, with
    less noise in each than the others have, who are in all four."""
    late = offered(consider(job(), HASH, facts(), 2)).noise_multiplier
    early = offered(consider(job(), HASH, facts(), 4)).noise_multiplier
    assert late is not None
    assert early is not None
    assert late == pytest.approx(early / 2**0.5, rel=1e-3)
    spent = epsilon_spent([Release("gaussian", late, 1.0, 5)] * 2, 1e-5)
    assert spent is not None
    assert 1.999 < spent <= 2.0


def test_an_evaluation_has_every_patient_in_it_however_many_there_are() -> None:
    """Its counts are one release of one step; where training would sample, it does not."""
    spec = SPEC.replace(b"tabular-classifier", b"tabular-evaluation")
    spec = spec.replace(b"federation: {rounds: 4, local_steps: 5}\n", b"")
    spec = spec.replace(b"target_epsilon: 2.0", b"target_epsilon: 8.0")
    large = facts(kind="rdp", order=4, limit=10.0, declared_n=5000, per_job=10.0)
    large.data_set.tasks[:] = [f"tabular-evaluation@{HASH}"]
    evaluation = job(spec)
    assert (evaluation.rounds_planned, evaluation.max_grad_norm) == (1, 1.0)
    offer = offered(consider(evaluation, HASH, large, 1))
    assert (offer.mechanism, offer.sample_rate, offer.local_steps) == ("gaussian", 1.0, 1)


def test_of_several_limits_that_a_round_passes_the_tightest_is_named() -> None:
    """The account's 1 and not the policy's 10 for one job, when both are passed."""
    spec = SPEC.replace(b"target_epsilon: 2.0", b"target_epsilon: 60.0")
    answer = absent(consider(job(spec), HASH, facts(limit=1.0, per_job=10.0), 1))
    assert (answer.reason, answer.for_good) == ("BUDGET", True)
    assert "of 1 at delta" in answer.message
    assert "for one job" not in answer.message


def test_a_target_below_the_conversion_cost_is_the_jobs_to_raise() -> None:
    """The engineer can change neither the account's limit nor its filter."""
    message = absent(consider(job(), HASH, facts(kind="rdp", order=3, limit=10.0), 4)).message
    assert "starts at epsilon 4.81" in message
    assert "target_epsilon is 2: raise privacy.target_epsilon in the job above 4.81" in message
    assert "use gdp" not in message


@pytest.mark.parametrize("target", [b"2.5", b"3.0", b"5.0"])
def test_a_large_hospital_by_the_defaults_takes_part_in_usual_jobs(target: bytes) -> None:
    """Limit 10, at most 5 a job, thousands of patients: what the template of a policy says."""
    kind, order = default_filter(5000, 10.0, 1e-5, 5.0)
    asked = job(SPEC.replace(b"target_epsilon: 2.0", b"target_epsilon: " + target))
    large = facts(kind=kind, order=order, limit=10.0, declared_n=5000)
    assert isinstance(consider(asked, HASH, large, 4), Offer)


def test_a_wrong_delta_is_told_what_a_delta_is_worth() -> None:
    """Which one to set, and that one of 1/n or more says nothing."""
    spec = SPEC.replace(b"delta: 1.0e-5", b"delta: 0.1")
    message = absent(consider(job(spec), HASH, facts(), 4)).message
    assert "set privacy.delta to 1e-05" in message
    assert "declares 199 patients, where delta must be below 1/199" in message


def test_the_end_of_a_job_names_the_limit_that_ended_it() -> None:
    """An account with most of its budget left is not called spent for a purpose that is full."""
    full = facts(shares=(share(10, 10, "purpose"),))
    said = exhausted_message((absent(consider(job(), HASH, full, 4)),))
    assert "a: its policy allows purpose default epsilon 0.7 of account a/patients" in said
    many = tuple(Absence(f"h{n:02}", "BUDGET", "is spent.", True) for n in range(10))
    said = exhausted_message(many)
    assert "h07: is spent; and 2 more" in said
