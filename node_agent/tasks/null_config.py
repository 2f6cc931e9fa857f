"""What a job may ask of the null task; no numpy."""

from array import array

from pydantic import BaseModel, ConfigDict, Field

TENSOR = "parameters"
FROZEN = "frozen"


class NullConfig(BaseModel):
    """Size of the model that the null task pretends to train, and of the part that it does not."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    parameters: int = Field(ge=1, le=2**28, description="float32 values that are trained")
    frozen: int = Field(
        default=0, ge=0, le=2**28, description="float32 values that stay as they are"
    )


def shapes(config: NullConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of the trained tensor, and of the frozen one if there is any."""
    frozen = {FROZEN: (config.frozen,)} if config.frozen else {}
    return {TENSOR: (config.parameters,), **frozen}


def initial_values(config: NullConfig) -> "dict[str, array[float]]":
    """Zeros, float32."""
    return {name: array("f", bytes(4 * count)) for name, (count,) in shapes(config).items()}
