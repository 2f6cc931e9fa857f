"""Declarations of data sets: what loads, and what the steward is told when one does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.data.datasets import CategoryColumn, load_data_sets, schema_json
from node_agent.tasks.registry import parse_config
from protos.errors import Malformed

GOOD: dict[str, Any] = {
    "name": "heart-disease",
    "source": "data/train.csv",
    "patient": "patient_id",
    "label": "disease",
    "declared_n": 199,
    "version": 1,
    "columns": {"age": "number", "sex": {"category": ["Male", "Female"]}},
}


def write(folder: Path, *data_sets: object) -> Path:
    """A folder whose datasets.yaml declares `data_sets`."""
    (folder / "datasets.yaml").write_text(yaml.safe_dump({"data_sets": list(data_sets)}))
    return folder


def test_declaration_loads_without_the_data(tmp_path: Path) -> None:
    """A good declaration loads though its source does not exist; the source becomes absolute."""
    [spec] = load_data_sets(write(tmp_path, GOOD))
    assert spec.source == tmp_path / "data" / "train.csv"
    assert spec.account == "patients"
    assert spec.columns == {"age": "number", "sex": CategoryColumn(category=["Male", "Female"])}
    assert type(spec).model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("key", [key for key in GOOD if key != "columns"])
def test_a_key_that_is_missing_is_told_with_what_to_write(tmp_path: Path, key: str) -> None:
    """By the example that the file came with; the library's own words say nothing to do."""
    with pytest.raises(Malformed) as caught:
        load_data_sets(write(tmp_path, {name: GOOD[name] for name in GOOD if name != key}))
    said = caught.value.message
    assert f"key {key}: it is missing, for instance `{key}: " in said
    assert "required" not in said
    with pytest.raises(Malformed, match=r"key columns.sex.category: it is missing, for"):
        load_data_sets(write(tmp_path, {**GOOD, "columns": {"sex": {}}}))


def test_the_patient_column_is_explained_where_it_is_missing(tmp_path: Path) -> None:
    """It decides what is protected."""
    with pytest.raises(Malformed) as caught:
        load_data_sets(write(tmp_path, {name: GOOD[name] for name in GOOD if name != "patient"}))
    assert caught.value.message.endswith("`patient: patient_id`")


def test_absolute_source_stays(tmp_path: Path) -> None:
    """A source that is absolute is taken as it is."""
    [spec] = load_data_sets(write(tmp_path, {**GOOD, "source": "/srv/records.parquet"}))
    assert spec.source == Path("/srv/records.parquet")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"declared_n": 0}, "declared_n"),
        ({"declared_n": "199"}, "declared_n"),
        ({"declared_n": None}, "declared_n"),
        ({"version": 0}, "version"),
        ({"name": "../x"}, "name"),
        ({"source": "train.xlsx"}, "source"),
        ({"patient": "disease"}, "patient"),
        ({"patient": ["ward", "number"]}, "exactly one column names the patient"),
        ({"colour": 1}, "colour"),
        ({"optout": "x"}, "optout: there is no such key; did you mean opt_out?"),
        ({"declared_n": None, "declared_m": 9}, "declared_m: there is no such key; did you mean"),
        ({"columns": {}}, "columns"),
        ({"columns": {"age": "text"}}, "columns.age"),
        ({"columns": {"sex": {"category": []}}}, "columns.sex.category"),
        ({"columns": {"sex": {"category": ["a", "a"]}}}, "twice"),
        ({"columns": {"fbs": {"category": [True, False]}}}, "quote"),
        ({"columns": {"disease": {"category": ["0", "1"]}}}, "label"),
    ],
)
def test_wrong_declaration_is_named(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    """A fault is reported with its file, data set and key."""
    with pytest.raises(Malformed) as caught:
        load_data_sets(write(tmp_path, {**GOOD, **change}))
    assert caught.value.reason == "DATASETS_INVALID"
    assert str(tmp_path / "datasets.yaml") in caught.value.message
    assert str(change.get("name", "heart-disease")) in caught.value.message
    assert key in caught.value.message


@pytest.mark.parametrize(
    "kind", ["number", "text", "id", {"category": ["p1", "p2"]}, {"text": 1}, None, 3]
)
def test_a_type_for_the_patient_column_is_told_that_it_has_none(tmp_path: Path, kind: Any) -> None:
    """Not that the type is a wrong one: no other would do what the steward had in mind."""
    columns = {**GOOD["columns"], "patient_id": kind}
    with pytest.raises(Malformed, match="'patient_id' is the patient column") as caught:
        load_data_sets(write(tmp_path, {**GOOD, "columns": columns}))
    assert "take it out of columns" in caught.value.message
    assert "Input should be" not in caught.value.message


def test_a_feature_of_the_patient_column_is_not_said_to_be_undeclared(tmp_path: Path) -> None:
    """A refusal, which leaves the hospital, does not say which column names the patient."""
    [spec] = load_data_sets(write(tmp_path, GOOD))
    said = set()
    for name in ("patient_id", "disease", "nowhere"):
        feature = {"column": name, "center": 0, "scale": 1}
        config = {"model": "logistic", "features": [feature], "learning_rate": 1}
        with pytest.raises(
            Malformed, match="it is not declared, or it names the patient"
        ) as caught:
            parse_config("tabular-classifier", config, spec)
        said.add(caught.value.message.replace(repr(name), "NAME"))
    assert len(said) == 1


def test_missing_key_is_named(tmp_path: Path) -> None:
    """A declaration without a patient column does not load: nobody's budget would be right."""
    with pytest.raises(Malformed, match="key patient"):
        load_data_sets(write(tmp_path, {k: v for k, v in GOOD.items() if k != "patient"}))


def test_two_data_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    """Names are unique in a file."""
    with pytest.raises(Malformed, match="declares data set 'heart-disease' 2 times"):
        load_data_sets(write(tmp_path, GOOD, GOOD))


@pytest.mark.parametrize(
    "text", ["data_sets: [", "", "- 1", "data_sets: 3", "!!python/name:os.system"]
)
def test_file_that_is_no_declaration_is_refused(tmp_path: Path, text: str) -> None:
    """Broken YAML, a wrong shape and a YAML tag that would run code are all DATASETS_INVALID."""
    (tmp_path / "datasets.yaml").write_text(text)
    with pytest.raises(Malformed) as caught:
        load_data_sets(tmp_path)
    assert caught.value.reason == "DATASETS_INVALID"


def test_absent_file_is_refused(tmp_path: Path) -> None:
    """A folder without the file is named."""
    with pytest.raises(Malformed, match=r"datasets\.yaml is missing"):
        load_data_sets(tmp_path)


def test_published_schema_holds_columns_and_types_only(tmp_path: Path) -> None:
    """Neither path nor patient nor label column is in what the node publishes."""
    columns = {**GOOD["columns"], "disease": "number"}
    [spec] = load_data_sets(write(tmp_path, {**GOOD, "columns": columns}))
    assert json.loads(schema_json(spec)) == {"columns": GOOD["columns"]}


def test_idle_agent_modules_load_no_heavy_library() -> None:
    """Declarations, tasks, launchers and the worker's own start import no numeric library."""
    code = (
        "import sys, node_agent.data.datasets, node_agent.tasks.registry, node_agent.worker,"
        " node_agent.launchers.local as _;"
        " node_agent.tasks.registry.installed();"
        " node_agent.tasks.registry.initial_model('null', {'parameters': 3}, 0);"
        " print([m for m in ('numpy', 'torch', 'pyarrow', 'pandas', 'sqlalchemy',"
        " 'dp_accounting', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
