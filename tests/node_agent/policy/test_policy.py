"""The steward's policy file, and every reason for which an order is refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.ledger.account_filters import FixedFilter, filter_of
from node_agent.policy.judgement import STEPS_MAX, UNRESOLVED_MAX, Standing, judge, judge_spending
from node_agent.policy.policy import load_policy
from privacy.calibration import noise_multiplier_for
from privacy.filters import make_filter
from protos.errors import FeddpError, Malformed, WrongPhase
from tests.node_agent.samples import (
    NO_DATA,
    NODE,
    POLICY,
    TASK,
    TASKS,
    data_set,
    order,
    policy,
    write_rules,
)
from tests.stewards import vouched

FIXED = FixedFilter("gdp", 0, 1.0e-5)
LIMIT_UNITS = make_filter("gdp", 0, 10.0, 1.0e-5).limit_units


def reason(order_: Any, policy_: Any = None, standing: Standing | None = None) -> str:
    found = judge(policy_ or policy(), [data_set()], TASKS, order_, NODE, standing or Standing())
    return found.reason if found else ""


def test_an_order_within_the_policy_is_allowed() -> None:
    """Nothing to say against it: no refusal, with and without data."""
    assert reason(order()) == ""
    assert reason(order(**NO_DATA)) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data_set": "lungs"}, "DATA_SET_UNKNOWN"),
        ({"task": "other"}, "TASK_NOT_ALLOWED"),
        ({"task_hash": "0" * 64}, "TASK_NOT_ALLOWED"),
        ({"account": "others"}, "ACCOUNT_MISMATCH"),
        ({"release_declared_n": 200}, "DECLARED_N_MISMATCH"),
        ({"release_unit": "visit"}, "UNIT_MISMATCH"),
        ({"release_steps": STEPS_MAX + 1}, "STEPS_LIMIT"),
        ({"max_grad_norm": 0.0}, "CLIPPING_MISSING"),
        ({"release_noise_multiplier": 0.29}, "NOISE_TOO_LOW"),
        ({"delta": 1.0e-4}, "DELTA_MISMATCH"),
        ({"delta": 0.01}, "DELTA_TOO_LARGE"),
        (
            {"release_mechanism": "poisson_gaussian", "release_sample_rate": 0.001},
            "SAMPLE_RATE_TOO_LOW",
        ),
        (
            {"release_mechanism": "poisson_gaussian", "release_sample_rate": 0.1},
            "MECHANISM_NOT_COVERED",
        ),
        ({"release_mechanism": "none", "release_noise_multiplier": None}, "UNACCOUNTED_REFUSED"),
        ({"release_noise_multiplier": 0.3, "release_steps": 100}, "EPSILON_PER_JOB"),
        ({"target_epsilon": 0.5}, "TARGET_EXCEEDED"),
    ],
)
def test_each_breach_of_the_policy_has_its_reason(changes: dict[str, Any], expected: str) -> None:
    """One field of an allowed order is changed, and the refusal names what it breaks."""
    assert reason(order(**changes)) == expected


@pytest.mark.parametrize(
    ("limits", "standing", "expected"),
    [
        ({"epsilon_per_purpose": {"training": 0.5}}, {}, "EPSILON_PER_PURPOSE"),
        ({"epsilon_per_purpose": {"evaluation": 0.5}}, {}, ""),
        (
            {"epsilon_per_purpose": {"evaluation": 0.5}},
            {"purpose": "evaluation"},
            "EPSILON_PER_PURPOSE",
        ),
        ({"epsilon_per_project": {"default": 0.5}}, {}, "EPSILON_PER_PROJECT"),
        ({"epsilon_per_project": {"another": 0.5}}, {}, ""),
        ({"epsilon_per_purpose": {"training": 5.0}}, {"purpose_units": LIMIT_UNITS // 4}, ""),
        (
            {"epsilon_per_purpose": {"training": 5.0}},
            {"purpose_units": LIMIT_UNITS},
            "EPSILON_PER_PURPOSE",
        ),
        (
            {"epsilon_per_project": {"default": 5.0}},
            {"project_units": LIMIT_UNITS},
            "EPSILON_PER_PROJECT",
        ),
    ],
)
def test_a_purpose_and_a_project_have_limits_of_their_own(
    limits: dict[str, Any], standing: dict[str, Any], expected: str
) -> None:
    """Of all their jobs together; the order alone costs an epsilon of about 0.8."""
    assert reason(order(), policy(**limits), Standing(**standing)) == expected


SIGNED = {"patients": ["heart"], "others": ["clinic"]}


def test_two_accounts_need_somebody_who_vouches_that_no_patient_is_in_both(tmp_path: Path) -> None:
    """A patient of two accounts would spend both, and neither limit would hold."""
    first = POLICY["accounts"][0]
    two = {**POLICY, "accounts": [first, {**first, "name": "others"}]}
    path = tmp_path / "policy.yaml"
    for words in ({}, {"disjoint_patients": " "}):
        path.write_text(yaml.safe_dump({**two, **words}))
        with pytest.raises(Malformed, match="say in disjoint_patients why no patient is in two"):
            load_policy(path)
    path.write_text(yaml.safe_dump({**two, **vouched(SIGNED)}))
    assert len(load_policy(path).accounts) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"disjoint_signature": ""}, "no steward has signed it"),
        ({"disjoint_signed_by": "doe"}, "no steward has signed it"),
        ({"stewards": []}, "no steward has signed it"),
        ({"disjoint_patients": "one clinic"}, "has signed other words, other accounts or other"),
        ({"disjoint_signature": "00" * 64}, "has signed other words, other accounts or other"),
        (
            {"disjoint_data_sets": {"patients": ["heart", "copy"], "others": ["clinic"]}},
            "has signed other words, other accounts or other data sets",
        ),
        (
            {"disjoint_data_sets": {"patients": ["clinic"], "others": ["heart"]}},
            "has signed other words, other accounts or other data sets",
        ),
        (vouched({"patients": ["heart"], "strangers": []}), "names each account with the data"),
        (vouched({"patients": ["heart"], "others": ["heart"]}), "a data set is given twice"),
        ({"disjoint_data_sets": {}}, "over the accounts' names alone counts no more"),
        ({"disjoint_signature": "zz"}, "disjoint_signature"),
    ],
)
def test_nobody_vouches_but_a_steward_for_these_data_sets_in_these_words(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """What was signed for other accounts or data sets, or by nobody, lets no patient be in two."""
    first = POLICY["accounts"][0]
    two = {**POLICY, "accounts": [first, {**first, "name": "others"}]}
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump({**two, **vouched(SIGNED), **changes}))
    with pytest.raises(Malformed, match=said):
        load_policy(path)


@pytest.mark.parametrize("mechanism", ["laplace", "exponential", "discrete_gaussian"])
def test_a_task_is_not_ordered_what_it_cannot_release(mechanism: str) -> None:
    """Training adds Gaussian noise: an order that would book it as another kind is refused."""
    assert reason(order(release_mechanism=mechanism)) == "MECHANISM_MISMATCH"


def test_a_task_cannot_claim_to_read_no_data() -> None:
    """A release that costs nothing is for tasks that open nothing, and only for them."""
    free = {name: value for name, value in NO_DATA.items() if name not in ("task", "task_hash")}
    assert reason(order(**free)) == "MECHANISM_MISMATCH"


@pytest.mark.parametrize(
    ("rate", "expected"), [(1 / 1003, ""), (0.99 / 1003, "SAMPLE_RATE_TOO_LOW")]
)
def test_batches_of_one_patient_are_the_least(rate: float, expected: str) -> None:
    """The rate of one is a quotient, which times the number of patients is below 1 for some."""
    assert (1 / 1003) * 1003 < 1
    poisson = {"release_mechanism": "poisson_gaussian", "release_sample_rate": rate}
    one = order(release_declared_n=1003, release_noise_multiplier=50.0, **poisson)
    found = judge(
        policy(filter="rdp", rdp_order=8), [data_set(declared_n=1003)], TASKS, one, NODE, Standing()
    )
    assert (found.reason if found else "") == expected


def test_an_allowed_task_that_is_not_installed_is_refused() -> None:
    """The policy pins a hash that this agent's code does not have: nothing runs under it."""
    found = judge(policy(), [data_set()], {}, order(), NODE, Standing())
    assert found is not None
    assert found.reason == "TASK_NOT_INSTALLED"


