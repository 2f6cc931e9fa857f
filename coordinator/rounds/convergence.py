"""When the global model has stopped moving.

What is compared with `convergence_threshold`: the *drift*, how far the global model moved per
round, relative to its own norm (or to 1, if that is larger), averaged over the last W rounds.
Global models are sums of released updates, so the drift is public and costs nothing.

Noise must neither fake convergence nor hide it. Noise alone moves the model by about
`noise_norm * sqrt(W)` in W rounds, so per round its share shrinks with W. The window is the
shortest, from `convergence_patience` up to half the rounds done, over which that share is below
half the threshold; a round counts as settled only if the drift plus twice that share is below the
threshold. Where no window is long enough, the model cannot be told to have settled at this noise,
and the planned rounds decide. A job converges after `convergence_patience` settled rounds in a
row.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """The rounds that the drift is averaged over.

    Attributes:
        rounds: W.
        resolvable: whether noise leaves room to see a drift below the threshold.
    """

    rounds: int
    resolvable: bool


def choose_window(
    rounds_done: int, patience: int, threshold: float, noise_norm: float | None, model_norm: float
) -> Window:
    """The window after `rounds_done` >= 1 rounds.

    Args:
        noise_norm: expected norm of the noise that one round adds; None if unknown.
    """
    shortest = min(patience, rounds_done)
    longest = max(shortest, rounds_done // 2)
    if noise_norm is None:
        return Window(shortest, False)
    for rounds in range(shortest, longest + 1):
        if noise_share(noise_norm, rounds, model_norm) <= threshold / 2:
            return Window(rounds, rounds >= patience)
    return Window(longest, False)


def noise_share(noise_norm: float, window: int, model_norm: float) -> float:
    """What noise alone makes of the drift over a window."""
    return noise_norm / math.sqrt(window) / max(1.0, model_norm)


def drift(moved: float, window: int, model_norm: float) -> float:
    """Relative movement per round, from the distance between both ends of the window."""
    return moved / window / max(1.0, model_norm)


def settled(window: Window, drift_: float, noise: float | None, threshold: float) -> bool:
    """Whether this round counts towards `convergence_patience`."""
    return window.resolvable and noise is not None and drift_ + 2 * noise < threshold
