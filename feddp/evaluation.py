"""How good a model is: on hospitals' records by a booked job, or on public rows on this machine.

What a `tabular-evaluation` job hands over are rates that carry noise of a known size. The standard
errors here are those of that noise alone; that the records are a sample is not in them.
"""

import math
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protos.errors import Malformed
from protos.feddp.v1.jobs_pb2 import Job
from protos.tensors import NotTensors, parse_header, read_header

TASK: Final = "tabular-evaluation"

Download = Callable[[str, Path], object]
"""Writes the model with this id or digest to a file, as `feddp.client.Client.download` does."""

DENOMINATOR_ERRORS_MIN: Final = 4.0
"""A share is told if what it is a share of is known to be above 0 by so many standard errors."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and its standard error, of the noise alone."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a job found out about a model on the records of all its hospitals.

    Attributes:
        evaluates: the model, as the job names it.
        hospitals: how many released their counts.
        declared_n: their declared patients, the denominator of `accuracy`.
        sensitivity: of the ill, how many are found; None where the noise hides how many ill there
            are.
        specificity: of the healthy, how many are told so; None likewise.
    """

    evaluates: str
    hospitals: int
    declared_n: int
    accuracy: Figure
    sensitivity: Figure | None
    specificity: Figure | None

    def figures(self) -> dict[str, Figure | None]:
        """Each figure by its name."""
        return {
            "accuracy": self.accuracy,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
        }


def first_model(download: Download, task_config: Mapping[str, Any]) -> bytes:
    """What an evaluation job starts from: the model that its task_config names.

    Raises:
        Malformed: TASK_CONFIG_INVALID, MODEL_MISMATCH.
        NotFound: there is no such model.
    """
    from node_agent.tasks import evaluation_config
    from node_agent.tasks.evaluation_config import EvaluationConfig
    from node_agent.tasks.registry import EVALUATION, parse_config

    config = parse_config(EVALUATION, task_config, None)
    if not isinstance(config, EvaluationConfig):
        raise TypeError(EVALUATION)
    with tempfile.TemporaryDirectory(prefix="feddp-model-") as folder:
        path = Path(folder) / "model.safetensors"
        download(config.evaluates, path)
        return evaluation_config.first_model(config, path.read_bytes())


def evaluation_of(download: Download, job: Job, spec: bytes) -> Evaluation | None:
    """What an ended evaluation job found; None for any other job.

    Args:
        spec: the job file.
    """
    if job.task != TASK or not job.model_digest:
        return None
    from feddp.jobfile import task_of

    with tempfile.TemporaryDirectory(prefix="feddp-model-") as folder:
        path = Path(folder) / "model.safetensors"
        download(job.model_digest, path)
        rates = read_rates(path)
    _, task_config = task_of(spec)
    return evaluation(job, str(task_config.get("evaluates", "")), rates)


def read_rates(path: Path) -> tuple[float, float, float, float]:
    """The released rates in an evaluation's answer, in the order of `evaluation_config.CELLS`.

    Raises:
        Malformed: MODEL_INVALID.
    """
    from node_agent.tasks.evaluation_config import RATES

    try:
        with path.open("rb") as file:
            tensors = parse_header(*read_header(file))
            [found] = [one for one in tensors if (one.name, one.dtype) == (RATES, "F32")]
            file.seek(found.offset)
            true_positive, false_positive, true_negative, false_negative = struct.unpack(
                "<4f", file.read(4 * found.values)
            )
    except (NotTensors, ValueError, struct.error):
        raise Malformed(
            "MODEL_INVALID", "the job's answer does not hold the rates of an evaluation"
        ) from None
    return true_positive, false_positive, true_negative, false_negative


def evaluation(job: Job, evaluates: str, rates: Sequence[float]) -> Evaluation:
    """Figures and their errors, from the rates and from what the hospitals were ordered.

    Each hospital's counts carry noise of deviation `noise_multiplier`, as one patient adds at most
    1. The rates are the sums over all hospitals divided by the sum of their declared sizes.
    """
    released = [part for part in job.rounds[-1].participation if part.outcome == "update"]
    declared_n = sum(part.declared_n for part in released)
    noises = [part.noise_multipliers[-1] for part in released if part.noise_multipliers]
    error = math.sqrt(math.fsum(noise * noise for noise in noises)) / declared_n
    true_positive, false_positive, true_negative, false_negative = rates
    return Evaluation(
        evaluates=evaluates,
        hospitals=len(released),
        declared_n=declared_n,
        accuracy=Figure(true_positive + true_negative, math.sqrt(2.0) * error),
        sensitivity=_share(true_positive, false_negative, error),
        specificity=_share(true_negative, false_positive, error),
    )


def _share(part: float, rest: float, error: float) -> Figure | None:
    """part / (part + rest), each with independent noise of deviation `error`; to first order."""
    whole = part + rest
    if whole <= 0 or whole < DENOMINATOR_ERRORS_MIN * math.sqrt(2.0) * error:
        return None
    value = part / whole
    return Figure(value, error * math.hypot(1.0 - value, value) / whole)
