"""The tasks that this agent has installed, known without loading what trains them."""

import functools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import safetensors
from blake3 import blake3
from pydantic import BaseModel, ValidationError

from node_agent.data.datasets import DataSetSpec
from node_agent.tasks import evaluation_config, null_config, tabular_config
from node_agent.tasks.evaluation_config import EvaluationConfig
from node_agent.tasks.null_config import NullConfig
from node_agent.tasks.tabular_config import Classifier, TabularConfig
from node_agent.yaml_files.known_keys import advice
from protos.errors import Malformed, NotFound, invariant

ROOT: Final = Path(__file__).resolve().parent.parent.parent
TABULAR: Final = "tabular-classifier"
EVALUATION: Final = "tabular-evaluation"
NULL: Final = "null"

Shapes = dict[str, tuple[int, ...]]

Purpose = Literal["training", "evaluation"]

# What a process of a task loads is in its list, or, with the reason why not, in
# tests/node_agent/tasks/test_task_sources.py.
_WORKER = (
    "node_agent/confinement.py",
    "node_agent/data/datasets.py",
    "node_agent/launchers/mailbox.py",
    "node_agent/yaml_files/known_keys.py",
    "node_agent/yaml_files/shapes.py",
    "node_agent/sources/database.py",
    "node_agent/worker.py",
    "node_agent/tasks/files.py",
    "node_agent/tasks/no_update.py",
    "node_agent/tasks/program.py",
    "node_agent/tasks/registry.py",
    "privacy/releases.py",
    "protos/content.py",
    "protos/encoding.py",
    "protos/errors.py",
    "protos/tensors.py",
    "protos/tracing.py",
    "protos/updates.py",
)
_READING = (
    "node_agent/data/consent.py",
    "node_agent/data/headers.py",
    "node_agent/data/records.py",
    "node_agent/sources/choice.py",
    "node_agent/sources/csv_file.py",
    "node_agent/sources/parquet_file.py",
    "node_agent/sources/problems.py",
    "node_agent/sources/source.py",
    "node_agent/sources/sql_query.py",
)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What the node publishes of a task.

    Attributes:
        content_hash: BLAKE3 over the names and bytes of the sources that run beside the data, in
            hexadecimal; a policy that allows the task pins it.
        config_schema: JSON Schema of `task_config`.
        reads_data: whether the task opens the data set; one that does not releases "no_data".
        purpose: what a steward may set a limit of its own for.
    """

    name: str
    content_hash: str
    config_schema: dict[str, Any]
    reads_data: bool
    purpose: Purpose = "training"


@dataclass(frozen=True, slots=True)
class _Entry:
    config: type[BaseModel]
    sources: tuple[str, ...]
    reads_data: bool
    shapes: Callable[[Any], Shapes]
    initial_values: Callable[[Any, int], Mapping[str, Any]]


_ENTRIES: Final = {
    TABULAR: _Entry(
        config=TabularConfig,
        sources=(
            *_WORKER,
            *_READING,
            "node_agent/tasks/made_up.py",
            "node_agent/tasks/tabular.py",
            "node_agent/tasks/tabular_config.py",
            "privacy/blocks.py",
            "privacy/clipping.py",
            "privacy/dp_sgd.py",
            "privacy/layers.py",
            "privacy/noise.py",
            "privacy/opacus_hooks.py",
            "privacy/row_gradients.py",
        ),
        reads_data=True,
        shapes=tabular_config.shapes,
        initial_values=tabular_config.initial_values,
    ),
    EVALUATION: _Entry(
        config=EvaluationConfig,
        sources=(
            *_WORKER,
            *_READING,
            "node_agent/tasks/evaluation.py",
            "node_agent/tasks/evaluation_config.py",
            "node_agent/tasks/made_up.py",
            "node_agent/tasks/tabular_config.py",
            "node_agent/tasks/tabular_forward.py",
            "privacy/noise.py",
        ),
        reads_data=True,
        shapes=evaluation_config.shapes,
        initial_values=lambda config, _seed: evaluation_config.initial_values(config),
    ),
    NULL: _Entry(
        config=NullConfig,
        sources=(*_WORKER, "node_agent/tasks/null.py", "node_agent/tasks/null_config.py"),
        reads_data=False,
        shapes=null_config.shapes,
        initial_values=lambda config, _seed: null_config.initial_values(config),
    ),
}


@functools.cache
def installed() -> dict[str, TaskInfo]:
    """Every installed task by name; hashed once, as the code in this process will not change."""
    return {
        name: TaskInfo(
            name,
            content_hash(entry.sources),
            entry.config.model_json_schema(),
            entry.reads_data,
            "evaluation" if name == EVALUATION else "training",
        )
        for name, entry in _ENTRIES.items()
    }


def content_hash(sources: tuple[str, ...], root: Path = ROOT) -> str:
    """BLAKE3 over name, length and bytes of each source, in the order of their names."""
    hasher = blake3()
    for name in sorted(sources):
        data = (root / name).read_bytes()
        hasher.update(f"{name}\n{len(data)}\n".encode())
        hasher.update(data)
    return hasher.hexdigest()


def config_model(name: str) -> type[BaseModel]:
    """The pydantic model of a task's configuration.

    Raises:
        NotFound: TASK_UNKNOWN.
    """
    return _entry(name).config


def parse_config(name: str, config: Mapping[str, Any], data_set: DataSetSpec | None) -> BaseModel:
    """A job's `task_config`, checked against the task and the data set's declared schema.

    Args:
        data_set: None checks the configuration alone.

    Raises:
        NotFound: TASK_UNKNOWN.
        Malformed: TASK_CONFIG_INVALID; the message names every wrong key, and nothing from data.
    """
    try:
        parsed = _entry(name).config.model_validate(dict(config))
    except ValidationError as error:
        raise Malformed(
            "TASK_CONFIG_INVALID",
            f"The task_config of task {name!r} is wrong: {_faults(error, _entry(name).config)}",
        ) from None
    if data_set is not None and isinstance(parsed, Classifier):
        tabular_config.check_against(parsed, data_set)
    return parsed


def _faults(error: ValidationError, model: type[BaseModel]) -> str:
    """Every fault with its key, in one line."""
    said = []
    for fault in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            text = "it is missing: write it"
        elif fault["type"] == "extra_forbidden":
            text = advice(model, fault["loc"])
        said.append(f"{key}: {text}" if key else text)
    return "; ".join(said)


def model_shapes(name: str, config: BaseModel) -> Shapes:
    """Names and shapes of the float32 tensors of a task's model."""
    return _entry(name).shapes(config)


def initial_model(name: str, config: Mapping[str, Any], seed: int) -> bytes:
    """The model that the first round starts from, as safetensors; the same seed, the same bytes.

    Raises:
        NotFound: TASK_UNKNOWN.
        Malformed: TASK_CONFIG_INVALID.
    """
    invariant(sys.byteorder == "little", "safetensors are little-endian and so must the host be")
    parsed = parse_config(name, config, None)
    values = _entry(name).initial_values(parsed, seed)
    specs = {}
    for tensor, shape in model_shapes(name, parsed).items():
        address, length = values[tensor].buffer_info()
        invariant(length == math.prod(shape), f"tensor {tensor} has another size than its shape")
        specs[tensor] = safetensors.TensorSpec(
            dtype="float32", shape=list(shape), data_ptr=address, data_len=4 * length
        )
    # `values` owns the memory behind the specs and outlives this call.
    return bytes(safetensors.serialize(specs))


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise NotFound(
            "TASK_UNKNOWN",
            f"There is no task {name!r} here; installed are {', '.join(sorted(_ENTRIES))}.",
        )
    return _ENTRIES[name]
