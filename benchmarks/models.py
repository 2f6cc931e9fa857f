"""`make bench-models`: the best model that a budget buys; writes build/models.json.

Each run is a whole job of the demo's job file on the demo's data, in one process
(`benchmarks.one_process`), with fresh noise, which nothing can seed. Figures are means over the
runs, pooled over the held-out rows.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from benchmarks import document, sufficient_statistics
from benchmarks.measuring import give_way
from benchmarks.one_process import OneProcess
from feddp.demo import heart
from feddp.demo.hospital import write_hospital
from feddp.demo.job import job_file
from node_agent.data.datasets import load_data_sets
from node_agent.data.records import Records, read_records
from node_agent.tasks.tabular_config import Feature
from node_agent.tasks.tabular_forward import predict

EPSILONS: Final = (0.5, 1.0, 2.0, 5.0)
DELTA: Final = 1e-5
DELTA_SMALL: Final = 1e-6
ACCURACY_LOST_MAX: Final = 0.005
"""By the smaller delta, at the same epsilon."""

RUNS: Final = 100
"""Enough to tell half a point of accuracy: one run deviates by about a point at epsilon 0.5."""

RUNS_TO_CHOOSE: Final = 40

DP_SGD: Final = "DP-SGD"
ONE_SHOT: Final = "X'X, X'y once"
STRATEGIES: Final = {"dp-sgd": DP_SGD, "one-shot": ONE_SHOT}

DOCUMENT: Final = Path("docs/models.md")
EPSILON_LIMIT: Final = 1000.0
"""Of accounts that pay for all runs; each job has its own target."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Accuracy, AUC and Brier score, of one run or in the mean of many."""

    accuracy: float
    auc: float
    brier: float

    def holds(self, bar: "Bar") -> bool:
        """Whether no figure is worse than the bar's."""
        return (
            self.accuracy >= bar.accuracy
            and self.auc >= bar.auc
            and (bar.brier is None or self.brier <= bar.brier)
        )


@dataclass(frozen=True, slots=True)
class Bar:
    """The least accuracy and AUC, and the most Brier score, that the mean is to have."""

    accuracy: float
    auc: float
    brier: float | None


BARS: Final[Mapping[float | None, Bar]] = {
    None: Bar(0.785, 0.880, None),
    0.5: Bar(0.785, 0.868, 0.152),
    1.0: Bar(0.792, 0.874, 0.147),
    2.0: Bar(0.788, 0.878, 0.145),
    5.0: Bar(0.788, 0.878, 0.145),
}
"""At delta 1e-5; None is without noise."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One strategy at one budget.

    Attributes:
        epsilon: each hospital's, for the job; None without noise.
        spent: the largest epsilon that the ledger shows for a hospital; None without noise.
        deviation: of one run's figures about their mean.
        bar: None where there is none.
    """

    strategy: str
    epsilon: float | None
    delta: float
    runs: int
    mean: Figures
    deviation: Figures
    spent: float | None = None
    bar: Bar | None = None

    @property
    def held(self) -> bool:
        """Whether the bar is held; true without one."""
        return self.bar is None or self.mean.holds(self.bar)


class Trials:
    """The four hospitals of the demo, with accounts at one delta."""

    def __init__(self, folder: Path, hospitals: Mapping[str, heart.Hospital], delta: float) -> None:
        self._hospitals = hospitals
        self._delta = delta
        for name, one in hospitals.items():
            write_hospital(
                folder / name,
                one,
                epsilon_limit=EPSILON_LIMIT,
                delta=delta,
                unaccounted="allow",
                unsigned="allow",
            )
        self.folders = {name: folder / name for name in hospitals}
        self._federation = OneProcess(folder, self.folders)

    def close(self) -> None:
        """Close the database."""
        self._federation.close()

    def run(self, epsilon: float | None, seed: int) -> tuple[Figures, float | None]:
        """One job: its answer's figures, and the largest epsilon that a hospital has spent."""
        job = self._federation.run(job_file(epsilon, self._delta), seed)
        if job.status not in ("completed", "converged"):
            raise RuntimeError(f"the job is {job.status}: {job.message}")
        found = heart.evaluate(self._federation.blobs.model(job.model_digest), self._hospitals)
        figures = Figures(found["accuracy"], found["auc"], found["brier"])
        if epsilon is None:
            return figures, None
        return figures, max(node.epsilon_spent for node in job.nodes)

    def cell(self, epsilon: float | None, runs: int) -> Cell:
        """So many runs at one epsilon."""
        done = [self.run(epsilon, seed) for seed in range(runs)]
        mean, deviation = summary([figures for figures, _ in done])
        spent = max((used for _, used in done if used is not None), default=None)
        bar = BARS[epsilon] if self._delta == DELTA else None
        return Cell(DP_SGD, epsilon, self._delta, runs, mean, deviation, spent, bar)


