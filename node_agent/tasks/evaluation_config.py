"""What a job may ask of the evaluation of a tabular classifier, and what it releases; no numpy."""

import io
import math
from array import array
from typing import Final

from pydantic import Field

from node_agent.tasks import tabular_config
from node_agent.tasks.tabular_config import Classifier
from protos.errors import Malformed
from protos.tensors import NotTensors, make_header, parse_header, read_header

RATES: Final = "evaluation.rates"
"""The tensor that is released, beside those of the model that is evaluated."""

CELLS: Final = ("true_positive", "false_positive", "true_negative", "false_negative")
"""Its values: patients of each kind, over the declared number of patients."""


class EvaluationConfig(Classifier):
    """A classifier that is there already, and which one it is."""

    evaluates: str = Field(
        min_length=1,
        max_length=128,
        description="a model's digest, or the id of the job whose answer is evaluated",
    )


def shapes(config: EvaluationConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the evaluated model's tensors, and of what is released."""
    return {**tabular_config.shapes(config), RATES: (len(CELLS),)}


def initial_values(config: EvaluationConfig) -> "dict[str, array[float]]":
    """Zeros; `first_model` has the evaluated model's values instead."""
    return {name: array("f", bytes(4 * math.prod(of))) for name, of in shapes(config).items()}


def first_model(config: EvaluationConfig, model: bytes) -> bytes:
    """What an evaluation starts from: a model's tensors, and zeros for what is released.

    Args:
        model: the safetensors file of the model to evaluate.

    Raises:
        Malformed: MODEL_MISMATCH, its tensors are not those of `config`.
    """
    try:
        header, data_bytes = read_header(io.BytesIO(model))
        tensors = parse_header(header, data_bytes)
    except NotTensors:
        tensors = ()
    found = {one.name: (one.dtype, one.shape) for one in tensors}
    if found != {name: ("F32", of) for name, of in tabular_config.shapes(config).items()}:
        raise Malformed(
            "MODEL_MISMATCH",
            f"The model {config.evaluates} has other tensors than this task_config describes: take "
            "model, hidden and features from the job that trained it.",
        )
    described = [(one.name, one.dtype, one.shape) for one in tensors]
    values = model[len(model) - data_bytes :] + bytes(4 * len(CELLS))
    return make_header([*described, (RATES, "F32", (len(CELLS),))]) + values
