"""A job file as the engineer's side reads it, and what of it is signed."""

from pathlib import Path

import pytest

from certs.enrolment import new_ledger_key
from certs.mandates import Mandate, parse
from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import parse_job
from feddp.cli.job import _signature
from feddp.jobfile import facts_of, read_task
from feddp.signing import RESUMED_FILE, Caps, Work, mandate_for, mandate_to_resume
from protos.errors import Malformed
from protos.feddp.v1 import jobs_pb2
from protos.feddp.v1.mandates_pb2 import SignedMandate

SPEC = """
name: n
task: tabular-classifier
dataset: d
federation: {rounds: 2, proximal_mu: 1e-1}
privacy: {noise_multiplier: 2e0, delta: 1e-5, max_grad_norm: 1e-2}
"""
DIGEST = "0" * 64


def never() -> jobs_pb2.QuoteJobResponse:
    raise AssertionError("nothing is left open")


def signed(spec: str, caps: Caps) -> Mandate:
    work = Work(spec.encode(), facts_of(spec.encode()), DIGEST, DIGEST, ["a"])
    return parse(mandate_for(new_ledger_key(), work, caps, never).body)


def test_a_number_with_an_exponent_is_signed_as_the_coordinator_reads_it() -> None:
    """YAML 1.1 takes 1e-5 for text. One that were left out of the mandate would be the
    coordinator's to choose."""
    mandate, job = (
        signed(SPEC, Caps(epsilon_max=1.0)),
        parse_job(SPEC.encode(), CoordinatorConfig()),
    )
    assert (mandate.noise_multiplier, mandate.delta) == (2.0, 1e-5)
    assert (mandate.noise_multiplier, mandate.delta) == (job.noise_multiplier, job.delta)
    assert (mandate.max_grad_norm, mandate.proximal_mu) == (1e-2, 1e-1)
    assert (mandate.max_grad_norm, mandate.proximal_mu) == (job.max_grad_norm, job.proximal_mu)
    target = SPEC.replace("noise_multiplier", "target_epsilon")
    assert signed(target, Caps()).epsilon_max == 2.0


def test_what_is_signed_to_go_on_has_a_number_of_its_own(tmp_path: Path) -> None:
    """Also where the coordinator knows of none: it was restored from a backup of before. A node
    that has seen two texts of one number takes neither from then on."""
    key = new_ledger_key()
    work = Work(SPEC.encode(), facts_of(SPEC.encode()), DIGEST, DIGEST, ["a"])
    first = mandate_for(key, work, Caps(epsilon_max=1.0), never)
    job_id = parse(first.body).job_id

    def number(before: SignedMandate, folder: Path = tmp_path) -> int:
        return parse(mandate_to_resume(key, before, job_id, folder).body).resumption

    again = mandate_to_resume(key, first, job_id, tmp_path)
    assert parse(again.body).resumption == 1
    assert [number(again), number(first), number(again)] == [2, 3, 4]
    assert number(first, tmp_path / "elsewhere") == 1, "nothing can be kept there"
    for text in ("no JSON", "[]", "{}", f'{{"{job_id}": "9"}}', f'{{"{job_id}": true}}'):
        (tmp_path / RESUMED_FILE).write_text(text)
        assert [number(again), number(first)] == [2, 3]


def test_a_job_is_signed_to_go_on_for_as_long_as_it_was_signed_at_first(tmp_path: Path) -> None:
    """Hospitals that take two days would refuse the usual seven."""
    key = new_ledger_key()
    work = Work(SPEC.encode(), facts_of(SPEC.encode()), DIGEST, DIGEST, ["a"])
    first = mandate_for(key, work, Caps(epsilon_max=1.0, valid_s=2 * 86_400), never)
    again = parse(mandate_to_resume(key, first, parse(first.body).job_id, tmp_path).body)
    assert again.expires_at_s - again.signed_at_s == 2 * 86_400


@pytest.mark.parametrize("told", [float("inf"), 10_001.0])
def test_a_quote_that_no_account_could_pay_is_not_signed(told: float) -> None:
    """It was signed for 10,000."""
    quote = jobs_pb2.QuoteJobResponse()
    quote.nodes.add(epsilon_job=2.0, epsilon_job_booked=told)
    work = Work(SPEC.encode(), facts_of(SPEC.encode()), DIGEST, DIGEST, ["a"])
    with pytest.raises(Malformed) as raised:
        mandate_for(new_ledger_key(), work, Caps(), lambda: quote)
    assert raised.value.reason == "EPSILON_MAX_MISSING"


def test_how_far_a_signature_goes_is_told() -> None:
    """As it was signed here, not as the coordinator says: its quote is behind what the file leaves
    open, and nobody would see that it told one thing to be looked at and another to be signed."""
    job = jobs_pb2.Job(signed_by=DIGEST, signed_until=1.0)
    said = _signature(job, signed(SPEC, Caps(epsilon_max=3.75)))
    assert said.startswith("signed until ")
    assert said.endswith(" for 2 rounds and epsilon 3.75 at one hospital in all")
    assert "1970" not in said
    none = SPEC.replace("noise_multiplier: 2e0", "mechanism: none")
    assert _signature(job, signed(none, Caps())).endswith(" for 2 rounds")
    for one, mandate in ((job, None), (jobs_pb2.Job(), signed(none, Caps()))):
        assert _signature(one, mandate).startswith("not signed")


@pytest.mark.parametrize("epsilon_max", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cap_that_is_none_is_refused(epsilon_max: float) -> None:
    """And not taken for one that was left out, which would be the job's whole target."""
    with pytest.raises(Malformed) as raised:
        signed(SPEC, Caps(epsilon_max=epsilon_max))
    assert raised.value.reason == "EPSILON_MAX_INVALID"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("name: 2026-99-99", "line 2 gives 2026-99-99, which is no date that there is"),
        (f"name: {'1' * 5000}", "line 2 gives 1111"),
        ("name: &a [*a]", "line 2 refers to itself"),
    ],
)
def test_what_yaml_cannot_build_is_a_fault_of_its_line(line: str, sentence: str) -> None:
    """Not one of ours."""
    with pytest.raises(Malformed, match=sentence) as raised:
        facts_of(SPEC.replace("name: n", line).encode())
    assert raised.value.reason == "JOB_INVALID"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the job file holds nothing and no keys"),
        ("- task: null\n", "the job file holds a list and no keys"),
        ("heart disease\n", "the job file holds a single value and no keys"),
        ("name: n\n", "the job file names no task"),
        ("name: [\n", "the job file is not valid YAML at line 2"),
    ],
)
def test_what_is_wrong_with_a_job_file_is_said_with_its_name(
    tmp_path: Path, text: str, sentence: str
) -> None:
    """A shell that was given another file than was meant is found out by it."""
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(Malformed) as raised:
        read_task(path)
    assert raised.value.reason == "JOB_INVALID"
    assert raised.value.message.startswith(f"{path}: {sentence}")


def test_a_number_that_no_float_holds_is_left_to_the_coordinator() -> None:
    """It says what is wrong with it."""
    huge = SPEC.replace("2e0", "1" + "0" * 400)
    assert facts_of(huge.encode()).privacy("noise_multiplier") is None
    assert facts_of(SPEC.replace("2e0", "1e999").encode()).privacy("noise_multiplier") is None
