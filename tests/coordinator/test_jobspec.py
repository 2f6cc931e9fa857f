"""Job files: what they resolve to, and how they are refused."""

import itertools

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import SPEC_BYTES_MAX, Job, parse_job
from protos.errors import Malformed

DEFAULTS = CoordinatorConfig()
EXAMPLE = b"""\
name: heart-disease
task: tabular-classifier
task_config: {model: logistic}
dataset: heart-disease
federation:
  aggregation_method: fedprox
  proximal_mu: 0.1
  min_participants: 3
  rounds: auto
  max_rounds: 100
  convergence_threshold: 0.001
  deadline: 300s
privacy:
  target_epsilon: 3.0
  delta: 1.0e-5
  max_grad_norm: 0.1
"""
BARE = "name: a\ntask: tabular-classifier\ndataset: d\n"


def parsed(text: str) -> Job:
    """The job of BARE with `text` below it."""
    return parse_job((BARE + text).encode(), DEFAULTS)


def refusal(spec: str | bytes, defaults: CoordinatorConfig = DEFAULTS) -> str:
    """The message with which `spec` is refused."""
    with pytest.raises(Malformed) as caught:
        parse_job(spec if isinstance(spec, bytes) else spec.encode(), defaults)
    assert caught.value.reason == "JOB_INVALID"
    return caught.value.message


def reason_of(spec: bytes) -> str | None:
    """Why `spec` is refused; None when it is a job."""
    try:
        parse_job(spec, DEFAULTS)
    except Malformed as error:
        return error.reason
    return None


def test_the_documented_example_resolves():
    """20 planned steps at 5 a round are 4 rounds; the noise comes from the target."""
    job = parse_job(EXAMPLE, DEFAULTS)
    assert (job.rounds_planned, job.local_steps, job.max_rounds) == (4, 5, 100)
    assert (job.mechanism, job.target_epsilon, job.noise_multiplier) == ("dp", 3.0, None)
    assert (job.proximal_mu, job.deadline_s, job.project) == (0.1, 300, "default")
    assert job.task_config_json == '{"model":"logistic"}'


def test_what_a_job_leaves_out_comes_from_the_coordinator():
    """A job of three lines runs, with the configured noise."""
    job = parsed("")
    common = DEFAULTS.federation
    assert (job.mechanism, job.target_epsilon, job.noise_multiplier) == ("dp", None, 1.5)
    assert (job.min_participants, job.deadline_s) == (common.min_participants, common.deadline_s)
    assert (job.delta, job.max_grad_norm, job.batch_size) == (1e-5, 0.1, 256)
    assert job.convergence_threshold == common.convergence_threshold
    assert job.proximal_mu == common.proximal_mu


@pytest.mark.parametrize(
    ("text", "rounds"),
    [
        ("federation: {rounds: 7}", 7),
        ("federation: {local_steps: 3}", 7),
        ("federation: {local_steps: 1, max_rounds: 6}", 6),
        ("federation: {local_steps: 500}", 1),
        ("federation: {rounds: 100}", 100),
    ],
)
def test_planned_rounds_cover_the_planned_steps_within_the_maximum(text, rounds):
    """auto: planned steps over local steps, rounded up, at most max_rounds."""
    assert parsed(text).rounds_planned == rounds


@pytest.mark.parametrize(
    ("written", "seconds"), [("300s", 300), ("5m", 300), ("2h", 7200), ("45", 45), ('"90"', 90)]
)
def test_a_deadline_is_seconds_or_has_a_unit(written, seconds):
    """300s, 5m, 2h and a plain number of seconds."""
    assert parsed(f"federation: {{deadline: {written}}}").deadline_s == seconds


def test_without_dp_there_is_no_noise_and_clipping_stays():
    """mechanism: none is what --no-dp submits."""
    job = parsed("privacy: {mechanism: none, max_grad_norm: 2}")
    assert (job.mechanism, job.target_epsilon, job.noise_multiplier) == ("none", None, None)
    assert job.max_grad_norm == 2


