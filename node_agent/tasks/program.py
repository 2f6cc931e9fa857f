"""What the worker runs: one task bound to one job's configuration and data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.releases import Release

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt as the program needs it.

    Attributes:
        release: what will leave, fixed before the data is opened.
        declared_n: the steward's public number of patients.
        max_grad_norm: clipping bound of one patient's summed gradient.
        proximal_mu: FedProx mu.
    """

    release: Release
    declared_n: int
    max_grad_norm: float
    proximal_mu: float


class Program(Protocol):
    """A task that runs in the worker.

    Attributes:
        remark: what the hospital, and nobody else, should know of the records that the newest
            update came from; empty for nothing.
    """

    remark: str

    def check(self, order: Order) -> None:
        """Whether the task can do what is ordered: what could be known now must not be found out
        once the data is open, when it is charged.

        Raises:
            NoUpdate, Malformed: it cannot.
        """
        ...

    def rehearsal_s(self, declared_n: int, steps: int) -> float:
        """Seconds that an attempt takes on made-up records of the declared size; opens no data."""
        ...

    def update(self, base: Weights, order: Order) -> Weights:
        """Trained weights minus `base`, float32; opens data at need.

        `base` is another round's model after the return: what is to last is copied.

        Of the tensors that it trains alone: the others are left out and do not travel. Which they
        are follows from the configuration, never from data.
        """
        ...