def test_an_allowed_task_whose_code_has_changed_is_refused() -> None:
    """Policy and order name the code of before an upgrade: the code of now does not run for it."""
    changed = {**TASKS, TASK: replace(TASKS[TASK], content_hash="9" * 64)}
    found = judge(policy(), [data_set()], changed, order(), NODE, Standing())
    assert found is not None
    assert found.reason == "TASK_NOT_INSTALLED"


def test_as_many_steps_as_there_may_be_are_allowed() -> None:
    """The bound itself is within it."""
    assert reason(order(release_steps=STEPS_MAX, release_noise_multiplier=1.0e4)) == ""


def test_releases_without_noise_need_the_stewards_word() -> None:
    """`unaccounted: allow` lets them pass, whatever is left of the budget."""
    bare = order(release_mechanism="none", release_noise_multiplier=None)
    full = Standing(FIXED, posted_units=LIMIT_UNITS)
    assert reason(bare, policy(unaccounted="allow"), full) == ""


def test_the_nodes_own_ledger_refuses_what_does_not_fit() -> None:
    """Exactly what is left fits; one unit less does not, whatever the coordinator holds."""
    asked = order()
    cost = make_filter("gdp", 0, 10.0, 1.0e-5).cost_units(asked.release)
    assert reason(asked, standing=Standing(FIXED, LIMIT_UNITS - cost)) == ""
    assert reason(asked, standing=Standing(FIXED, LIMIT_UNITS - cost + 1)) == "BUDGET_REFUSED"


