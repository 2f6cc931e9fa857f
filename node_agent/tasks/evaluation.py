"""The evaluation of a tabular classifier on a node's records: one release of noised counts."""

import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node_agent.data.datasets import DataSetSpec
from node_agent.data.records import Records, read_records
from node_agent.tasks import tabular_config
from node_agent.tasks.evaluation_config import RATES, EvaluationConfig
from node_agent.tasks.made_up import Size, listed_s, made_up, query_s
from node_agent.tasks.no_update import NoUpdate
from node_agent.tasks.program import Order, Weights
from node_agent.tasks.tabular_forward import predict
from privacy.noise import SecureNoise

SENSITIVITY: Final = 1.0
"""L2 norm of what one patient adds to the counts, at most."""

UNITS_PER_PATIENT: Final = 1 << 20
"""Counts and their noise are whole multiples of a unit that everybody knows: no bit of what leaves
lies below the noise."""

THRESHOLD: Final = 0.5
"""A higher probability counts as positive."""


class EvaluationProgram:
    """One job's evaluation; reads the data at its only release."""

    def __init__(self, config: EvaluationConfig, data_set: DataSetSpec) -> None:
        self.remark = ""
        self._config = config
        self._data_set = data_set

    def check(self, order: Order) -> None:
        """See `Program`.

        Raises:
            NoUpdate: it is not one release of every patient.
        """
        release = order.release
        if release.mechanism not in ("gaussian", "none") or release.steps != 1:
            raise NoUpdate("an evaluation is one release of every patient")

    def rehearsal_s(self, declared_n: int, steps: int) -> float:
        """Write, read and evaluate made-up records: everything that an attempt does, by size."""
        del steps
        size = Size.of(self._data_set, declared_n)
        model = {
            name: np.zeros(of, np.float32)
            for name, of in tabular_config.shapes(self._config).items()
        }
        with tempfile.TemporaryDirectory(prefix="feddp-rehearsal-") as folder:
            source = Path(folder) / "made-up.csv"
            rehearsed = made_up(source, self._data_set, size)
            list_s = listed_s(Path(folder) / "list.txt", self._data_set)
            began_s = time.perf_counter()
            records = read_records(rehearsed, self._config.features)
            noised(counts(predict(model, records.features), records).astype(np.float64), 1.0)
            by_size_s = (time.perf_counter() - began_s) * size.share
        return by_size_s + list_s + query_s(self._data_set)

    def update(self, base: Weights, order: Order) -> Weights:
        """Noised counts over the declared number of patients, so that the mean of all nodes, with
        weights by declared size, is the rate among the patients of all of them.

        The noise's deviation is the ordered multiplier times `SENSITIVITY`; the order's clipping
        bound is for gradients and has no part in it.

        Raises:
            DataProblem: the source cannot be read. For the hospital's eyes only.
        """
        self.check(order)
        release = order.release
        records = read_records(self._data_set, self._config.features)
        self.remark = records.remark
        units = counts(predict(base, records.features), records).astype(np.float64)
        if release.mechanism == "gaussian":
            units = noised(units, release.noise_multiplier or 0.0)
        return {RATES: (units / UNITS_PER_PATIENT / order.declared_n).astype(np.float32)}


def counts(probabilities: NDArray[np.float64], records: Records) -> NDArray[np.int64]:
    """(4,) patients in each of `CELLS`, in units of 1 / `UNITS_PER_PATIENT`.

    A patient with several rows counts in each cell by the share of its rows there, rounded towards
    zero to whole units, so that its vector has an L2 norm of at most one patient, and the sum is
    the same in any order.
    """
    guessed, ill = probabilities > THRESHOLD, records.labels > 0.5
    cell = np.where(ill, np.where(guessed, 0, 3), np.where(guessed, 1, 2))
    patients = int(records.patients.max(initial=-1)) + 1
    rows = np.bincount(records.patients * 4 + cell, minlength=4 * patients).reshape(patients, 4)
    shares = rows * UNITS_PER_PATIENT // np.maximum(rows.sum(axis=1, keepdims=True), 1)
    return np.asarray(shares.sum(axis=0), dtype=np.int64)


def noised(total: NDArray[np.float64], noise_multiplier: float) -> NDArray[np.float64]:
    """The counts with fresh noise, both whole numbers of units: `privacy.clipping` says why.

    Added up as floats, which hold every whole number up to 2^53 and no end of larger ones.
    """
    std = noise_multiplier * SENSITIVITY * UNITS_PER_PATIENT
    return total + np.rint(SecureNoise().gaussian(total.shape, std))