def test_the_null_task_has_neither_noise_nor_clipping():
    """It reads no data."""
    job = parse_job(
        b"name: path\ntask: 'null'\ntask_config: {parameters: 10}\ndataset: d", DEFAULTS
    )
    assert (job.mechanism, job.noise_multiplier, job.max_grad_norm) == ("no_data", None, 0.0)


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        (
            "privacy: {target_epsilon: 1, noise_multiplier: 2}",
            "privacy.noise_multiplier",
            "never both",
        ),
        ("privacy: {mechanism: none, target_epsilon: 1}", "privacy.target_epsilon", "leave one"),
        (
            "privacy: {mechanism: none, noise_multiplier: 1}",
            "privacy.noise_multiplier",
            "leave one",
        ),
        ("privacy: {mechanism: gaussian}", "privacy.mechanism", "none, or leave it out"),
        ("privacy: {target_epsilon: .nan}", "privacy.target_epsilon", "finite"),
        ("privacy: {target_epsilon: .inf}", "privacy.target_epsilon", "finite"),
        ("privacy: {target_epsilon: 0}", "privacy.target_epsilon", "at least 0.0001"),
        ("privacy: {target_epsilon: -1}", "privacy.target_epsilon", "at least 0.0001"),
        ("privacy: {target_epsilon: 1.0e-6}", "privacy.target_epsilon", "at least 0.0001"),
        ("privacy: {target_epsilon: true}", "privacy.target_epsilon", "true or false"),
        ("privacy: {noise_multiplier: -.inf}", "privacy.noise_multiplier", "finite"),
        ("privacy: {noise_multiplier: 0.0}", "privacy.noise_multiplier", "above 0"),
        ("privacy: {delta: 0}", "privacy.delta", "at most 0.1"),
        ("privacy: {delta: 0.11}", "privacy.delta", "at most 0.1"),
        ("privacy: {delta: nan}", "privacy.delta", "finite"),
        ("privacy: {epsilon: 1}", "privacy.epsilon", "did you mean privacy.target_epsilon?"),
        ("federation: {min_participants: 2}", "federation.min_participants", "minimum of 3"),
        ("federation: {max_rounds: 101}", "federation.max_rounds", "maximum of 100"),
        ("federation: {max_rounds: 0}", "federation.max_rounds", "at least 1"),
        ("federation: {rounds: 101}", "federation.rounds", "max_rounds is 100"),
        ("federation: {rounds: 5, max_rounds: 4}", "federation.rounds", "max_rounds is 4"),
        ("federation: {rounds: 0}", "federation.rounds", "out of bounds"),
        ("federation: {rounds: many}", "federation.rounds", "auto or a whole number"),
        ("federation: {rounds: true}", "federation.rounds", "true or false"),
        ("federation: {rounds: 2.0}", "federation.rounds", "auto or a whole number"),
        ("federation: {deadline: 1.5}", "federation.deadline", "not a duration"),
        ("federation: {deadline: 0s}", "federation.deadline", "out of bounds"),
        ("federation: {deadline: 169h}", "federation.deadline", "out of bounds"),
        (
            "federation: {aggregation_method: fedavg}",
            "federation.aggregation_method",
            "one of fedprox",
        ),
        ("federation: {local_steps: 0}", "federation.local_steps", "at least 1"),
        ("federation: {proximal_mu: -1}", "federation.proximal_mu", "0 or more"),
        ("privacy: {target_epsilon: '2'}", "privacy.target_epsilon", "a number, without quotes"),
        ("privacy: {batch_size: '8'}", "privacy.batch_size", "a whole number, without quotes"),
        ("federation: {over_selection: '0.5'}", "federation.over_selection", "without quotes"),
        ("federation: {min_participants: '4'}", "federation.min_participants", "without quotes"),
        ("priority: '1'", "priority", "a whole number, without quotes"),
        ("federation: {local_steps: 1e1}", "federation.local_steps", "must be a whole number"),
        ("task_config: {x: .nan}", "task_config", "not finite"),
        ("task_config: [1]", "task_config", "mapping"),
        ("project: ../x", "project", "letters, digits"),
        ("datset: x", "datset", "did you mean dataset?"),
        ("max_rounds: 3", "max_rounds", "did you mean federation.max_rounds?"),
    ],
)
def test_a_wrong_key_is_named_with_what_is_allowed(text, key, sentence):
    """Each refusal says which key, and what would have been right."""
    (line,) = refusal(BARE + text).splitlines()[1:]
    assert line.startswith(f"  {key}: ")
    assert sentence in line