def test_what_the_job_spent_before_counts_against_its_own_bounds() -> None:
    """Earlier rounds of the job count towards the most that one job may cost."""
    most = make_filter("gdp", 0, 5.0, 1.0e-5).limit_units
    cost = make_filter("gdp", 0, 10.0, 1.0e-5).cost_units(order().release)
    assert reason(order(), standing=Standing(FIXED, job_units=most - cost)) == ""
    assert reason(order(), standing=Standing(FIXED, job_units=most - cost + 1)) == "EPSILON_PER_JOB"


def test_a_plan_that_uses_up_its_target_passes_to_the_last_round() -> None:
    """Noise that was calibrated for four rounds is not refused in the fourth by rounding."""
    share = make_filter("gdp", 0, 2.0, 1.0e-5)
    noise = noise_multiplier_for(share, share.limit_units, 4, 5, 1.0)
    asked = order(target_epsilon=2.0, release_noise_multiplier=noise)
    cost = share.cost_units(asked.release)
    assert reason(asked, standing=Standing(FIXED, job_units=3 * cost)) == ""
    assert reason(asked, standing=Standing(FIXED, job_units=4 * cost)) == "TARGET_EXCEEDED"
    most = share.limit_units - cost
    assert reason(asked, standing=Standing(FIXED, job_units=most)) == ""
    assert reason(asked, standing=Standing(FIXED, job_units=most + 1)) == "TARGET_EXCEEDED"


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        (Standing(job_round=3), "ROUND_NOT_ADVANCING"),
        (Standing(job_round=2, round_unresolved=True), "ROUND_NOT_ADVANCING"),
        (Standing(job_round=2), ""),
        (Standing(job_round=1), ""),
        (Standing(unresolved=UNRESOLVED_MAX), "BUSY"),
    ],
)
def test_rounds_only_advance(standing: Standing, expected: str) -> None:
    """A lower round never; the same round again only once the earlier attempt is resolved."""
    assert reason(order(round=2), standing=standing) == expected


def test_an_accounts_filter_is_fixed_by_its_first_entry() -> None:
    """Another filter or delta is refused by name; another limit is the steward's right."""
    for changed in (policy(filter="rdp", rdp_order=6), policy(delta=1.0e-6)):
        with pytest.raises(WrongPhase) as caught:
            filter_of(changed.accounts[0], [data_set()], FIXED)
        assert caught.value.reason == "POLICY_FILTER_CHANGED"
        found = judge_spending(changed, [data_set()], order(), NODE, Standing(FIXED))
        assert found is not None
        assert found.reason == "POLICY_FILTER_CHANGED"
    raised = policy(epsilon_limit=20.0).accounts[0]
    assert filter_of(raised, [data_set()], FIXED).epsilon_limit == 20.0


