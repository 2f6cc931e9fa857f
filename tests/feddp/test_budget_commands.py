"""`feddp budget` over rpc, over a database and over an exported file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Run
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_coordinator import Coordinator, wire

from privacy import ledger
from privacy.filters import make_filter
from protos.feddp.v1.budgets_pb2 import BudgetAccount


def statement(kind: ledger.Kind, attempt: str) -> ledger.Statement:
    """One full-batch release of five steps."""
    return ledger.Statement(
        kind=kind,
        attempt_id=attempt,
        project="default",
        node="a",
        account="a/patients",
        dataset="heart-disease",
        job_id="j1",
        round=1,
        unit="patient",
        declared_n=199,
        mechanism="gaussian",
        noise_multiplier=20.0,
        sample_rate=1.0,
        steps=5,
    )


def chain(key: Ed25519PrivateKey) -> list[ledger.Entry]:
    """A posted attempt and a void one, all signed."""
    entries: list[ledger.Entry] = []
    for kind, attempt in (("reserve", "t1"), ("post", "t1"), ("reserve", "t2"), ("void", "t2")):
        one = statement(kind, attempt)  # type: ignore[arg-type]
        entries.append(ledger.append(one, entries[-1] if entries else None, ledger.sign(key, one)))
    return entries


@pytest.fixture
def booked(coordinator: Coordinator) -> Coordinator:
    """A coordinator with one account of four entries."""
    key = Ed25519PrivateKey.generate()
    budget = make_filter("gdp", 0, 2.0, 1e-5)
    coordinator.state.entries = chain(key)
    used = budget.cost_units(statement("post", "t1").release)
    coordinator.state.accounts = [
        BudgetAccount(
            account="a/patients",
            node="a",
            data_sets=["heart-disease"],
            filter="gdp",
            epsilon_limit=2.0,
            epsilon_limit_highest=2.0,
            delta=1e-5,
            epsilon_spent=0.40001,
            posted_units=used,
            limit_units=budget.limit_units,
            guarantee=True,
            entries=4,
            head_hash=coordinator.state.entries[-1].hash,
            ledger_public_key=key.public_key().public_bytes_raw(),
        )
    ]
    return coordinator


def test_show_labels_the_running_figure_and_names_the_guarantee(
    booked: Coordinator, run: Run
) -> None:
    """The limit at delta is the guarantee."""
    ran = run("budget", "show", "--profile", booked.profile)
    assert ran.code == 0
    assert "RUNNING EPSILON" in ran.out
    assert "The limit at delta is the guarantee" in ran.out
    account = run("budget", "show", "--json", "--profile", booked.profile).json["accounts"][0]
    assert (account["account"], account["epsilon_limit"]) == ("a/patients", 2.0)


def test_an_account_without_guarantee_says_so(booked: Coordinator, run: Run) -> None:
    """Visibly, and with no epsilon at all."""
    booked.state.accounts[0].guarantee = False
    booked.state.accounts[0].ClearField("epsilon_spent")
    assert "NO GUARANTEE" in run("budget", "show", "--profile", booked.profile).out
    account = run("budget", "show", "--json", "--profile", booked.profile).json["accounts"][0]
    assert account["epsilon_spent"] is None


def test_the_ledger_is_printed_flat_with_its_parameters(booked: Coordinator, run: Run) -> None:
    """Exactly the fields that the ledger's format fixes, so that anyone can recompute epsilon."""
    found = run("budget", "ledger", "--json", "--profile", booked.profile).json
    assert found["entries"] == [ledger.to_json(entry) for entry in booked.state.entries]
    assert found["accounts"][0]["account"] == "a/patients"
    assert "gaussian" in run("budget", "ledger", "--profile", booked.profile).out


def test_a_right_ledger_verifies(booked: Coordinator, run: Run) -> None:
    """And says what was checked."""
    ran = run("budget", "verify", "--profile", booked.profile)
    assert ran.code == 0
    assert "the ledger verifies" in ran.out
    assert "hash chain" in ran.out
    found = run("budget", "verify", "--json", "--profile", booked.profile).json
    assert (found["verified"], found["entries"], found["problems"]) == (True, 4, [])


