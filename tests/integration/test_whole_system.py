"""A job from submission to answer, through real processes over mTLS."""

import json
import urllib.request
from pathlib import Path

import dp_accounting
import pytest
from cryptography import x509
from dp_accounting.pld import PLDAccountant
from safetensors.numpy import load_file

from tests.integration.federation import (
    NODES,
    Federation,
    cli_json,
    job_file,
    null_job,
    run_cli,
    wait_for,
)


def test_a_dp_job_trains_and_every_epsilon_can_be_recomputed(federation: Federation) -> None:
    """Submit, train on four nodes, finish; the ledger alone gives an outsider the same epsilon."""
    job = federation.wait_for_end(federation.submit(job_file()))
    assert (job.status, job.rounds_done) == ("completed", 3)
    assert {p.outcome for r in job.rounds for p in r.participation} == {"update"}
    found = cli_json("budget", "ledger", "--dir", str(federation.installation.folder))
    for node in job.nodes:
        accountant = PLDAccountant()
        for entry in found["entries"]:
            if entry["node"] == node.name and entry["kind"] == "post":
                assert entry["mechanism"] == "gaussian"
                gaussian = dp_accounting.GaussianDpEvent(entry["noise_multiplier"])
                accountant.compose(dp_accounting.SelfComposedDpEvent(gaussian, entry["steps"]))
        exact = accountant.get_epsilon(node.delta)
        # Rounded up to five digits: never below, and at most one part in a thousand above.
        assert exact * (1 - 1e-4) <= node.epsilon_spent <= exact * 1.001
        assert node.epsilon_spent <= node.epsilon_limit == 2.0
    code, out, err = run_cli("budget", "verify", "--dir", str(federation.installation.folder))
    assert code == 0, out + err


def test_the_answer_is_a_model_that_learned(federation: Federation, tmp_path: Path) -> None:
    """Without noise the one feature that makes the label gets a clear weight; it is booked as
    unaccounted, and the account has no guarantee from then on."""
    for name in NODES:
        federation.set_policy(name, unaccounted="allow")
        federation.kill(name)
        federation.start(name)
    federation.wait_for_nodes(*NODES)
    spec = job_file(privacy={"target_epsilon": None, "mechanism": "none", "max_grad_norm": 1.0})
    job = federation.wait_for_end(federation.submit(spec))
    assert job.status == "completed", job.message
    out = tmp_path / "model.safetensors"
    root = str(federation.installation.folder)
    code, _, err = run_cli("model", "download", job.job_id, "--out", str(out), "--dir", root)
    assert code == 0, err
    assert load_file(out)["linear.weight"][0, 0] > 0.2
    assert not any(node.HasField("epsilon_spent") for node in job.nodes)
    shown = cli_json("budget", "show", "--dir", root)
    assert all(account["guarantee"] is False for account in shown["accounts"])


def test_five_processes_have_their_own_certificates_and_idle_agents_have_no_torch(
    federation: Federation,
) -> None:
    """Nothing is shared but the root; an agent that has not worked has not loaded torch."""
    pids = {federation.pid(name) for name in ("coordinator", *NODES)}
    assert len(pids) == 5
    leaves = set()
    for name in NODES:
        chain = (federation.agent(name) / "identity/node.crt").read_bytes()
        leaf = x509.load_pem_x509_certificates(chain)[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        assert uris == [f"spiffe://test.example/node/{name}"]
        key = federation.agent(name) / "identity/node.key"
        assert key.stat().st_mode & 0o077 == 0
        leaves.add(leaf.serial_number)
        maps = Path(f"/proc/{federation.pid(name)}/maps").read_text()
        assert "torch" not in maps
        assert "numpy" not in maps
    assert len(leaves) == 4


def test_a_null_job_proves_the_path_and_costs_nothing(federation: Federation) -> None:
    """The null task opens no data: epsilon 0, mechanism no_data, accounts keep their guarantee."""
    job = federation.wait_for_end(federation.submit(null_job(5)))
    assert job.status == "completed", job.message
    assert {node.epsilon_spent for node in job.nodes} == {0.0}
    assert {e.statement.mechanism for e in federation.entries()} == {"no_data"}


def test_large_data_sets_are_sampled_and_booked_so(coordinator: Federation) -> None:
    """From 1,000 declared records an account counts by rdp, patients are sampled, and the booked
    epsilon is dp-accounting's for Poisson sampling."""
    for name in NODES[:3]:
        coordinator.add_node(name, rows=1200, epsilon_limit=12.0, epsilon_per_job_max=12.0)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES[:3])
    spec = job_file(privacy={"target_epsilon": 8.0, "batch_size": 240})
    job = coordinator.wait_for_end(coordinator.submit(spec))
    assert job.status == "completed", job.message
    posted = [e.statement for e in coordinator.entries("post")]
    assert {(s.mechanism, s.sample_rate) for s in posted} == {("poisson_gaussian", 0.2)}
    for node in job.nodes:
        accountant = PLDAccountant()
        for one in posted:
            if one.node == node.name and one.noise_multiplier is not None:
                gaussian = dp_accounting.GaussianDpEvent(one.noise_multiplier)
                sampled = dp_accounting.PoissonSampledDpEvent(one.sample_rate, gaussian)
                accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, one.steps))
        exact = accountant.get_epsilon(node.delta)
        assert exact * (1 - 1e-4) <= node.epsilon_spent <= exact * 1.001
        assert node.epsilon_spent <= 8.0


def test_two_jobs_from_the_same_model_run_at_once(federation: Federation) -> None:
    """Every logistic model starts at zeros, so two jobs name one blob; both finish."""
    jobs = [federation.submit(job_file(name=f"job {number}")) for number in (1, 2)]
    ended = [federation.wait_for_end(job_id) for job_id in jobs]
    assert [job.status for job in ended] == ["completed", "completed"]
    assert all(node.epsilon_spent <= 2.0 for job in ended for node in job.nodes)


def test_health_readiness_and_metrics_are_served(federation: Federation) -> None:
    """Probes and Prometheus get plain HTTP; each connected node is healthy."""

    def page(path: str) -> str:
        with urllib.request.urlopen(federation.health + path, timeout=10) as answer:  # noqa: S310
            return str(answer.read().decode())

    page("/health")
    assert json.loads(page("/ready"))["ready"] is True
    federation.wait_for_end(federation.submit(null_job(1)))
    text = page("/metrics")
    assert "request_duration_seconds_bucket" in text
    assert 'feddp_rounds_total{outcome="published"} 1.0' in text
    for kind in ("reserve", "post"):
        assert f'feddp_ledger_entries_total{{kind="{kind}"}} 4.0' in text
    assert 'federated_node_health{node="alpha"} 1.0' in text
    with federation.client() as client:
        client.disable("alpha")
    wait_for("alpha is forgotten", lambda: 'node="alpha"' not in page("/metrics"))
    wait_for("the job is shown", lambda: 'feddp_jobs{status="completed"} 1.0' in page("/metrics"))


@pytest.mark.parametrize("command", ["job list", "node list", "model list", "budget show"])
def test_reading_commands_give_json(federation: Federation, command: str) -> None:
    """Scripts read every list as one JSON document."""
    assert isinstance(
        cli_json(*command.split(), "--dir", str(federation.installation.folder)), dict
    )