def test_without_entries_the_lower_of_policy_and_coordinator_counts() -> None:
    """Where the coordinator's chain has begun, ours begins there, too; its word lowers nothing of
    what is fixed here."""
    account = policy(epsilon_limit=20.0).accounts[0]
    assert filter_of(account, [data_set()], None, 4.0).epsilon_limit == 4.0
    assert filter_of(account, [data_set()], None, 30.0).epsilon_limit == 20.0
    assert filter_of(account, [data_set()], FIXED, 4.0).epsilon_limit == 20.0


def test_auto_chooses_by_the_largest_declared_size_and_then_stays() -> None:
    """2,000 declared patients give rdp; an account that began with gdp stays with it."""
    many = [data_set(), data_set(name="more", declared_n=2000)]
    account = policy().accounts[0]
    chosen = filter_of(account, many, None)
    assert (chosen.kind, chosen.order) == ("rdp", 5)
    assert filter_of(account, many, FIXED).kind == "gdp"
    early = FixedFilter("rdp", 3, 1.0e-5)  # by the default of 0.1.0
    assert filter_of(account, many, early).order == 3


@pytest.mark.parametrize("fixed", [None, FIXED])
def test_a_delta_of_one_over_the_declared_patients_is_refused(fixed: FixedFilter | None) -> None:
    """By the largest data set that the account pays for; one patient fewer is allowed."""
    account = policy().accounts[0]
    others = data_set(name="others", account="others", declared_n=10**9)
    for declared_n, refused in ((99_999, False), (100_000, True), (2_000_000, True)):
        sets = [data_set(), data_set(name="more", declared_n=declared_n), others]
        if not refused:
            assert filter_of(account, sets, fixed).delta == 1.0e-5
            continue
        with pytest.raises(Malformed, match=f"below 1/{declared_n}") as caught:
            filter_of(account, sets, fixed)
        assert caught.value.reason == "DELTA_TOO_LARGE"
        found = judge_spending(policy(), sets, order(), NODE, Standing(fixed))
        assert found is not None
        assert found.reason == "DELTA_TOO_LARGE"


def test_a_limit_below_the_conversion_cost_is_refused_and_says_what_the_least_is() -> None:
    """Order 4 at delta 1e-5 starts at 3.09: a limit of 3 buys nothing, one of 3.2 something."""
    small = policy(filter="rdp", rdp_order=4, epsilon_limit=3.0)
    with pytest.raises(Malformed, match=r"starts at epsilon 3\.09") as caught:
        filter_of(small.accounts[0], [data_set()], None)
    assert caught.value.reason == "LIMIT_BELOW_CONVERSION_COST"
    assert reason(order(), small) == "LIMIT_BELOW_CONVERSION_COST"
    enough = policy(filter="rdp", rdp_order=4, epsilon_limit=3.2).accounts[0]
    found = filter_of(enough, [data_set()], None)
    assert found.epsilon_start == pytest.approx(3.09, abs=0.005)


