"""Installed tasks: their hashes, configurations and first models."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from node_agent.data.datasets import DataSetSpec
from node_agent.tasks import registry
from node_agent.tasks.files import Room, read_base
from node_agent.tasks.tabular import TabularModel, loss_per_row
from node_agent.tasks.tabular_config import TabularConfig
from protos.content import digest_of, is_digest
from protos.errors import Malformed, NotFound

FEATURES = [
    {"column": "age", "center": 55.0, "scale": 10.0},
    {"column": "sex", "category": "Male", "center": 0.5, "scale": 0.5},
]
LOGISTIC: dict[str, Any] = {"model": "logistic", "learning_rate": 2.0, "features": FEATURES}
MLP: dict[str, Any] = {**LOGISTIC, "model": "mlp", "hidden": [4, 3]}
DATA_SET = DataSetSpec.model_validate(
    {
        "name": "d",
        "source": "/nowhere/train.csv",
        "patient": "patient_id",
        "label": "disease",
        "declared_n": 10,
        "version": 1,
        "columns": {
            "age": "number",
            "sex": {"category": ["Male", "Female"]},
            "disease": "number",
        },
    }
)


def test_every_task_has_a_content_hash() -> None:
    """The tasks are pinned by different digests, and one of them reads no data."""
    tasks = registry.installed()
    assert set(tasks) == {"tabular-classifier", "tabular-evaluation", "null"}
    assert all(is_digest(task.content_hash) for task in tasks.values())
    assert len({task.content_hash for task in tasks.values()}) == 3
    assert {name for name, task in tasks.items() if not task.reads_data} == {"null"}


def test_content_hash_changes_with_a_name_or_a_byte(tmp_path: Path) -> None:
    """Any change of a source, also one that moves bytes between two of them, changes the hash."""
    (tmp_path / "a").write_text("xy")
    (tmp_path / "b").write_text("z")
    before = registry.content_hash(("a", "b"), tmp_path)
    assert registry.content_hash(("b", "a"), tmp_path) == before
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("yz")
    assert registry.content_hash(("a", "b"), tmp_path) != before
    (tmp_path / "a").write_text("xy")
    (tmp_path / "b").rename(tmp_path / "c")
    (tmp_path / "c").write_text("z")
    assert registry.content_hash(("a", "c"), tmp_path) != before


def test_unknown_task_is_named() -> None:
    """A task that is not installed gives TASK_UNKNOWN."""
    with pytest.raises(NotFound, match="nonsense") as caught:
        registry.config_model("nonsense")
    assert caught.value.reason == "TASK_UNKNOWN"


@pytest.mark.parametrize("config", [LOGISTIC, MLP])
def test_good_configuration_passes_model_and_schema(config: dict[str, Any]) -> None:
    """Both models' configurations fit the model, the data set and the published JSON Schema."""
    registry.parse_config("tabular-classifier", config, DATA_SET)
    schema = registry.installed()["tabular-classifier"].config_schema
    jsonschema.validate(config, json.loads(json.dumps(schema)))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": "forest"}, "model"),
        ({"model": "mlp"}, "hidden"),
        ({"hidden": [4]}, "hidden"),
        ({"model": "mlp", "hidden": [513]}, "hidden.0"),
        ({"model": "mlp", "hidden": [0]}, "hidden.0"),
        ({"model": "mlp", "hidden": [1, 1, 1, 1]}, "hidden"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "2"}, "learning_rate"),
        ({"features": []}, "features"),
        ({"features": [{**FEATURES[0], "scale": 0}]}, "features.0.scale"),
        ({"features": [{"column": "age"}]}, "features.0.center"),
        ({"optimizer": "adam"}, "optimizer: there is no such key; known here: features, hidden"),
        ({"learning_rat": 2.0}, "learning_rat: there is no such key; did you mean learning_rate?"),
        (
            {"features": [{**FEATURES[0], "centre": 1.0}]},
            "features.0.centre: there is no such key; did you mean center?",
        ),
    ],
)
def test_wrong_configuration_is_refused_by_model_and_schema(
    change: dict[str, Any], key: str
) -> None:
    """Whoever checks first, coordinator by JSON Schema or node by model, refuses the same."""
    config = {**LOGISTIC, **change}
    with pytest.raises(Malformed) as caught:
        registry.parse_config("tabular-classifier", config, None)
    assert caught.value.reason == "TASK_CONFIG_INVALID"
    assert key in caught.value.message
    schema = registry.installed()["tabular-classifier"].config_schema
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, schema)


