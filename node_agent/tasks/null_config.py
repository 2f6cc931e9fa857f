"""What a job may ask of the null task; no numpy."""

from array import array

from pydantic import BaseModel, ConfigDict, Field

TENSOR = "parameters"


class NullConfig(BaseModel):
    """Size of the model that the null task pretends to train."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    parameters: int = Field(ge=1, le=2**28, description="float32 values in the model")


def shapes(config: NullConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of the one tensor."""
    return {TENSOR: (config.parameters,)}


def initial_values(config: NullConfig) -> "dict[str, array[float]]":
    """Zeros, float32."""
    return {TENSOR: array("f", bytes(4 * config.parameters))}
