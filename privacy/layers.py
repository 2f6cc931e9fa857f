"""Which models DP-SGD takes: those whose every row has a gradient of its own.

The list is of layers that the tests prove, not of layers that are thought to be wrong: one that
is not on it is refused by name, with what to use instead. Loads torch.
"""

from collections.abc import Iterator
from typing import Final

from torch import nn

from protos.errors import Malformed

SUPPORTED: Final[tuple[type[nn.Module], ...]] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
)
"""Layers that may hold parameters. Exactly these types: a subclass may compute something else."""

_INSTEAD: Final[tuple[tuple[type[nn.Module], str], ...]] = (
    (
        nn.modules.batchnorm._BatchNorm,
        "it normalises a row by the other rows of the batch; use GroupNorm or LayerNorm",
    ),
    (
        nn.modules.instancenorm._InstanceNorm,
        "it keeps running statistics of the rows; use track_running_stats=False",
    ),
    (nn.RNNBase, "use Conv1d or Linear layers over a fixed window"),
    (nn.MultiheadAttention, "write attention with Linear layers"),
    (nn.EmbeddingBag, "use Embedding and a mean over each row's own tokens"),
    (nn.modules.dropout._DropoutNd, "it draws at random; leave it out"),
    (nn.RReLU, "it draws at random; use ReLU"),
)

_RANDOM: Final = (nn.modules.dropout._DropoutNd, nn.RReLU)
"""Draw for one row after the other, from a generator whose seed everybody knows: with one patient
more, other rows have other draws."""


def check_layers(model: nn.Module) -> None:
    """Refuse a model in which some parameter has no gradient of each row by itself.

    Refused are batch normalisation in every form; layers that draw at random; a layer with
    parameters that is not in `SUPPORTED`; buffers, which rows would share and nothing would clip;
    one parameter, or one memory, under two names; and a model with nothing to train.

    Raises:
        Malformed: LAYER_UNSUPPORTED; the message names the layer and what to use instead.
    """
    for name, layer in model.named_modules():
        where = f"layer {name or '(the model itself)'} ({type(layer).__name__})"
        mixes = isinstance(layer, (nn.modules.batchnorm._BatchNorm, *_RANDOM))
        trained = any(p.requires_grad for p in layer.parameters(recurse=False))
        if mixes or (trained and type(layer) not in SUPPORTED):
            raise _refused(f"{where}: {_instead(layer)}")
        for buffer, _ in layer.named_buffers(recurse=False):
            why = _instead(layer) if _known(layer) else "rows would share it and nothing clips it"
            raise _refused(f"{where} has the buffer {buffer}: {why}")
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise _refused(
                f"{where}: gradients of each row are proven for padding_mode='zeros' only, and not "
                f"for {layer.padding_mode!r}; pad in the model's forward instead"
            )
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            raise _refused(
                f"{where}: padding_idx keeps one row of the table out of training, which the "
                "gradients of each row do not; leave it out"
            )
        if isinstance(layer, nn.LayerNorm) and layer.elementwise_affine and layer.bias is None:
            raise _refused(f"{where}: gradients of each row are proven with a bias; leave it on")
        if isinstance(layer, nn.Embedding) and (
            layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse
        ):
            raise _refused(
                f"{where}: max_norm changes weights by what rows hold, scale_grad_by_freq mixes"
                " rows and sparse gradients are not per row; leave all three at their defaults"
            )
    first: dict[int, str] = {}
    for name, pointer in _memories(model):
        if pointer in first:
            raise _refused(
                f"parameters {first[pointer]} and {name} are tied; give each layer its own"
            )
        first[pointer] = name
    if not any(p.requires_grad for p in model.parameters()):
        raise _refused("no parameter is trained")


def _memories(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Names of all parameters, repeated ones too, with the address of their memory."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.numel():
            yield name, parameter.data_ptr()


def _known(layer: nn.Module) -> bool:
    return any(isinstance(layer, kind) for kind, _ in _INSTEAD)


def _instead(layer: nn.Module) -> str:
    for kind, text in _INSTEAD:
        if isinstance(layer, kind):
            return text
    names = ", ".join(one.__name__ for one in SUPPORTED)
    return f"gradients of each row are proven for {names} only; build it from these"


def _refused(what: str) -> Malformed:
    return Malformed("LAYER_UNSUPPORTED", f"This model cannot be trained with DP-SGD: {what}.")
