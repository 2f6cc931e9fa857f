"""A wrong value of any key of the steward's two files and of agent.yaml: a sentence, an example."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from node_agent.data.datasets import DataSetSpec, load_data_sets
from node_agent.folder.config import AgentConfig, Folder, load_config
from node_agent.policy.policy import Policy, load_policy
from protos.errors import FeddpError

INTERNALS = re.compile(
    r"pattern|Input should|literal\[|Field required|valid (list|dictionary|string|integer)|"
    r"instance of|discriminator|Value error|tagged-union|\[key\]|\^|\$|type=|ctx",
    re.IGNORECASE,
)

WRONG: list[Any] = [None, "", " ! ", "x" * 5000, -1, 3.5, 1e9, True, [], [[1]], ["!"], {"!": "!"}]

HASH = "7" * 64
POLICY: dict[str, Any] = {
    "accounts": [
        {
            "name": "patients",
            "epsilon_limit": 10.0,
            "delta": 1.0e-5,
            "epsilon_per_job_max": 5.0,
            "noise_multiplier_min": 0.3,
            "epsilon_per_purpose": {"training": 4.0},
            "epsilon_per_project": {"default": 4.0},
        }
    ],
    "stewards": [{"name": "anna", "public_key": HASH}],
    "allow": [{"data_set": "heart", "tasks": [f"tabular-classifier@{HASH}"]}],
    "transfer": {"hours": ["20:00-06:00"]},
    "who_may_ask": {"engineers": [{"name": "bert", "public_key": HASH, "projects": ["default"]}]},
    "work": {"hours": ["20:00-06:00"]},
    "withdrawn": ["heart"],
    "disjoint_data_sets": {"patients": ["heart"]},
}
DATA_SET: dict[str, Any] = {
    "name": "heart",
    "source": "query.sql",
    "database": {"url": "sqlite:////srv/omop.db"},
    "patient": "patient_id",
    "label": "disease",
    "declared_n": 200,
    "version": 1,
    "columns": {"age": "number", "sex": {"category": ["female", "male"]}},
    "consent": {"column": "agreed", "values": ["yes"]},
}
AGENT: dict[str, Any] = {
    "coordinator": "feddp.example:8443",
    "trust_domain": "hospitals.example",
    "node": "alpha",
    "node_class": "edge",
    "worker": {},
    "alerts": {
        "syslog": {},
        "mail": {"server": "mail.example:587", "sender": "a@b.example", "to": ["a@b.example"]},
        "file": {"path": "/run/a.json"},
    },
    "proxy": {},
    "launcher": {
        "kind": "kubernetes",
        "namespace": "feddp",
        "image": "registry.example/feddp:1",
        "folder_claim": "folder",
        "data_claims": {"records": "/srv/records"},
    },
}
SLURM = {**AGENT, "launcher": {"kind": "slurm"}}
FILES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "policy.yaml": (Policy, POLICY),
    "datasets.yaml": (DataSetSpec, DATA_SET),
    "agent.yaml": (AgentConfig, AGENT),
    "agent.yaml slurm": (AgentConfig, SLURM),
}


def load(folder: Path, file: str, content: Any) -> None:
    """By the agent's own reader."""
    name = file.partition(" ")[0]
    value = {"data_sets": [content]} if name == "datasets.yaml" else content
    (folder / name).write_text(yaml.safe_dump(value))
    readers: dict[str, Callable[[], object]] = {
        "policy.yaml": lambda: load_policy(folder / name),
        "datasets.yaml": lambda: load_data_sets(folder),
        "agent.yaml": lambda: load_config(Folder(folder)),
    }
    readers[name]()


def refusal(folder: Path, file: str, content: Any) -> str:
    """What the reader says; empty where it takes the content."""
    try:
        load(folder, file, content)
    except FeddpError as error:
        return error.message
    return ""


Loc = tuple[str | int, ...]


def places(model: type[BaseModel], value: Any, loc: Loc = ()) -> Iterator[tuple[Loc, Any]]:
    """Every key that there is, also those that the content leaves out, with its field."""
    for name, field in model.model_fields.items():
        yield (*loc, name), field
        yield from _within(field.annotation, (value or {}).get(name), (*loc, name))


def _within(annotation: Any, value: Any, loc: Loc) -> Iterator[tuple[Loc, Any]]:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(value, dict) and value.get("kind", "local") in _kinds(annotation):
            yield from places(annotation, value, loc)
    elif get_origin(annotation) is list and value:
        yield (*loc, 0), None
        yield from _within(get_args(annotation)[0], value[0], (*loc, 0))
    elif get_origin(annotation) is dict and value:
        for key in value:
            yield (*loc, key), None
            yield from _within(get_args(annotation)[1], value[key], (*loc, key))
    elif (
        annotation is not Literal and get_args(annotation) and get_origin(annotation) is not Literal
    ):
        for one in get_args(annotation):
            yield from _within(one, value, loc)


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind is not None else ("local",)


def put(content: dict[str, Any], loc: Loc, value: Any) -> dict[str, Any]:
    """The content with one value changed."""
    made = copy.deepcopy(content)
    at: Any = made
    for step in loc[:-1]:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    at[loc[-1]] = value
    return made


