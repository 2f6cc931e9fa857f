"""The demo's data, and the figures that the whole training path reaches on it."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks.models import BARS, EPSILONS, Cell, Figures, Trials, faults_of
from benchmarks.one_process import OneProcess
from feddp.demo import heart, hospital
from feddp.demo.job import job_file
from node_agent.data.datasets import load_data_sets
from node_agent.policy.policy import load_policy
from node_agent.tasks import registry
from node_agent.tasks.tabular import TabularModel
from node_agent.tasks.tabular_config import TabularConfig
from node_agent.tasks.tabular_forward import predict
from protos.errors import NotFound

CONFIG = {"model": "logistic", "learning_rate": 2.0, "features": heart.FEATURES}


@pytest.fixture(scope="module")
def found() -> dict[str, heart.Hospital]:
    """The four hospitals, split as by default."""
    return heart.hospitals()


def test_hospitals_have_the_published_split_sizes(found: dict[str, heart.Hospital]) -> None:
    """Train and test sizes are those of FLamby's Fed-Heart-Disease, classes as planned."""
    sizes = {name: (len(h.train_rows), len(h.test_rows)) for name, h in found.items()}
    assert sizes == {
        "cleveland": (199, 104),
        "hungary": (172, 89),
        "switzerland": (30, 16),
        "va-long-beach": (85, 45),
    }
    assert {h.name: h.node_class for h in found.values()} == {
        "cleveland": "hpc",
        "hungary": "cloud",
        "switzerland": "edge",
        "va-long-beach": "cloud",
    }
    switzerland = found["switzerland"]
    assert {row[heart.LABEL] for row in switzerland.train_rows} == {"1"}
    assert [row[heart.LABEL] for row in switzerland.test_rows].count("0") == 1


def test_row_304_is_hungarys(found: dict[str, heart.Hospital]) -> None:
    """The file's one row under the wrong hospital is moved to the right one."""

    def ids(name: str) -> set[str]:
        rows = [*found[name].train_rows, *found[name].test_rows]
        return {row[heart.PATIENT] for row in rows}

    assert "304" in ids("hungary")
    assert "304" not in ids("cleveland")


def test_no_patient_is_on_two_sides(found: dict[str, heart.Hospital]) -> None:
    """Each patient is in one part of one hospital."""
    parts = [part for h in found.values() for part in (h.train_rows, h.test_rows)]
    ids = [row[heart.PATIENT] for part in parts for row in part]
    assert len(ids) == len(set(ids)) == 740


def test_another_split_seed_gives_another_split(found: dict[str, heart.Hospital]) -> None:
    """`--split-seed` changes who is held out and leaves the sizes."""
    other = heart.hospitals(split_seed=7)
    assert other["cleveland"].test_rows != found["cleveland"].test_rows
    assert len(other["cleveland"].test_rows) == 104
    assert heart.hospitals() == found


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the data's package the error tells what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match=r"feddp\[demo\]"):
        heart.hospitals()


@pytest.fixture(scope="module")
def trials(
    tmp_path_factory: pytest.TempPathFactory, found: dict[str, heart.Hospital]
) -> Iterator[Trials]:
    """The four hospitals with a coordinator, all in this process."""
    made = Trials(tmp_path_factory.mktemp("trials"), found, 1e-5)
    yield made
    made.close()


def test_training_without_noise_reaches_the_reference_figures(trials: Trials) -> None:
    """CSV, scaling, clipping, FedProx and averaging give what an independent numpy run gives."""
    figures, spent = trials.run(None, seed=0)
    assert figures.accuracy == pytest.approx(0.7913, abs=5e-4)
    assert figures.auc == pytest.approx(0.8828, abs=5e-4)
    assert figures.brier == pytest.approx(0.1383, abs=5e-4)
    assert spent is None


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_training_with_noise_holds_the_bars(trials: Trials, epsilon: float) -> None:
    """The mean of 10 jobs with fresh noise, all with the same defaults; each bar is four
    deviations of that mean away or more, and each job has spent its epsilon and not more."""
    cell = trials.cell(epsilon, runs=10)
    assert cell.held, cell
    assert cell.spent == pytest.approx(epsilon, rel=1e-3)
    assert cell.spent <= epsilon


def test_a_smaller_delta_has_a_price_that_is_small(
    tmp_path: Path, found: dict[str, heart.Hospital]
) -> None:
    """At delta 1e-6 and epsilon 0.5 the mean keeps the bar of delta 1e-5; `make bench-models`
    measures the half point that it may cost at most."""
    trials = Trials(tmp_path, found, 1e-6)
    cell = trials.cell(0.5, runs=10)
    trials.close()
    assert cell.mean.holds(BARS[0.5])
    assert cell.spent == pytest.approx(0.5, rel=1e-3)