@pytest.mark.parametrize("key", ["epsilon_limit", "epsilon_per_job_max", "delta"])
@pytest.mark.parametrize("value", [".nan", ".inf", "0.0", "-1.0"])
def test_a_limit_that_means_nothing_is_no_policy(tmp_path: Path, key: str, value: str) -> None:
    """NaN, infinity, zero and negative numbers are refused when the file is read, by key."""
    fields = {"epsilon_limit": "1.0", "epsilon_per_job_max": "1.0", "delta": "1.0e-5"}
    said = ", ".join(f"{name}: {text}" for name, text in {**fields, key: value}.items())
    path = tmp_path / "policy.yaml"
    path.write_text(f"accounts: [{{name: p, noise_multiplier_min: 0.3, {said}}}]")
    with pytest.raises(Malformed) as caught:
        load_policy(path)
    assert caught.value.reason == "POLICY_INVALID"
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("acounts: []", "acounts"),
        ("accounts: [{name: p, epsilon_limit: 1, delta: 1e-5}]", "delta"),
        ("outcome_tick_s: 0", "outcome_tick_s"),
        ("allow: [{data_set: d, tasks: [tabular-classifier]}]", "tasks"),
        ("allow: []\nallow: []", "allow"),
        ("allow: [", "YAML"),
        ("- 1", "key: value"),
    ],
)
def test_a_wrong_policy_file_names_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    """The steward reads the key, or the place, in the error; nothing is half-read."""
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(Malformed) as caught:
        load_policy(path)
    assert caught.value.reason == "POLICY_INVALID"
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("line", "said", "unsaid"),
    [
        ("epsilon_limit: ten", "must be a number", "1e-5 as text"),
        ("delta: 1e-5", "write 1.0e-5", "order"),
        ("{filter: rdp, rdp_order: 0}", "give rdp_order from 2", "goes with"),
        ("{filter: rdp, rdp_order: 1}", "give rdp_order from 2", "goes with"),
        ("rdp_order: 4", "goes with filter: rdp", "from 2"),
    ],
)
def test_the_error_says_what_to_write(tmp_path: Path, line: str, said: str, unsaid: str) -> None:
    """What is said of YAML's numbers only where a number was meant; an order is asked for."""
    path = tmp_path / "policy.yaml"
    changed = {**POLICY["accounts"][0], **yaml.safe_load(line)}
    path.write_text(yaml.safe_dump({"accounts": [changed]}).replace("'", ""))
    with pytest.raises(Malformed) as caught:
        load_policy(path)
    assert said in caught.value.message
    assert unsaid not in caught.value.message


def test_an_empty_policy_allows_nothing(tmp_path: Path) -> None:
    """What a fresh agent has: every order is refused."""
    path = tmp_path / "policy.yaml"
    path.write_text("accounts: []\n")
    assert reason(order(), load_policy(path)) == "TASK_NOT_ALLOWED"


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt_id": "../x"},
        {"base_model_digest": "x"},
        {"round": 0},
        {"max_grad_norm": float("nan")},
        {"task_config_json": "{"},
        {"task_config_json": '{"a": NaN}'},
        {"release_noise_multiplier": float("inf")},
        {"release_mechanism": "telepathy"},
        {"release_mechanism": "laplace", "release_noise_multiplier": float("nan")},
        {"release_mechanism": "exponential", "release_noise_multiplier": 0.0},
        {"project": ""},
    ],
)
def test_a_malformed_order_is_no_order(changes: dict[str, Any]) -> None:
    """Nothing that could become a file name, a NaN or a crash gets past the reader."""
    with pytest.raises(FeddpError):
        order(**changes)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epsilon_limit", -3.5, "accounts.1.epsilon_limit (others): .*; it says -3.5$"),
        ("filter", "gpd", "accounts.1.filter (others): .*; it says 'gpd'$"),
        ("delta", "1e-5", "accounts.1.delta (others): .*write 1.0e-5; it says '1e-5'$"),
        ("colour", 7, "accounts.1.colour (others): .*"),
    ],
)
def test_a_wrong_value_is_named_with_its_account(
    tmp_path: Path, key: str, value: object, said: str
) -> None:
    """A number among twenty accounts says little, and a steward looks for what they wrote."""
    first = POLICY["accounts"][0]
    accounts = [first, {**first, "name": "others", key: value}]
    write_rules(tmp_path, {**POLICY, "accounts": accounts})
    with pytest.raises(Malformed) as caught:
        load_policy(tmp_path / "policy.yaml")
    pattern = said.replace("(others)", re.escape("(others)"))
    assert re.search(pattern, caught.value.message), caught.value.message


def test_a_file_that_is_missing_a_folder_or_no_utf_8_is_told_as_that(tmp_path: Path) -> None:
    """Three faults, three remedies; of a wrong byte the line."""
    path = tmp_path / "policy.yaml"
    with pytest.raises(Malformed, match="is missing; write it, or restore it"):
        load_policy(path)
    path.mkdir()
    with pytest.raises(Malformed, match="is a folder; move it away"):
        load_policy(path)
    path.rmdir()
    path.write_bytes(b"accounts: []\n# M\xfcller\n")
    with pytest.raises(Malformed, match="is not UTF-8 text near line 2"):
        load_policy(path)
