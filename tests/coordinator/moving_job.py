"""A job whose updates are made up and whose rounds are real: the machine decides, `averaging.fold`
averages files, measures the drift and says whether it has settled."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from coordinator.blobs import BlobStore
from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import parse_job
from coordinator.rounds import averaging, bounds, machine
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob, job_to_json, plan_of
from coordinator.rounds.phases import Ended
from coordinator.store.jobs import JobRecord
from privacy.releases import Mechanism
from protos.content import digest_of

Vector = NDArray[np.float64]
Signal = Callable[[int, Vector], Vector]
"""(round, global model) -> how far every node would move it without noise."""

TENSOR = "w"


class MovingJob:
    """One job of four nodes of 100 declared records each.

    Args:
        noise_multiplier: of every release.
        start: the initial model.
        seed: of the made-up noise.
        sample_rate: below 1, the choice of patients moves each update as much as is possible.
    """

    def __init__(
        self,
        folder: Path,
        *,
        noise_multiplier: float,
        start: Vector,
        seed: int,
        rounds: int = 100,
        sample_rate: float = 1.0,
    ) -> None:
        spec = f"""
name: moving
task: tabular-classifier
task_config: {{learning_rate: 2.0}}
dataset: cohort
federation: {{rounds: {rounds}}}
privacy: {{noise_multiplier: {noise_multiplier}}}
""".encode()
        job = parse_job(spec, CoordinatorConfig())
        record = JobRecord(
            "j", "default", "moving", "u", "r", spec, job_to_json(job), "f" * 64, "running", 0.0
        )
        self._blobs = BlobStore(folder)
        self._generator = np.random.default_rng(seed)
        mechanism: Mechanism = "gaussian" if sample_rate == 1 else "poisson_gaussian"
        self._offers = tuple(
            e.Offer(name, f"{name}/p", 100, mechanism, noise_multiplier, sample_rate)
            for name in "abcd"
        )
        initial = self._keep(start)
        phase, _ = machine.start(plan_of(job), e.JobSubmitted(initial), 0.0)
        self.live = LiveJob(record, job, phase, 1)

    @property
    def noise_norm(self) -> float:
        """Expected norm of a round's noise at the start, when every node takes part."""
        std = bounds.noise_std(averaging.round_order(self.live), self._offers[0]) or 0.0
        values = self._model().size
        return float(std * np.sqrt(values / len(self._offers)))

    @property
    def sampling_norm(self) -> float:
        """What the choice of patients makes of a round's movement, when every node takes part."""
        order = averaging.round_order(self.live)
        return (bounds.sampling_norm(order, self._offers[0]) or 0.0) / np.sqrt(len(self._offers))

    def run(self, signal: Signal, *, here: Callable[[int], str] = lambda _round: "abcd") -> Ended:
        """Every round up to the end.

        Args:
            here: names of the nodes that take part in a round, a letter each.
        """
        while not isinstance(self.live.phase, Ended):
            number = self.live.phase.course.next_round
            offers = tuple(one for one in self._offers if one.node in here(number))
            self._take(e.NodesSurveyed(offers, ()))
            grants = tuple(e.Grant(f"{one.node}{number}", one) for one in offers)
            self._take(e.BudgetsReserved(grants, ()))
            moved = signal(number, self._model())
            for grant in grants:
                self._hand_in(grant, moved)
            self._fold()
        return self.live.phase

    def _fold(self) -> None:
        folded = averaging.fold(self.live, self.live.phase, self._blobs)  # type: ignore[arg-type]
        self._take(folded)
        last = getattr(self.live.phase, "status", "")
        self._take(e.ModelPublished(folded.round, folded.digest if last else None))

    def _hand_in(self, grant: e.Grant, moved: Vector) -> None:
        order = averaging.round_order(self.live)
        std = bounds.noise_std(order, grant.offer)
        sampling = bounds.sampling_norm(order, grant.offer)
        assert std is not None
        assert sampling is not None
        whole = np.hypot(std, sampling / np.sqrt(moved.size))
        noised = moved + self._generator.normal(0.0, whole, moved.shape)
        data = save({TENSOR: noised.astype(np.float32)})
        self._blobs.keep_update(grant.attempt_id, digest_of(data), data)
        self._take(e.UpdateReceived(grant.attempt_id, digest_of(data), len(data), b""))

    def _take(self, event: e.Event) -> None:
        self.live.phase, _ = machine.step(self.live.phase, event, 1.0)

    def _keep(self, values: Vector) -> str:
        with self._blobs.scratch("start") as path:
            path.write_bytes(save({TENSOR: values.astype(np.float32)}))
            return self._blobs.adopt_model(path)

    def _model(self) -> Vector:
        model = self._blobs.model(self.live.phase.course.model)
        return load_file(model)[TENSOR].astype(np.float64)