def test_a_bar_that_is_not_held_fails_the_benchmark() -> None:
    """A figure on the wrong side, or a point lost by the smaller delta, is named."""
    still = Figures(0.0, 0.0, 0.0)
    cells = [
        Cell("DP-SGD", epsilon, delta, 1, Figures(0.8, 0.88, 0.14), still, epsilon, BARS[epsilon])
        for epsilon in EPSILONS
        for delta in (1e-5, 1e-6)
    ]
    assert faults_of(cells) == []
    for worse in (Figures(0.7, 0.88, 0.14), Figures(0.8, 0.8, 0.14), Figures(0.8, 0.88, 0.2)):
        assert len(faults_of([replace(cells[0], mean=worse), *cells[1:]])) >= 1
    lost = replace(cells[1], mean=Figures(0.794, 0.88, 0.14))
    assert faults_of([cells[0], lost, *cells[2:]]) == [
        "epsilon 0.5: delta 1e-06 costs 0.0060 of accuracy"
    ]


def test_mlp_trains_and_evaluates(
    tmp_path: Path, found: dict[str, heart.Hospital], trials: Trials
) -> None:
    """The MLP goes the same way and ranks the held-out rows well; 0.87 with this seed."""
    spec = yaml.safe_load(job_file(None, 1e-5))
    spec["task_config"] |= {"model": "mlp", "hidden": [32]}
    federation = OneProcess(tmp_path, trials.folders)
    job = federation.run(yaml.safe_dump(spec).encode())
    federation.close()
    assert heart.evaluate(federation.blobs.model(job.model_digest), found)["auc"] > 0.85


@pytest.mark.parametrize("shape", [{}, {"model": "mlp", "hidden": [8, 4]}])
def test_prediction_agrees_with_the_model_that_trained(shape: dict[str, Any]) -> None:
    """The numpy forward pass gives the torch model's probabilities."""
    model = TabularModel(TabularConfig.model_validate({**CONFIG, **shape}))
    features = np.random.default_rng(0).normal(size=(50, len(heart.FEATURES))).astype(np.float32)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = torch.sigmoid(model(torch.from_numpy(features))).detach().numpy()[:, 0]
    assert predict(weights, features) == pytest.approx(expected, abs=1e-6)


def test_auc_is_null_where_one_class_is_there(
    tmp_path: Path, found: dict[str, heart.Hospital]
) -> None:
    """A hospital whose held-out rows are all ill has an accuracy and no AUC."""
    switzerland = found["switzerland"]
    ill = [row for row in switzerland.test_rows if row[heart.LABEL] == "1"]
    cut = heart.Hospital("switzerland", "edge", switzerland.train_rows, ill)
    path = tmp_path / "model.safetensors"
    path.write_bytes(registry.initial_model(registry.TABULAR, CONFIG, seed=0))
    result = heart.evaluate(path, {**found, "switzerland": cut})
    assert result["per_node"]["switzerland"] == {"accuracy": 0.0, "auc": None}
    assert result["brier"] == pytest.approx(0.25)


def test_hospital_command_writes_an_agents_folder(
    tmp_path: Path, found: dict[str, heart.Hospital], capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m feddp.demo.hospital` leaves records, a declaration that loads and a policy."""
    arguments = ["hungary", "--dir", str(tmp_path), "--unaccounted", "allow"]
    assert hospital.main([*arguments, "--epsilon-limit", "3"]) == 0
    assert "hungary" in capsys.readouterr().out
    [spec] = load_data_sets(tmp_path)
    assert (spec.name, spec.declared_n) == ("heart-disease", 172)
    assert spec.source == tmp_path / "data" / "train.csv"
    lines = spec.source.read_text().splitlines()
    assert len(lines) == 173
    policy = load_policy(tmp_path / "policy.yaml")
    [account] = policy.accounts
    assert (account.epsilon_limit, account.delta, account.unaccounted) == (3.0, 1e-5, "allow")
    pinned = registry.installed()[registry.TABULAR].content_hash
    assert f"{registry.TABULAR}@{pinned}" in policy.tasks_on(spec.name)
    held_out = {row[heart.PATIENT] for row in found["hungary"].test_rows}
    assert not held_out & {line.split(",")[0] for line in lines}


@pytest.mark.parametrize(
    "flag", ["--epsilon-limit=0", "--epsilon-limit=nan", "--delta=1", "--delta=nan"]
)
def test_hospital_command_refuses_nonsense(tmp_path: Path, flag: str) -> None:
    """A limit that makes no sense gives exit code 2 and writes nothing."""
    assert hospital.main(["hungary", "--dir", str(tmp_path), flag]) == 2
    assert not list(tmp_path.iterdir())


def test_hospital_command_leaves_a_stewards_policy_alone(tmp_path: Path) -> None:
    """A folder that has a policy keeps it; exit code 2."""
    (tmp_path / "policy.yaml").write_text("accounts: []")
    assert hospital.main(["hungary", "--dir", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["policy.yaml"]
