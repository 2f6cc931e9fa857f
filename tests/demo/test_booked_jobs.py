"""What whole jobs spend on the demo's records: an evaluation, and a job that converges early."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from benchmarks.one_process import OneProcess
from feddp.demo import heart, hospital
from feddp.demo.job import job_file
from feddp.evaluation import evaluation, read_rates
from node_agent.tasks import evaluation_config
from node_agent.tasks.evaluation_config import EvaluationConfig
from privacy.accounting import epsilon_spent
from privacy.releases import Release

DELTA = 1e-5


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneProcess]:
    """The four hospitals of the demo, with a coordinator in this process."""
    folder = tmp_path_factory.mktemp("federation")
    for name, one in heart.hospitals().items():
        hospital.write_hospital(
            folder / name, one, epsilon_limit=500.0, unaccounted="allow", unsigned="allow"
        )
    made = OneProcess(folder, {name: folder / name for name in heart.NODES})
    yield made
    made.close()


def changed(spec: bytes, **sections: dict[str, Any]) -> bytes:
    """A job file with other keys in some sections."""
    content = yaml.safe_load(spec)
    for name, keys in sections.items():
        content[name] = {**content[name], **keys}
    return yaml.safe_dump(content).encode()


def evaluation_file(evaluates: str, privacy: dict[str, Any]) -> tuple[bytes, EvaluationConfig]:
    """The job file of an evaluation, and its configuration."""
    config = {"model": "logistic", "features": heart.FEATURES, "evaluates": evaluates}
    content = {
        "name": "how-good",
        "task": "tabular-evaluation",
        "task_config": config,
        "dataset": heart.DATA_SET,
        "privacy": privacy,
    }
    return yaml.safe_dump(content).encode(), EvaluationConfig.model_validate(config)


def test_an_evaluation_is_one_booked_release_of_each_hospital(federation: OneProcess) -> None:
    """Train, then evaluate at epsilon 1: one round, one Gaussian release of one step at each
    hospital, epsilon 1 by the ledger, and figures within five standard errors of those that an
    evaluation without noise gives."""
    trained = federation.run(job_file(5.0, DELTA))
    model = federation.blobs.model(trained.model_digest).read_bytes()
    found = {}
    for name, privacy in (
        ("noised", {"target_epsilon": 1.0, "delta": DELTA}),
        ("exact", {"mechanism": "none"}),
    ):
        spec, config = evaluation_file(trained.job_id, privacy)
        job = federation.run(spec, initial=evaluation_config.first_model(config, model))
        assert (job.status, job.rounds_done, job.rounds_planned) == ("completed", 1, 1)
        rates = read_rates(federation.blobs.model(job.model_digest))
        found[name] = (job, evaluation(job, trained.job_id, rates))
    job, noised = found["noised"]
    _, exact = found["exact"]
    assert noised.declared_n == exact.declared_n == 199 + 172 + 30 + 85
    assert exact.accuracy.standard_error == 0
    assert 0.75 < exact.accuracy.value < 0.9
    for name, figure in noised.figures().items():
        truth = exact.figures()[name]
        assert figure is not None
        assert truth is not None
        assert 0 < figure.standard_error < 0.05
        assert abs(figure.value - truth.value) < 5 * figure.standard_error
    assert [node.epsilon_spent for node in job.nodes] == pytest.approx([1.0] * 4, rel=1e-3)
    [round_] = job.rounds
    for part in round_.participation:
        assert part.local_steps == 1
        one = Release("gaussian", part.noise_multipliers[0], 1.0, 1)
        assert epsilon_spent([one], DELTA) == part.epsilon_after


def test_a_job_that_converges_early_has_spent_the_rounds_that_ran(federation: OneProcess) -> None:
    """Planned for 60 rounds: each is ordered a sixtieth of the promise from the first on, and what
    the ledger shows when the model stops moving are the rounds that ran and no other."""
    target = 200.0
    spec = changed(
        job_file(target, DELTA),
        task_config={"learning_rate": 0.5},
        federation={"rounds": 60, "convergence_threshold": 0.03},
    )
    job = federation.run(spec)
    assert job.status == "converged"
    assert 6 <= job.rounds_done <= 40
    noises: dict[str, set[float]] = {node.name: set() for node in job.nodes}
    for one in job.rounds:
        for part in one.participation:
            noises[part.node].update(part.noise_multipliers)
    for node in job.nodes:
        [noise] = noises[node.name]
        release = Release("gaussian", noise, 1.0, 5)
        assert node.epsilon_spent == epsilon_spent([release] * job.rounds_done, DELTA)
        whole = epsilon_spent([release] * 60, DELTA)
        assert whole is not None
        assert 0.99 * target < whole <= target
        assert node.epsilon_spent < 0.8 * target
    last = job.rounds[-1]
    assert last.drift + 3 * last.drift_noise < 0.03