def summary(found: Sequence[Figures]) -> tuple[Figures, Figures]:
    """(mean, standard deviation) of each figure."""
    table = np.array([(one.accuracy, one.auc, one.brier) for one in found])
    return Figures(*table.mean(axis=0).tolist()), Figures(*table.std(axis=0).tolist())


def one_shot_cell(
    records: Mapping[str, Records],
    judge: Callable[[sufficient_statistics.Weights], Figures],
    epsilon: float,
    runs: int,
) -> Cell:
    """The rival at one epsilon, in the setting of the best Brier score on the held-out rows.

    It is measured again once it is chosen: the best of many means is too good by chance.
    """

    def measured(setting: sufficient_statistics.Setting, times: int) -> Cell:
        models = (
            sufficient_statistics.one_shot(records, setting, epsilon, DELTA) for _ in range(times)
        )
        mean, deviation = summary([judge(model) for model in models])
        return Cell(ONE_SHOT, epsilon, DELTA, times, mean, deviation, epsilon)

    tried = {
        setting: measured(setting, RUNS_TO_CHOOSE) for setting in sufficient_statistics.settings()
    }
    best = min(tried, key=lambda setting: tried[setting].mean.brier)
    return measured(best, runs)


def judge_of(
    hospitals: Mapping[str, heart.Hospital],
) -> Callable[[sufficient_statistics.Weights], Figures]:
    """Figures of a model on the held-out rows."""
    from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score

    features, labels, _ = heart.test_matrix(hospitals)

    def judge(weights: sufficient_statistics.Weights) -> Figures:
        guess: NDArray[np.float64] = predict(weights, features)
        return Figures(
            float(accuracy_score(labels, guess > 0.5)),
            float(roc_auc_score(labels, guess)),
            float(brier_score_loss(labels, guess)),
        )

    return judge


def measure_training(folder: Path, runs: int) -> Iterator[Cell]:
    """Without noise, and each epsilon at both deltas."""
    hospitals = heart.hospitals()
    for delta, budgets in ((DELTA, (None, *EPSILONS)), (DELTA_SMALL, EPSILONS)):
        trials = Trials(folder / f"{delta:g}", hospitals, delta)
        for epsilon in budgets:
            yield trials.cell(epsilon, 1 if epsilon is None else runs)
        trials.close()


def measure_one_shot(folder: Path, runs: int) -> Iterator[Cell]:
    """The rival at each epsilon, on the records as the nodes read them."""
    hospitals = heart.hospitals()
    features = [Feature.model_validate(feature) for feature in heart.FEATURES]
    records = {}
    for name, one in hospitals.items():
        write_hospital(folder / name, one)
        [data_set] = load_data_sets(folder / name)
        records[name] = read_records(data_set, features)
    judge = judge_of(hospitals)
    for epsilon in EPSILONS:
        yield one_shot_cell(records, judge, epsilon, runs)