def test_infinite_learning_rate_is_refused() -> None:
    """NaN and infinities, which Python's JSON reads, are refused by the model."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(Malformed):
            registry.parse_config("tabular-classifier", {**LOGISTIC, "learning_rate": value}, None)


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({"column": "chol"}, "'chol'"),
        ({"column": "disease"}, "'disease'"),
        ({"column": "patient_id"}, "'patient_id'"),
        ({"column": "sex"}, "holds categories"),
        ({"column": "sex", "category": "Diverse"}, "'Diverse'"),
        ({"column": "age", "category": "55"}, "'55'"),
    ],
)
def test_feature_outside_the_declared_schema_is_refused(feature: dict[str, Any], said: str) -> None:
    """Undeclared columns and categories, the label and the patient are no features."""
    config = {**LOGISTIC, "features": [{"center": 0.0, "scale": 1.0, **feature}]}
    with pytest.raises(Malformed, match=said):
        registry.parse_config("tabular-classifier", config, DATA_SET)


def test_logistic_model_starts_at_zero() -> None:
    """The logistic model is one layer named linear, all zeros, whatever the seed."""
    data = registry.initial_model("tabular-classifier", LOGISTIC, seed=5)
    model = load(data)
    assert {name: value.shape for name, value in model.items()} == {
        "linear.weight": (1, 2),
        "linear.bias": (1,),
    }
    assert all(value.dtype == np.float32 and not value.any() for value in model.values())
    assert registry.initial_model("tabular-classifier", LOGISTIC, seed=6) == data


def test_mlp_starts_with_kaiming_uniform_hidden_weights() -> None:
    """Hidden weights fill +-sqrt(6 / fan in); biases and the last layer are zero; seeds count."""
    config = {**MLP, "hidden": [512, 3]}
    data = registry.initial_model("tabular-classifier", config, seed=1)
    model = load(data)
    for name, fan_in in (("hidden.0.weight", 2), ("hidden.1.weight", 512)):
        bound = (6 / fan_in) ** 0.5
        assert 0.9 * bound < np.abs(model[name]).max() <= bound * 1.000001
        assert abs(float(model[name].mean())) < 0.2 * bound
    assert not any(model[n].any() for n in model if n.endswith("bias") or n == "linear.weight")
    assert registry.initial_model("tabular-classifier", config, seed=1) == data
    assert registry.initial_model("tabular-classifier", config, seed=2) != data


@pytest.mark.parametrize("config", [LOGISTIC, MLP])
def test_torch_model_has_the_published_tensors(config: dict[str, Any]) -> None:
    """The model that trains and the model that is published agree in names and shapes."""
    parsed = TabularConfig.model_validate(config)
    tensors = TabularModel(parsed).state_dict()
    shapes = registry.model_shapes("tabular-classifier", parsed)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == shapes


def test_loss_is_one_value_for_each_row() -> None:
    """The loss has shape (rows,): of shape (rows, 1) nothing would be clipped."""
    losses = loss_per_row(torch.zeros(5, 1), torch.tensor([0.0, 1, 0, 1, 1]))
    assert losses.shape == (5,)
    assert torch.allclose(losses, torch.full((5,), 0.6931472))


def test_null_model_has_the_size_asked_for() -> None:
    """The null task's model is one tensor of zeros of the configured size."""
    model = load(registry.initial_model("null", {"parameters": 10_000}, seed=0))
    assert model["parameters"].shape == (10_000,)
    with pytest.raises(Malformed, match="parameters"):
        registry.initial_model("null", {"parameters": 0}, seed=0)


def test_a_rounds_model_is_read_into_the_memory_of_the_one_before(tmp_path: Path) -> None:
    """Its values are its own, also after one of another size; only the memory is the same."""
    room = Room()
    addresses = []
    for values in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0, 7.0]):
        model = save({"w": np.asarray(values, np.float32)})
        path = tmp_path / "model"
        path.write_bytes(model)
        read = read_base(path, digest_of(model), {"w": (len(values),)}, room)
        assert read["w"].tolist() == values
        addresses.append(read["w"].ctypes.data)
    assert addresses[0] == addresses[1]
