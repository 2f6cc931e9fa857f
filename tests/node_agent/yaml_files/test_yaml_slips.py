"""What a steward's or IT's file says otherwise than it was meant, and what no reader ends with."""

from pathlib import Path

import pytest
import yaml

from node_agent.folder.config import FILE_BYTES_MAX, Folder, read_yaml
from node_agent.policy.policy import load_policy
from node_agent.policy.steward import Steward, checked_rules
from protos.errors import Malformed
from tests.node_agent.samples import DATA_SET, POLICY, write_rules

DEEP = f"a: {'[' * 3000}{']' * 3000}\n"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)


def told(path: Path, text: str) -> str:
    """What is said of a file."""
    path.write_text(text)
    with pytest.raises(Malformed) as caught:
        read_yaml(path, "POLICY_INVALID")
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "line 1 nests deeper than 32 levels"),
        ("b: 1\n" + "".join("  " * one + "a:\n" for one in range(40)), "nests deeper"),
        ("withdrawn: &x [*x]\n", "line 1 refers to itself"),
        ("a: 1\nx: &a {<<: *a}\n", "line 2 refers to itself"),
        ("? &k [*k]\n: 1\n", "refers to itself"),
        (BOMB, "holds more than 20000 values"),
        ('a: 1\nsource: "data/tr\\0ain.csv"\n', "line 2 holds a character"),
        ('source: "\\ud800.csv"\n', "line 1 holds a character"),
        ("a: 1\nsince: 2026-02-30\n", "line 2 gives 2026-02-30, which is no date that there is"),
        (f"a: 1\nb: {'9' * 5000}\n", "line 2 gives 9999"),
        ("a: !!int abc\n", "line 1 gives abc, which is no number"),
        ("a: !!bool abc\n", "line 1 gives abc, which is no truth value"),
    ],
)
def test_what_cannot_be_read_to_an_end_is_a_fault_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    """As any other fault of a file is: none of it may end an agent."""
    assert said in told(tmp_path / "policy.yaml", text)


@pytest.mark.parametrize("text", [DEEP, "withdrawn: &x [*x]\n", "x: &a {<<: *a}\n", BOMB])
def test_the_rules_of_before_stay_in_force_beside_such_a_file(tmp_path: Path, text: str) -> None:
    """While an agent runs; and `policy check` says what is wrong."""
    write_rules(tmp_path)
    steward = Steward(Folder(tmp_path))
    before = steward.rules()
    (tmp_path / "policy.yaml").write_text(text)
    assert steward.rules() == before
    assert "policy.yaml line" in steward.fault
    with pytest.raises(Malformed):
        checked_rules(Folder(tmp_path))


def test_a_source_that_no_file_can_be_called_is_a_fault_of_its_file(tmp_path: Path) -> None:
    """Before anything asks the system for it."""
    write_rules(tmp_path)
    steward = Steward(Folder(tmp_path))
    steward.rules()
    (tmp_path / "datasets.yaml").write_text(
        yaml.safe_dump({"data_sets": [{**DATA_SET, "source": "data/tr\0ain.csv"}]})
    )
    steward.rules()
    assert "datasets.yaml line" in steward.fault


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("1:5", "gives 1:5, which YAML reads as 65: write a number in plain digits, as 1.5"),
        ("-1:5", "as -1.5"),
        ("1:30.5", "gives 1:30.5, which YAML reads as 90.5"),
        ("1:59", "which YAML reads as 119"),
        ("010", "which YAML reads as 8"),
        ("0x1F", "which YAML reads as 31"),
        ("0b11", "which YAML reads as 3"),
        ("1_0", "which YAML reads as 10"),
        ("1_0.5", "which YAML reads as 10.5"),
        ("!!int '1:5'", "which YAML reads as 65"),
    ],
)
def test_a_number_that_yaml_reads_as_another_is_refused(
    tmp_path: Path, written: str, said: str
) -> None:
    """A limit on privacy is what is written, or it is not in force."""
    text = yaml.safe_dump(POLICY).replace("epsilon_limit: 10.0", f"epsilon_limit: {written}")
    path = tmp_path / "policy.yaml"
    message = told(path, text)
    assert said in message
    assert f"line {text[: text.index(written)].count(chr(10)) + 1} " in message


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *(("10", 10), ("-3", -3), ("0", 0), ("1.5", 1.5), ("0.5", 0.5), ("1.0e-5", 1.0e-5)),
        *(("1.", 1.0), (".5", 0.5), ("1.0E+3", 1000.0), ("00.5", 0.5), (".inf", float("inf"))),
        *(("'1:5'", "1:5"), ("'010'", "010"), ("22:00-06:00", "22:00-06:00")),
    ],
)
def test_plain_numbers_and_texts_are_read_as_they_stand(
    tmp_path: Path, written: str, value: object
) -> None:
    """What means the same to its reader and to YAML is let in."""
    path = tmp_path / "policy.yaml"
    path.write_text(f"a: {written}\n")
    assert read_yaml(path, "POLICY_INVALID") == {"a": value}


def test_a_value_may_be_named_once_and_used_again(tmp_path: Path) -> None:
    """A reference that comes to an end is no slip."""
    path = tmp_path / "policy.yaml"
    path.write_text("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n")
    assert read_yaml(path, "R")["c"] == {"x": [1, 2], "y": 3}


def test_a_number_of_many_digits_is_a_fault_of_its_key(tmp_path: Path) -> None:
    """One that Python reads and no float holds."""
    path = tmp_path / "policy.yaml"
    text = yaml.safe_dump(POLICY).replace("epsilon_limit: 10.0", f"epsilon_limit: {'9' * 4000}")
    path.write_text(text)
    assert len(text) < FILE_BYTES_MAX
    with pytest.raises(Malformed):
        load_policy(path)
