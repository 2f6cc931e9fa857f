"""A model on public rows, on this machine: no row is uploaded and no budget is spent."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.errors import Malformed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from node_agent.tasks.tabular_config import Feature


def evaluate(
    model: Path, task_config: dict[str, Any], data: Path, label: str
) -> dict[str, int | float | None]:
    """Figures of a tabular classifier on a CSV file.

    Args:
        model: its safetensors file.
        task_config: of the job that trained it.
        label: the column that holds 0 or 1.

    Returns:
        "rows", "rows_left_out" (those that lack a value), "accuracy", "auc" (None where only one
        class is there) and "brier".

    Raises:
        Malformed: TASK_CONFIG_INVALID, PUBLIC_ROWS_INVALID.
    """
    import numpy as np
    from safetensors.numpy import load_file

    from node_agent.tasks.registry import TABULAR, parse_config
    from node_agent.tasks.tabular_config import TabularConfig
    from node_agent.tasks.tabular_forward import predict

    config = parse_config(TABULAR, task_config, None)
    if not isinstance(config, TabularConfig):
        raise TypeError(TABULAR)
    features, labels, left_out = read(data, label, config.features)
    probabilities = predict(load_file(model), features)
    return {
        "rows": len(labels),
        "rows_left_out": left_out,
        "accuracy": float(np.mean((probabilities > 0.5) == (labels > 0.5))),
        "auc": auc(probabilities, labels),
        "brier": float(np.mean((probabilities - labels) ** 2)),
    }


def auc(probabilities: "NDArray[np.float64]", labels: "NDArray[np.float64]") -> float | None:
    """The share of pairs of an ill and a healthy row that are in the right order, ties by half."""
    import numpy as np

    ill, healthy = np.sort(probabilities[labels > 0.5]), probabilities[labels <= 0.5]
    if not len(ill) or not len(healthy):
        return None
    above = len(ill) - np.searchsorted(ill, healthy, side="right")
    equal = len(ill) - np.searchsorted(ill, healthy, side="left") - above
    return float((above + equal / 2).sum() / (len(ill) * len(healthy)))


def read(
    data: Path, label: str, features: "Sequence[Feature]"
) -> "tuple[NDArray[np.float32], NDArray[np.float64], int]":
    """(rows, F) features scaled as the nodes scale theirs, (rows,) labels, and how many rows were
    left out because they lack a value.

    Raises:
        Malformed: PUBLIC_ROWS_INVALID, with the place of the first fault.
    """
    import numpy as np

    from node_agent.data.records import feature_matrix
    from node_agent.sources.source import MISSING

    wanted = {feature.column: feature.category is not None for feature in features}
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    labels: list[float] = []
    left_out = 0
    try:
        with data.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            for name in (label, *wanted):
                if name not in (rows.fieldnames or ()):
                    raise _invalid(f"{data} has no column {name!r}")
            for number, row in enumerate(rows, start=1):
                cells = {name: (row[name] or "").strip() for name in (label, *wanted)}
                if any(cell in MISSING for cell in cells.values()):
                    left_out += 1
                    continue
                where = f"row {number} of {data}"
                labels.append(_number(cells[label], f"column {label!r}, {where}"))
                if labels[-1] not in (0.0, 1.0):
                    raise _invalid(f"column {label!r}, {where}, is a label other than 0 and 1")
                for name, is_text in wanted.items():
                    cell, place = cells[name], f"column {name!r}, {where}"
                    columns[name].append(cell if is_text else _number(cell, place))
    except OSError as error:
        raise _invalid(f"{data} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise _invalid(f"{data} is not a CSV file in UTF-8") from None
    if not labels:
        raise _invalid(f"{data} has no row with every used column")
    arrays = {name: np.array(cells, dtype=object) for name, cells in columns.items()}
    return feature_matrix(features, arrays), np.array(labels), left_out


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _invalid(f"{where}, is not a number")
    return value


def _invalid(what: str) -> Malformed:
    return Malformed("PUBLIC_ROWS_INVALID", what)
