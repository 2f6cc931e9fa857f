"""The whole drill: a backup, a disk that is lost, a restore, hospitals that were ahead."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.enrolment import spoken
from feddp.signing import KEY_FILE, PUBLIC_FILE
from node_agent.identity import load_identity
from tests.integration.federation import Federation, cli_json, job_file, run_cli, wait_for

PAIR = ("alpha", "beta")
SHORT_LIFE_S = 30


def set_life(federation: Federation, life_s: int) -> None:
    """What the coordinator will issue once it starts."""
    settings = yaml.safe_load(federation.installation.config.read_text())
    settings["security"] = {"node_certificate_life_s": life_s}
    federation.installation.config.write_text(yaml.safe_dump(settings))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Federation]:
    """Two hospitals; alpha's first certificate comes to its end soon, all others in a day."""
    federation = Federation(tmp_path)
    federation.configure(min_participants=2)
    set_life(federation, SHORT_LIFE_S)
    try:
        federation.start("coordinator")
        federation.add_node("alpha")
        federation.terminate("coordinator")
        set_life(federation, 86_400)
        federation.start("coordinator")
        federation.add_node("beta")
        yield federation
    finally:
        federation.stop()


def fingerprint(federation: Federation, name: str) -> str:
    """Of the certificate that the node's folder holds now."""
    return load_identity(federation.agent(name) / "identity").fingerprint


def status(federation: Federation, name: str) -> Any:
    """`feddp agent status`, whatever its exit code."""
    return json.loads(run_cli("agent", "status", "--dir", str(federation.agent(name)), "--json")[1])


def spent(federation: Federation) -> dict[str, float]:
    """What each hospital's own ledger says that its account has spent."""
    return {one: status(federation, one)["accounts"][0]["epsilon_spent"] for one in PAIR}


def job(rounds: int) -> bytes:
    """One that needs both."""
    return job_file(federation={"rounds": rounds, "min_participants": 2})


def test_a_lost_coordinator_comes_back_and_forgets_nothing(
    pair: Federation, tmp_path: Path
) -> None:
    """What was released after the backup is booked again, a certificate that was issued after it
    counts once a person has asked, and a new job runs; nobody joins again."""
    folder, password = pair.installation.folder, tmp_path / "password"
    password.write_text("a password of this drill\n")
    for name in PAIR:
        pair.start(name)
    pair.wait_for_nodes(*PAIR)
    first = pair.submit(job(1))
    assert pair.wait_for_end(first).status == "completed"
    with pair.client() as client:
        token = client.create_token("gamma", "edge", 3600).token
    backup = tmp_path / "backup"
    sealed = ("--keys", "--password-file", str(password))
    cli_json("coordinator", "backup", "--dir", str(folder), "--out", str(backup), *sealed)
    before = fingerprint(pair, "alpha")

    # After the backup: a second job, alpha's next certificate, and somebody is revoked.
    second = pair.submit(job(2))
    assert pair.wait_for_end(second).status == "completed"
    wait_for("alpha has renewed", lambda: fingerprint(pair, "alpha") != before)
    pair.add_node("delta")
    assert run_cli("node", "revoke", "delta", "--dir", str(folder))[0] == 0
    wait_for("alpha is connected with it", lambda: status(pair, "alpha")["connected"])
    told = spent(pair)
    posts = sorted(one.statement.attempt_id for one in pair.entries("post"))

    # The machine is lost; what was shipped from it is left.
    pair.kill("coordinator")
    lost = tmp_path / "lost"
    folder.rename(lost)
    words = ("coordinator", "restore", str(backup), "--dir", str(folder))
    code, _, err = run_cli(*words, "--password-file", str(password))
    assert (code, "--without-revocations" in err) == (2, True)
    revocations = ("--revocations", str(lost / "revocations.jsonl"))
    done = cli_json(*words, "--password-file", str(password), *revocations)
    assert (done["epoch"], done["revocations"], done["tokens_void"]) == (2, 1, 1)
    for key in (KEY_FILE, PUBLIC_FILE):  # the engineer's own; a backup has no profile
        shutil.copy2(lost / "operator" / key, folder / "operator" / key)
    pair.start("coordinator")

    def nodes() -> dict[str, Any]:
        return {one["name"]: one for one in cli_json("node", "list", "--dir", str(folder))["nodes"]}

    wait_for("alpha is quarantined", lambda: nodes()["alpha"]["status"] == "quarantined")
    shown = spoken(status(pair, "alpha")["certificate_fingerprint"])
    assert shown in cli_json("node", "show", "alpha", "--dir", str(folder))["quarantine"]
    assert "delta" not in nodes()
    wait_for("beta has handed in", lambda: not waits(folder, "beta"))
    assert waits(folder, "alpha")
    assert run_cli("node", "release", "alpha", "--dir", str(folder))[0] == 0
    pair.wait_for_nodes(*PAIR)
    wait_for("alpha has handed in", lambda: not waits(folder, "alpha"))
    assert sorted(one.statement.attempt_id for one in pair.entries("post")) == posts
    assert spent(pair) == told

    # A token of before is void; work goes on when a person says so.
    joined = run_cli("agent", "join", token, "--dir", str(tmp_path / "gamma"), "--yes")
    assert joined[0] != 0
    assert "expired" in joined[2]
    third = pair.submit(job(1))
    wait_for("it is paused", lambda: bool(pair.job(third).waiting))
    assert pair.job(third).ended_at == 0
    assert run_cli("coordinator", "resume", "--dir", str(folder))[0] == 0
    assert pair.wait_for_end(third).status == "completed"
    verified = cli_json("budget", "verify", "--dir", str(folder))
    assert verified["verified"]


def waits(folder: Path, node: str) -> bool:
    """Whether `feddp coordinator check` says that an account of a node is not handed in."""
    _, out, _ = run_cli("coordinator", "check", "--dir", str(folder), "--json")
    (found,) = [one for one in json.loads(out)["findings"] if one["subject"] == "restored"]
    return f"{node}/patients" in found["text"]
