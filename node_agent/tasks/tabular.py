"""The tabular classifier: its torch model, its loss and its training beside the data."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from node_agent.data.consent import Stamp, stamp_of
from node_agent.data.datasets import DataSetSpec
from node_agent.data.records import Records, read_records
from node_agent.tasks.made_up import Size, listed_s, made_up, query_s
from node_agent.tasks.program import Order, Weights
from node_agent.tasks.tabular_config import TabularConfig
from privacy.dp_sgd import Training, train
from privacy.noise import SecureNoise
from privacy.releases import Release


class TabularModel(nn.Module):  # type: ignore[misc]
    """Linear layers with ReLU between them; without hidden layers a logistic regression."""

    def __init__(self, config: TabularConfig) -> None:
        super().__init__()
        widths = [len(config.features), *config.hidden]
        self.hidden = nn.ModuleList(
            nn.Linear(wide, out) for wide, out in zip(widths, config.hidden, strict=False)
        )
        self.linear = nn.Linear(widths[-1], 1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits.

        Args:
            features: (rows, F).

        Returns:
            (rows, 1).
        """
        for layer in self.hidden:
            features = torch.relu(layer(features))
        output: Tensor = self.linear(features)
        return output


def loss_per_row(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each row, unreduced.

    Args:
        logits: (rows, 1).
        labels: (rows,) of 0 and 1.

    Returns:
        (rows,); a shape of (rows, 1) would make some per-example gradient code clip nothing.
    """
    return binary_cross_entropy_with_logits(logits.squeeze(1), labels, reduction="none")


REHEARSED_STEPS_MAX = 50


class TabularProgram:
    """One job's training; reads the data at its first update and keeps it in memory for as long as
    nothing of it has changed."""

    def __init__(self, config: TabularConfig, data_set: DataSetSpec) -> None:
        self._config = config
        self._data_set = data_set
        self.remark = ""
        self._records: Records | None = None
        self._read_at: Stamp = ()
        self._rehearse()

    def check(self, order: Order) -> None:
        """See `Program`.

        Raises:
            Malformed: TRAINING_INVALID.
        """
        self._training(order)

    def rehearsal_s(self, declared_n: int, steps: int) -> float:
        """Write, read and train on made-up records: everything that an attempt does, by size.

        Beyond `REHEARSED_ROWS_MAX` records and `REHEARSED_STEPS_MAX` steps the time is taken in
        proportion.
        """
        size, tried = Size.of(self._data_set, declared_n), min(steps, REHEARSED_STEPS_MAX)
        release = Release("gaussian", noise_multiplier=1.0, sample_rate=1.0, steps=tried)
        order = Order(release, declared_n=size.patients, max_grad_norm=1.0, proximal_mu=0.0)
        with tempfile.TemporaryDirectory(prefix="feddp-rehearsal-") as folder:
            source = Path(folder) / "made-up.csv"
            rehearsed = made_up(source, self._data_set, size)
            list_s = listed_s(Path(folder) / "list.txt", self._data_set)
            began_s = time.perf_counter()
            records = read_records(rehearsed, self._config.features)
            read_s = time.perf_counter() - began_s
            self._train(TabularModel(self._config), records, order)
            train_s = time.perf_counter() - began_s - read_s
        by_size_s = (read_s + train_s * max(1.0, steps / max(1, tried))) * size.share
        return by_size_s + list_s + query_s(self._data_set)

    def update(self, base: Weights, order: Order) -> Weights:
        """Train from `base` by DP-SGD with fresh noise; the trained weights minus `base`.

        Raises:
            DataProblem: the source cannot be read. For the hospital's eyes only.
        """
        stamp = stamp_of(self._data_set)
        if self._records is None or stamp != self._read_at:
            # Who opted out or withdrew consent since the last round is in no further one.
            self._records = None
            self._records = read_records(self._data_set, self._config.features)
            self.remark = self._records.remark
            self._read_at = stamp
        records = self._records
        model = TabularModel(self._config)
        start = {name: torch.from_numpy(value) for name, value in base.items()}
        model.load_state_dict(start)
        self._train(model, records, order)
        trained = model.state_dict()
        return {name: (trained[name] - value).numpy() for name, value in start.items()}

    def _training(self, order: Order) -> Training:
        return Training(
            learning_rate=self._config.learning_rate,
            local_steps=order.release.steps,
            max_grad_norm=order.max_grad_norm,
            proximal_mu=order.proximal_mu,
            release=order.release,
            declared_n=order.declared_n,
        )

    def _train(self, model: TabularModel, records: Records, order: Order) -> None:
        train(
            model,
            torch.from_numpy(records.features),
            torch.from_numpy(records.labels),
            torch.from_numpy(records.patients),
            loss_per_row,
            self._training(order),
            SecureNoise(),
        )

    def _rehearse(self) -> None:
        """One step on a made-up row: torch loads a second's worth of modules at the first.

        It also finds an installation that cannot train before the data is opened, when the
        node may still say so and the budget is not charged.
        """
        width = len(self._config.features)
        made_up = Records(
            features=np.zeros((1, width), np.float32),
            labels=np.zeros(1, np.float32),
            patients=np.zeros(1, np.int64),
        )
        release = Release("gaussian", noise_multiplier=1.0, sample_rate=1.0, steps=1)
        order = Order(release, declared_n=1, max_grad_norm=1.0, proximal_mu=0.0)
        self._train(TabularModel(self._config), made_up, order)