def test_all_faults_of_a_job_come_at_once():
    """Missing, unknown and contradictory keys in one answer."""
    message = refusal(
        "tsk: x\nprivacy: {target_epsilon: 1, noise_multiplier: 2}\n"
        "federation: {min_participants: 1, deadline: soon}"
    )
    for key in (
        "name: is missing",
        "task: is missing",
        "dataset: is missing",
        "tsk: unknown key; did you mean task?",
        "privacy.noise_multiplier: target_epsilon fixes",
        "federation.min_participants:",
        "federation.deadline:",
    ):
        assert key in message


def test_noise_for_a_task_that_reads_no_data_is_refused():
    """An argument that would be dropped in silence is an error."""
    spec = "name: a\ntask: 'null'\ndataset: d\nprivacy: {target_epsilon: 1}"
    assert "reads no data" in refusal(spec)


def test_a_job_may_ask_for_more_participants_than_the_coordinator():
    """The coordinator's number is a floor."""
    assert parsed("federation: {min_participants: 9}").min_participants == 9


def test_an_alias_bomb_costs_nothing_and_is_refused():
    """Some hundred bytes that would be 10^9 values."""
    names = "abcdefghij"
    lines = [f"  - &a [{', '.join('x' * 10)}]"]
    for before, name in itertools.pairwise(names):
        lines.append(f"  - &{name} [{', '.join([f'*{before}'] * 10)}]")
    spec = BARE + "task_config:\n  bomb:\n  " + "\n  ".join(lines)
    assert "holds more than 20000 values" in refusal(spec)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "min_participants: 2",
            "below this coordinator's minimum of 3, got 2 (allowed: at least 3, at most 10000)",
        ),
        (
            "min_participants: 4, participants: 3",
            "below min_participants, which is 4, got 3 (allowed: at least 4)",
        ),
        (
            "max_rounds: 101",
            "above this coordinator's maximum of 100, got 101 (allowed: at least 1, at most 100)",
        ),
    ],
)
def test_bounds_of_the_coordinator_are_told_in_place_of_the_keys_own(text, sentence):
    """A sentence that allows what it has just refused helps nobody."""
    (line,) = refusal(f"{BARE}federation: {{{text}}}").splitlines()[1:]
    assert line.endswith(f"is {sentence}")


def test_a_number_with_an_exponent_and_no_point_is_the_number_that_people_mean():
    """YAML 1.1 reads it as text, as in the coordinator's configuration."""
    assert parsed("privacy: {delta: 1e-6, target_epsilon: 1}").delta == 1e-6


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (
            "1:30",
            "gives 1:30, which YAML reads as 90: write a number in plain digits, as 1.30",
        ),
        (
            "1:30.5",
            "gives 1:30.5, which YAML reads as 90.5: write a number in plain",
        ),
        ("010", "gives 010, which YAML reads as 8: "),
        ("0x10", "gives 0x10, which YAML reads as 16: "),
        ("0b11", "gives 0b11, which YAML reads as 3: "),
        ("1_0", "gives 1_0, which YAML reads as 10: "),
        ("!!int ''", "gives an empty text, which is no number that there is"),
        ("!!float x", "gives x, which is no number that there is"),
    ],
)
def test_a_number_that_yaml_reads_as_another_one_is_refused(written, sentence):
    """A target of 90 where 1.30 was meant would be spent before anybody looked."""
    message = refusal(BARE + f"privacy: {{target_epsilon: {written}}}")
    assert f"job file: line {BARE.count(chr(10)) + 1} {sentence}" in message
    quoted = parsed("task_config: {x: '1:30', y: 0, z: -1.5e+3, w: 100}").task_config
    assert quoted == {"x": "1:30", "y": 0, "z": -1500.0, "w": 100}


