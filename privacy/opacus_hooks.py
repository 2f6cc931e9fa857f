"""Opacus's hooks that take the gradient of each row, without the rest of Opacus.

`import opacus` loads its privacy engine too, and with that torch's distributed tensors and sympy:
half of what a worker's start takes, and half of the modules that it keeps. Here the package's own
module runs when somebody asks for a name of it, and not before. Loads torch.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

from torch import nn


def _put_off(package: str) -> None:
    """Import a package without running its own module before a name of it is asked for."""
    spec = find_spec(package)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    loader, module = spec.loader, module_from_spec(spec)

    def run(name: str) -> Any:
        vars(module).pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = run
    sys.modules[package] = module


if "opacus" not in sys.modules:
    _put_off("opacus")

from opacus.grad_sample import GradSampleModule  # noqa: E402

__all__ = ["GradSampleModule", "load_rest_for"]


def load_rest_for(model: nn.Module) -> None:
    """Load what Opacus takes for granted in the layers of a model. Of a convolution it asks whether
    that is spread over machines by a module of torch that the whole of Opacus would have loaded:
    it takes a second, which models without one are spared."""
    if any(isinstance(layer, nn.Conv1d | nn.Conv2d) for layer in model.modules()):
        import_module("torch.distributed.fsdp")
