"""A node's training worker over records of our choice, read at its two ends: file and spool."""

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from node_agent.data.datasets import DataSetSpec
from node_agent.tasks import registry
from node_agent.worker import Worker
from privacy.releases import Release
from protos.content import digest_of_file

CLIP = 0.1
LEARNING_RATE = 1.0


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of attempts are each synced to it."""
    memory = Path("/dev/shm")  # noqa: S108 - only what the audit made up is in it
    inside = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="feddp-audit-", dir=inside) as folder:
        yield Path(folder)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the file: features that are not named are 0."""

    patient: str
    label: int
    features: dict[int, float]


class Hospital:
    """The real worker with the real task: CSV in, spooled bytes out, nothing replaced.

    Args:
        weights: the round's model, by the names of its tensors; None for an initial one of `seed`.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[Row],
        *,
        features: int,
        declared_n: int,
        hidden: Sequence[int] = (),
        seed: int = 0,
        weights: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.declared_n = declared_n
        self._out = folder / "out.safetensors"
        self._base = folder / "base.safetensors"
        self._attempts = 0
        self._worker = Worker()
        columns = [f"c{number}" for number in range(features)]
        config = {
            "model": "mlp" if hidden else "logistic",
            "hidden": list(hidden),
            "learning_rate": LEARNING_RATE,
            "features": [{"column": name, "center": 0.0, "scale": 1.0} for name in columns],
        }
        self._base.write_bytes(
            registry.initial_model(registry.TABULAR, config, seed)
            if weights is None
            else save(dict(weights))
        )
        source = folder / "train.csv"
        with source.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["patient", "label", *columns])
            for row in rows:
                cells = [row.features.get(number, 0) for number in range(features)]
                writer.writerow([row.patient, row.label, *cells])
        spec = DataSetSpec.model_validate(
            {
                "name": "audited",
                "source": str(source),
                "patient": "patient",
                "label": "label",
                "declared_n": declared_n,
                "version": 1,
                "columns": dict.fromkeys(columns, "number"),
            }
        )
        prepared = self._answer(
            op="prepare",
            job_id="audit",
            task=registry.TABULAR,
            task_hash=registry.installed()[registry.TABULAR].content_hash,
            task_config=config,
            data_set=spec.model_dump(mode="json"),
            declared_n=declared_n,
        )
        assert prepared == {"op": "prepared"}, prepared

    def attempt(self, release: Release, proximal_mu: float = 0.0) -> NDArray[np.float64]:
        """One attempt's update as it lies in the spool, as one vector: weights, then bias."""
        self._attempts += 1
        answer = self._answer(
            op="train",
            attempt_id=f"attempt-{self._attempts}",
            round=self._attempts,
            base_model=str(self._base),
            base_model_digest=digest_of_file(self._base),
            out=str(self._out),
            release=asdict(release),
            declared_n=self.declared_n,
            max_grad_norm=CLIP,
            proximal_mu=proximal_mu,
        )
        assert answer["op"] == "trained", answer
        tensors = load_file(self._out)
        names = sorted(tensors, key=lambda name: (name.endswith("bias"), name))
        return np.concatenate([tensors[name].astype(np.float64).ravel() for name in names])

    def _answer(self, **request: Any) -> dict[str, Any]:
        return self._worker.handle(json.dumps(request).encode())
