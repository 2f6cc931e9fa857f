"""What a job may ask of the tabular classifier, and the model that follows from it; no torch."""

import math
import random
from array import array
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node_agent.data.datasets import CategoryColumn, DataSetSpec
from protos.errors import Malformed

FEATURE_LIMIT: Final = 3.0
"""A scaled feature is clipped to this absolute value."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Feature(BaseModel):
    """One input of the model: clip((x - center) / scale, -3, 3).

    x is the column's number or, with `category`, 1 where the column equals it and 0 elsewhere.
    Center and scale are constants that everybody knows; taken from records they would be a
    release.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    column: str = Field(min_length=1, max_length=256)
    category: str | None = Field(default=None, min_length=1, max_length=256)
    center: Finite
    scale: Finite = Field(gt=0)


class Classifier(BaseModel):
    """A binary classifier over declared columns: logistic regression or a small MLP."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "if": {"properties": {"model": {"const": "mlp"}}},
            "then": {"required": ["hidden"], "properties": {"hidden": {"minItems": 1}}},
            "else": {"properties": {"hidden": {"maxItems": 0}}},
        },
    )

    model: Literal["logistic", "mlp"]
    hidden: list[Annotated[int, Field(ge=1, le=512)]] = Field(
        default_factory=list, max_length=3, description="width of each hidden layer; mlp only"
    )
    features: list[Feature] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _hidden_fits(self) -> Self:
        if bool(self.hidden) != (self.model == "mlp"):
            raise ValueError("hidden: an mlp needs 1 to 3 layers and a logistic model takes none")
        return self


class TabularConfig(Classifier):
    """A classifier and how it is trained."""

    learning_rate: Finite = Field(gt=0, le=1000)


def check_against(config: Classifier, data_set: DataSetSpec) -> None:
    """Refuse features that the data set's declared schema does not have.

    Raises:
        Malformed: TASK_CONFIG_INVALID; everything in the message is declared, nothing is data.
    """
    for number, feature in enumerate(config.features, start=1):
        declared = data_set.columns.get(feature.column)
        where = f"feature {number}, column {feature.column!r} of data set {data_set.name!r}"
        if feature.column in (data_set.label, data_set.patient) or declared is None:
            # Which of the three stays in the hospital: it does not publish the patient column.
            raise _invalid(
                f"{where}, is none that a task may use: it is not declared, or it names the "
                "patient or the label, which are no features even where they are declared"
            )
        if feature.category is None and declared != "number":
            raise _invalid(f"{where}, holds categories: name the category to compare with")
        if feature.category is not None:
            known = declared.category if isinstance(declared, CategoryColumn) else []
            if feature.category not in known:
                raise _invalid(f"{where}, does not declare category {feature.category!r}")


def shapes(config: Classifier) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's tensors: hidden.0, hidden.1, ... and then linear."""
    widths = [len(config.features), *config.hidden]
    layers = [f"hidden.{index}" for index in range(len(config.hidden))]
    found: dict[str, tuple[int, ...]] = {}
    for layer, wide, out in zip([*layers, "linear"], widths, [*config.hidden, 1], strict=True):
        found[f"{layer}.weight"] = (out, wide)
        found[f"{layer}.bias"] = (out,)
    return found


def initial_values(config: TabularConfig, seed: int) -> "dict[str, array[float]]":
    """Float32 values of each tensor at the start, row by row.

    The last layer starts at zero, so that every model starts from probability 1/2: with clipped
    gradients, few steps would otherwise go to unlearning a random guess. Hidden weights are
    Kaiming uniform, as units that start equal stay equal. Source: He et al. 2015, section 2.2.
    """
    draw = random.Random(seed)
    hidden_weights = {f"hidden.{index}.weight" for index in range(len(config.hidden))}
    values: dict[str, array[float]] = {}
    for name, shape in shapes(config).items():
        size = math.prod(shape)
        bound = math.sqrt(6 / shape[1]) if name in hidden_weights else 0.0
        values[name] = array("f", (draw.uniform(-bound, bound) for _ in range(size)))
    return values


def _invalid(what: str) -> Malformed:
    return Malformed("TASK_CONFIG_INVALID", f"The task_config does not fit: {what}.")
