"""The gradient of each row by itself, from Opacus's hooks, in double precision.

The hooks keep each row's gradient whole. Ghost clipping, which computes norms without gradients, is
not used: it clips nothing, in silence, where a loss is not one value a row. Loads torch.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from privacy.opacus_hooks import GradSampleModule, load_rest_for
from protos.errors import Malformed

SUM_TOLERANCE: Final = 1e-9
"""Of the sum of sizes."""


class InDoublePrecision:
    """The model while it trains: Opacus's hooks on it, trained weights as one double vector.

    On leaving, trained parameters get their values back in their own precision, frozen ones are
    as they were, and nothing that was computed from records stays on the model.

    Attributes:
        module: the model with hooks, to be called on rows.
        flat: (D,) the trained weights; the model computes with whatever is in it.
        values: D.
        room: working memory of `room_values` values, or of D where that is more.
    """

    def __init__(self, model: torch.nn.Module, room_values: int = 0) -> None:
        self._model = model
        self._room_values = room_values

    def __enter__(self) -> "InDoublePrecision":
        self._was_training = self._model.training
        self._before = [(p, p.data) for p in self._model.parameters()]
        self._trained = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        self._model.double().train()
        self.flat = torch.cat([p.detach().flatten() for _, p in self._trained])
        self.values = len(self.flat)
        self.room = torch.empty(max(self._room_values, self.values), dtype=torch.float64)
        for (_, p), piece in zip(self._trained, self._pieces(), strict=True):
            p.data = piece.view(p.shape)
        load_rest_for(self._model)
        self.module = _Hooked(self._model, loss_reduction="sum")
        return self

    def __exit__(self, *_: object) -> None:
        self.module.to_standard_module()
        values = {id(p): v for (_, p), v in zip(self._trained, self._pieces(), strict=True)}
        for parameter, before in self._before:
            after = values.get(id(parameter))
            parameter.data = (
                before if after is None else after.view(before.shape).to(before.dtype, copy=True)
            )
            parameter.grad = None
        self._model.train(self._was_training)

    def check_gradients(self) -> None:
        """Whether the row gradients of the last backward pass add up to what autograd has found: a
        weight that is used outside its own layer has a part that no row's gradient holds.

        Raises:
            Malformed: LAYER_UNSUPPORTED; the message names the parameter.
        """
        for name, parameter in self._trained:
            whole, rows = parameter.grad, parameter.grad_sample
            if not isinstance(whole, Tensor) or not isinstance(rows, Tensor):
                continue  # `take_gradients` says so
            total, size = rows.sum(0), rows.abs().sum(0)
            if total.shape == whole.shape and ((total - whole).abs() > SUM_TOLERANCE * size).any():
                raise Malformed(
                    "LAYER_UNSUPPORTED",
                    "This model cannot be trained with DP-SGD: the gradients of each row do not "
                    f"add up to the gradient of {name}, which is used outside its own layer; call "
                    "the layer instead of reading its weight.",
                )

    def take_gradients(self, rows: int) -> list[Tensor]:
        """Row gradients of the last backward pass, for each trained parameter (rows, *shape)."""
        taken = []
        for name, parameter in self._trained:
            gradient = parameter.grad_sample
            shape = (rows, *parameter.shape)
            if not isinstance(gradient, Tensor) or gradient.shape != shape:
                raise Malformed(
                    "GRADIENT_SHAPE",
                    f"Parameter {name} has no gradient for each row: every layer must be used in"
                    " every pass, with the rows as its first dimension.",
                )
            taken.append(gradient.detach())
            parameter.grad_sample = parameter.grad = None
        return taken

    def _pieces(self) -> Sequence[Tensor]:
        pieces: Sequence[Tensor] = self.flat.split([p.numel() for _, p in self._trained])
        return pieces


class _Hooked(GradSampleModule):  # type: ignore[misc]
    """Opacus's hooks without the two copies of every gradient that they make for sequences.

    So a gradient may share its memory with another layer's: nobody may change it in place.
    """

    def capture_backprops_hook(
        self,
        module: torch.nn.Module,
        _forward_input: object,
        forward_output: Sequence[Tensor],
        loss_reduction: str,
        batch_first: bool,
    ) -> None:
        """Keep a layer's row gradients in `grad_sample`, added up where it is used twice."""
        activations, backprops = self.rearrange_grad_samples(
            module=module,
            backprops=forward_output[0].detach(),
            loss_reduction=loss_reduction,
            batch_first=batch_first,
        )
        sampler = self.GRAD_SAMPLERS[type(module)]
        for parameter, gradient in sampler(module, activations, backprops).items():
            before = parameter.grad_sample
            parameter.grad_sample = gradient if before is None else before + gradient
        if not module.activations:
            del module.max_batch_len