def test_a_few_aliases_are_fine():
    """Anchors are a way to write, not an attack."""
    job = parsed("task_config: {a: &x [1, 2], b: *x}")
    assert job.task_config_json == '{"a":[1,2],"b":[1,2]}'


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (b"- a\n- b", "must be a mapping"),
        (b"just words", "must be a mapping"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a: [1", "not valid YAML"),
        (b"a: !!bool x", "gives x, which is no truth value"),
        (b"a: \x00", "not valid YAML"),
        (b"name: " + b"9" * 5000, "which is no number that there is"),
        (b"#" * (SPEC_BYTES_MAX + 1), "above the limit of 65536"),
        (b"name: !!python/name:os.system x", "quote it"),
        (b"name: a\nname: b", "gives 'name' again"),
    ],
)
def test_what_is_not_a_plain_mapping_is_refused(spec, sentence):
    """Before any value of it is looked at."""
    assert sentence in refusal(spec)


def test_a_name_is_free_text_on_one_line():
    """Reports escape it; terminals must not be steered by it."""
    assert parse_job(b"name: '<script>'\ntask: t\ndataset: d", DEFAULTS).name == "<script>"
    assert "one line" in refusal(b'name: "a\\e[2Jb"\ntask: t\ndataset: d')
    assert "one line" in refusal('name: "a\u202eb"\ntask: t\ndataset: d')


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_any_bytes_give_a_job_or_a_refusal(spec):
    """No input ends in another exception."""
    assert reason_of(spec) in (None, "JOB_INVALID")


@given(
    st.dictionaries(
        st.sampled_from(["name", "task", "dataset", "federation", "privacy", "task_config", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["rounds", "deadline", "target_epsilon", "delta", "mechanism"]),
                    inner,
                    max_size=3,
                )
            ),
            max_leaves=6,
        ),
    )
)
def test_any_values_give_a_job_or_a_refusal(values):
    """Wrong types in known keys are refusals too."""
    assert reason_of(yaml.safe_dump(values).encode()) in (None, "JOB_INVALID")


EVALUATION = "name: a\ntask: tabular-evaluation\ndataset: d\n"


def test_an_evaluation_is_one_release_whatever_the_defaults_for_training_are():
    """One round of one step, everybody in it, and 1 is what a patient adds at most."""
    job = parse_job((EVALUATION + "privacy: {target_epsilon: 1.0}\n").encode(), DEFAULTS)
    assert (job.rounds_planned, job.local_steps, job.max_grad_norm) == (1, 1, 1.0)
    assert job.full_batch
    assert (job.mechanism, job.target_epsilon) == ("dp", 1.0)
    assert not parsed("").full_batch


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("federation: {rounds: 4}", "federation.rounds"),
        ("federation: {local_steps: 5}", "federation.local_steps"),
        ("federation: {update_dtype: int8}", "federation.update_dtype"),
        ("privacy: {max_grad_norm: 0.1}", "privacy.max_grad_norm"),
    ],
)
def test_what_an_evaluation_cannot_have_is_refused_with_its_key(text: str, key: str):
    """More than one release, narrow counts, and a bound for gradients."""
    assert key in refusal(EVALUATION + text)
    assert reason_of((EVALUATION + "federation: {rounds: 1, local_steps: 1}").encode()) is None


def test_a_fault_does_not_speak_of_submitting() -> None:
    """A quote checks the same file, and submits nothing."""
    with pytest.raises(Malformed, match="in the job file; nothing was changed:") as caught:
        parse_job(b"name: x", DEFAULTS)
    assert "submitted" not in caught.value.message