CASES = [
    (file, loc) for file, (model, content) in FILES.items() for loc, _ in places(model, content)
]


def test_the_contents_are_in_order_and_every_key_is_gone_through(tmp_path: Path) -> None:
    """So that what is refused below is refused for the value alone."""
    for file, (_, content) in FILES.items():
        assert refusal(tmp_path, file, content) == ""
    found = {(file.partition(" ")[0], loc[-1]) for file, loc in CASES}
    for key in ("delta", "public_key", "hours", "megabits_per_second_max", "disjoint_signature"):
        assert ("policy.yaml", key) in found
    for key in ("category", "password_env", "read_s", "values", "opt_out"):
        assert ("datasets.yaml", key) in found
    for key in ("partition", "image", "address", "sender", "credentials_env", "nice", "path"):
        assert ("agent.yaml", key) in found
    assert len(CASES) > 120


@pytest.mark.parametrize(
    ("file", "loc"), CASES, ids=[f"{f}:{'.'.join(map(str, x))}" for f, x in CASES]
)
def test_a_wrong_value_is_told_in_a_sentence_with_an_example(
    tmp_path: Path, file: str, loc: Loc
) -> None:
    """Whatever stands there: the key, what belongs there, and how it is written."""
    content = FILES[file][1]
    told = [text for value in WRONG if (text := refusal(tmp_path, file, put(content, loc, value)))]
    assert told, "at least one of the values is wrong for any key"
    for text in told:
        said = text.partition("; it says ")[0]
        assert not INTERNALS.search(said), text
        assert all(len(one) < 600 for one in re.split(r"\(\d+\) ", said)), text
        assert str(next(x for x in reversed(loc) if isinstance(x, str))) in said, text


@pytest.mark.parametrize(
    ("file", "loc"), CASES, ids=[f"{f}:{'.'.join(map(str, x))}" for f, x in CASES]
)
def test_a_value_of_the_wrong_kind_comes_with_an_example_that_is_taken(
    tmp_path: Path, file: str, loc: Loc
) -> None:
    """What the message shows can be pasted in the place of the field: nothing is wrong with it by
    itself, though it may not go with what else this file says."""
    content = FILES[file][1]
    said = refusal(tmp_path, file, put(content, loc, [[1]]))
    found = re.search(r"for instance `(.+?)`", said)
    assert found, said
    ((name, value),) = yaml.safe_load(found[1]).items()
    last = max(number for number, step in enumerate(loc) if step == name)
    after = refusal(tmp_path, file, put(content, loc[: last + 1], value))
    assert "for instance" not in after, (said, after)


@pytest.mark.parametrize("file", FILES)
def test_a_key_that_is_missing_is_told_with_an_example(tmp_path: Path, file: str) -> None:
    """Not that a field is required."""
    model, content = FILES[file]
    for loc, field in places(model, content):
        if field is None or not field.is_required():
            continue
        made = copy.deepcopy(content)
        at: Any = made
        for step in loc[:-1]:
            at = at[step]
        del at[loc[-1]]
        said = refusal(tmp_path, file, made)
        assert "is missing" in said
        assert re.search(rf"for instance `.*{loc[-1]}: ", said), said
        assert not INTERNALS.search(said), said


@pytest.mark.parametrize(
    ("file", "loc", "value", "said"),
    [
        ("policy.yaml", ("work", "hours"), "25:00-26:00", "`hours: ['20:00-06:00']`"),
        ("policy.yaml", ("work", "hours"), {"monday": "x"}, "must be a list"),
        ("policy.yaml", ("accounts", 0, "epsilon_per_purpose"), {"trainig": 1.0}, "mean training?"),
        ("policy.yaml", ("accounts", 0, "epsilon_per_purpose"), {"trainig": 1.0}, "queries"),
        ("agent.yaml", ("alerts", "syslog", "address"), "collector", "collector.example:514"),
        ("agent.yaml", ("alerts", "mail", "server"), "mail", "`server: mail.example:587`"),
        ("agent.yaml", ("launcher",), {"kind": "slrum"}, "did you mean slurm?"),
        ("agent.yaml", ("launcher",), {"partition": "gpu"}, "kind is missing"),
        ("datasets.yaml", ("columns", "age"), 3, "columns.age"),
    ],
)
def test_what_was_told_badly_is_told_well(
    tmp_path: Path, file: str, loc: Loc, value: Any, said: str
) -> None:
    """As it was met."""
    text = refusal(tmp_path, file, put(FILES[file][1], loc, value))
    assert said in text
    assert not INTERNALS.search(text), text


@pytest.mark.parametrize("text", ["data_sets: 3", "data_sets: [3]", "data_sets:", "x: 1", "{}"])
def test_the_frame_of_datasets_yaml_is_told_alike(tmp_path: Path, text: str) -> None:
    """Around the data sets themselves."""
    (tmp_path / "datasets.yaml").write_text(text)
    with pytest.raises(FeddpError) as caught:
        load_data_sets(tmp_path)
    said = caught.value.message
    assert "data_sets" in said
    assert "for instance `data_sets: [{name: heart" in said or "no such key" in said
    assert not INTERNALS.search(said), said