def faults_of(cells: Sequence[Cell]) -> list[str]:
    """What does not hold, a line each."""
    found = [f"below its bar: {row(cell)}" for cell in cells if not cell.held]
    accuracy = {
        (cell.epsilon, cell.delta): cell.mean.accuracy for cell in cells if cell.strategy == DP_SGD
    }
    for epsilon in EPSILONS:
        lost = accuracy[epsilon, DELTA] - accuracy[epsilon, DELTA_SMALL]
        if lost > ACCURACY_LOST_MAX:
            found.append(f"epsilon {epsilon:g}: delta {DELTA_SMALL:g} costs {lost:.4f} of accuracy")
    return found


HEADINGS: Final = (
    "strategy",
    "epsilon",
    "delta",
    "runs",
    "accuracy",
    "AUC",
    "Brier",
    "bar",
    "held",
)


def row(cell: Cell) -> str:
    """A cell as a line of the table."""
    bar = cell.bar
    texts = [
        cell.strategy,
        "none" if cell.epsilon is None else f"{cell.epsilon:g}",
        "" if cell.epsilon is None else f"{cell.delta:g}",
        str(cell.runs),
        f"{cell.mean.accuracy:.3f} ± {cell.deviation.accuracy:.3f}",
        f"{cell.mean.auc:.3f} ± {cell.deviation.auc:.3f}",
        f"{cell.mean.brier:.3f} ± {cell.deviation.brier:.3f}",
        "" if bar is None else f"{bar.accuracy:.3f} {bar.auc:.3f} {bar.brier or '-'}",
        "" if bar is None else "yes" if cell.held else "NO",
    ]
    return "| " + " | ".join(texts) + " |"


def table(cells: Sequence[Cell]) -> str:
    """All cells in Markdown."""
    head = "| " + " | ".join(HEADINGS) + " |\n" + "| " + " | ".join("---" for _ in HEADINGS) + " |"
    return "\n".join([head, *(row(cell) for cell in cells)])


def read(path: Path) -> list[Cell]:
    """What `main` wrote."""
    cells = []
    for one in json.loads(path.read_text()):
        del one["held"]
        one["mean"], one["deviation"] = Figures(**one["mean"]), Figures(**one["deviation"])
        one["bar"] = Bar(**one["bar"]) if one["bar"] else None
        cells.append(Cell(**one))
    return cells


def write_document(results: Path) -> None:
    """Put the table of earlier results into the documentation."""
    measured = datetime.fromtimestamp(results.stat().st_mtime, UTC)
    text = f"Measured {measured:%Y-%m-%d}.\n\n{table(read(results))}"
    page = document.replaced(DOCUMENT.read_text(encoding="utf-8"), "models", text)
    DOCUMENT.write_text(page, encoding="utf-8")


def main() -> int:
    """Measure; 1 when a bar is not held."""
    parser = argparse.ArgumentParser(prog="make bench-models", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="jobs at each epsilon")
    parser.add_argument(
        "--only", choices=sorted(STRATEGIES), help="measure this; the others' last results stay"
    )
    parser.add_argument("--out", type=Path, default=Path("build/models.json"))
    parser.add_argument(
        "--document",
        action="store_true",
        help=f"measure nothing; write the table of the last results into {DOCUMENT}",
    )
    options = parser.parse_args()
    if options.document:
        write_document(options.out)
        return 0
    give_way()
    # Sums as small as these gain nothing from a second thread, and wait for it on a busy machine.
    torch.set_num_threads(1)
    # A line for each file that a worker reads would bury the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    began_s = time.monotonic()
    only = STRATEGIES.get(options.only)
    cells = [one for one in read(options.out) if one.strategy != only] if only else []
    with tempfile.TemporaryDirectory(prefix="feddp-models-") as name:
        folder = Path(name)
        for strategy, found in (
            (DP_SGD, measure_training(folder, options.runs)),
            (ONE_SHOT, measure_one_shot(folder, options.runs)),
        ):
            for cell in found if only in (None, strategy) else ():
                print(row(cell), flush=True)
                cells.append(cell)
    cells.sort(key=lambda cell: cell.strategy)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(cell), "held": cell.held} for cell in cells]
    options.out.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"written to {options.out} after {time.monotonic() - began_s:.0f} s")
    faults = faults_of(cells)
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