def test_an_export_verifies_without_a_coordinator(
    booked: Coordinator, run: Run, tmp_path: Path
) -> None:
    """`verify FILE` needs nothing but the file."""
    exported = run("budget", "ledger", "--json", "--profile", booked.profile).out
    (tmp_path / "ledger.json").write_text(exported)
    assert run("budget", "verify", "ledger.json").code == 0


def _tampered(content: Any, how: str) -> None:
    if how == "noise":
        content["entries"][1]["noise_multiplier"] = 40.0
    elif how == "cut short":
        del content["entries"][2:]
    elif how == "hole":
        del content["entries"][1]
    elif how == "signature":
        content["entries"][1]["node_signature"] = content["entries"][0]["node_signature"]
    elif how == "limit":
        content["accounts"][0]["epsilon_limit_highest"] = 0.01
    elif how == "head":
        content["accounts"][0]["head_hash"] = "0" * 64
    elif how in ("kind", "steps", "signature case"):
        key, value = {
            "kind": ("kind", "foo"),
            "steps": ("steps", "abc"),
            "signature case": ("node_signature", content["entries"][1]["node_signature"].upper()),
        }[how]
        content["entries"][1][key] = value
    elif how == "no head":
        del content["accounts"][0]["head_hash"]
    elif how == "units":
        content["accounts"][0]["posted_units"] = 1
    elif how == "guarantee":
        content["accounts"][0]["guarantee"] = False
    elif how == "twice":
        content["accounts"].append(dict(content["accounts"][0]))
    elif how == "stranger":
        content["accounts"] = []


@pytest.mark.parametrize(
    ("how", "seq"),
    [
        ("noise", 2),
        ("cut short", 3),
        ("hole", 2),
        ("signature", 2),
        ("limit", 1),
        ("head", 4),
        ("stranger", 1),
        ("kind", 2),
        ("steps", 2),
        ("signature case", 2),
        ("no head", 0),
        ("units", 4),
        ("guarantee", 4),
        ("twice", 0),
    ],
)
def test_a_tampered_ledger_does_not_verify(
    booked: Coordinator, run: Run, tmp_path: Path, how: str, seq: int
) -> None:
    """Exit code 1, and the first bad entry by its number."""
    content = run("budget", "ledger", "--json", "--profile", booked.profile).json
    _tampered(content, how)
    (tmp_path / "ledger.json").write_text(json.dumps(content))
    ran = run("budget", "verify", "ledger.json", "--json")
    assert ran.code == 1
    assert ran.json["verified"] is False
    assert ran.json["problems"][0]["seq"] == seq
    assert f"entry {seq}" in run("budget", "verify", "ledger.json").out


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"entries": [3], "accounts": []}', '{"entries": 1, "accounts": []}']
)
def test_a_file_that_is_no_export_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    """Usage error, not a crash."""
    (tmp_path / "ledger.json").write_text(text)
    assert run("budget", "verify", "ledger.json").code == 2
    assert run("budget", "verify", "absent.json").code == 2


def test_an_unsigned_post_is_counted_and_no_fault(booked: Coordinator, run: Run) -> None:
    """A charge needs no proof."""
    entries = booked.state.entries
    entries[1] = replace(entries[1], node_signature=b"")
    assert wire(entries[1]).node_signature == b""
    found = run("budget", "verify", "--json", "--profile", booked.profile).json
    assert (found["verified"], found["unattested"]) == (True, 1)


def test_an_installations_ledger_is_read_while_its_server_is_stopped(
    run: Run, tmp_path: Path
) -> None:
    """With --dir the database itself is read, so no server is needed."""
    folder = tmp_path / "installation"
    assert run("coordinator", "init", "--dir", folder, "--json").code == 0
    for command, name in (("show", "accounts"), ("ledger", "entries")):
        assert run("budget", command, "--json", "--dir", folder).json[name] == []
    # An empty ledger proves nothing: that is no success.
    assert run("budget", "verify", "--dir", folder).code == 3
    assert run("budget", "show", "--dataset", "none", "--dir", folder).code == 3
