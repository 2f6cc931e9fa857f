"""The whole drill: a backup, a disk that is lost, a restore, hospitals that were ahead."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.enrolment import spoken
from feddp.signing import KEY_FILE, PUBLIC_FILE, Caps
from node_agent.joining.identity import load_identity
from tests.integration.federation import Federation, cli_json, job_file, run_cli, wait_for

ROOT = Path(__file__).resolve().parents[2]

THREE = ("alpha", "beta", "gamma")
LONG_LIFE_S, SHORT_LIFE_S = 86_400, 60


def issues_for(federation: Federation, life_s: int) -> None:
    """Restart the coordinator, which issues certificates of that life from then on."""
    settings = yaml.safe_load(federation.installation.config.read_text())
    settings["security"] = {"node_certificate_life_s": life_s}
    federation.installation.config.write_text(yaml.safe_dump(settings))
    if federation.is_running("coordinator"):
        federation.terminate("coordinator")
    federation.start("coordinator")


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[Federation]:
    """Three, one of which, alpha, has joined a moment ago and renews its certificate soon; a job of
    the two others has been."""
    federation = Federation(tmp_path)
    federation.configure(min_participants=2)
    try:
        issues_for(federation, LONG_LIFE_S)
        for name in THREE[1:]:
            federation.add_node(name)
            federation.start(name)
        federation.wait_for_nodes(*THREE[1:])
        assert federation.wait_for_end(federation.submit(job(1, 2))).status == "completed"
        issues_for(federation, SHORT_LIFE_S)
        federation.add_node("alpha")
        issues_for(federation, LONG_LIFE_S)
        federation.start("alpha")
        federation.wait_for_nodes(*THREE)
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
    return {one: status(federation, one)["accounts"][0]["epsilon_spent"] for one in THREE}


def job(rounds: int, nodes: int = 3) -> bytes:
    """One that needs so many hospitals."""
    return job_file(federation={"rounds": rounds, "min_participants": nodes})


def test_a_lost_coordinator_comes_back_and_forgets_nothing(
    hospitals: Federation, tmp_path: Path
) -> None:
    """The drill of docs/operations.md: what was released after the backup is booked again, a
    certificate that was issued after it counts once a person has asked, a new job runs and the one
    that was under way goes on; nobody joins again."""
    folder, password = hospitals.installation.folder, tmp_path / "password"
    lost, backup = tmp_path / "lost", tmp_path / "backup"
    drill = Drill(
        DIR=folder, FILE=backup, PASSWORD=password, REVOCATIONS=lost / "revocations.jsonl"
    )
    password.write_text("a password of this drill\n")
    with hospitals.client() as client:
        token = client.create_token("delta", "edge", 3600).token
    # Its signature covers more than its rounds: those that are lost are charged as well.
    noisy = job_file(
        federation={"rounds": 3, "min_participants": 3},
        privacy={"target_epsilon": None, "noise_multiplier": 20.0},
    )
    with hospitals.client() as client:
        under_way = client.submit(noisy, caps=Caps(epsilon_max=8.0)).job_id
    wait_for("a round is published", lambda: hospitals.job(under_way).rounds_done > 0)
    sealed = ("--keys", "--password-file", str(password))
    cli_json("coordinator", "backup", "--dir", str(folder), "--out", str(backup), *sealed)
    before = fingerprint(hospitals, "alpha")

    # After the backup: the job ends, alpha has its next certificate, and somebody is revoked.
    assert hospitals.wait_for_end(under_way).status == "completed"
    wait_for("alpha has renewed", lambda: fingerprint(hospitals, "alpha") != before)
    hospitals.add_node("epsilon")
    assert run_cli("node", "revoke", "epsilon", "--dir", str(folder))[0] == 0
    wait_for("alpha is connected with it", lambda: status(hospitals, "alpha")["connected"])
    told = spent(hospitals)
    posts = sorted(one.statement.attempt_id for one in hospitals.entries("post"))

    # The machine is lost; what was shipped from it is left.
    hospitals.kill("coordinator")
    folder.rename(lost)
    done = drill.run("coordinator restore")
    assert (done["epoch"], done["revocations"], done["tokens_void"]) == (2, 1, 1)
    assert done["jobs_failed"] == [under_way]
    for key in (KEY_FILE, PUBLIC_FILE):  # the engineer's own; a backup has no profile
        shutil.copy2(lost / "operator" / key, folder / "operator" / key)
    hospitals.start("coordinator")

    def nodes() -> dict[str, Any]:
        return {one["name"]: one for one in drill.run("node list")["nodes"]}

    wait_for("alpha is quarantined", lambda: nodes()["alpha"]["status"] == "quarantined")
    assert {one for one in nodes() if nodes()[one]["status"] == "quarantined"} == {"alpha"}
    shown = spoken(status(hospitals, "alpha")["certificate_fingerprint"])
    assert shown in drill.run("node show", NAME="alpha")["quarantine"]
    wait_for("the others have handed in", lambda: not {"beta", "gamma"} & waiting(drill))
    assert waiting(drill) == {"alpha"}
    drill.run("node release", NAME="alpha")
    hospitals.wait_for_nodes(*THREE)
    wait_for("alpha has handed in", lambda: not waiting(drill))
    assert sorted(one.statement.attempt_id for one in hospitals.entries("post")) == posts
    assert spent(hospitals) == told

    # A token of before is void; work goes on when a person says so.
    joined = run_cli("agent", "join", token, "--dir", str(tmp_path / "delta"), "--yes")
    assert joined[0] != 0
    assert "expired" in joined[2]
    fresh = hospitals.submit(job(1))
    wait_for("it is paused", lambda: bool(hospitals.job(fresh).waiting))
    assert hospitals.job(fresh).ended_at == 0
    drill.run("coordinator resume")
    assert hospitals.wait_for_end(fresh).status == "completed"

    # The job that was under way goes on from where the backup has it, and is charged for it.
    assert hospitals.job(under_way).status == "failed"
    assert hospitals.job(under_way).message.startswith("RESTORED: ")
    told = spent(hospitals)
    drill.run("job resume", ID=under_way)
    assert hospitals.wait_for_end(under_way).status == "completed"
    assert all(after > told[name] for name, after in spent(hospitals).items())
    assert drill.run("budget verify")["verified"]


class Drill:
    """The commands of the page's drill, with its capital words filled in; run from there alone."""

    def __init__(self, **words: Path | str) -> None:
        self._words = {name: str(value) for name, value in words.items()}
        page = (ROOT / "docs/operations.md").read_text()
        section = page.partition("\n## Restore\n")[2].partition("\n## ")[0]
        blocks = [one.partition("```")[0] for one in section.split("```sh\n")[1:]]
        lines = [
            line.partition("  #")[0].split() for block in blocks for line in block.splitlines()
        ]
        self._lines = [line[1:] for line in lines if line[:1] == ["feddp"]]

    def run(self, begins: str, **words: str) -> Any:
        """What the first line of the page that begins so prints with --json; its exit code is 0."""
        known = {**self._words, **words}
        line = next(one for one in self._lines if one[:2] == begins.split())
        return cli_json(*(known.get(word, word) for word in line))


def waiting(drill: Drill) -> set[str]:
    """Nodes whose accounts are not handed in, as `feddp coordinator check` has it."""
    found = drill.run("coordinator check")["findings"]
    (text,) = [one["text"] for one in found if one["subject"] == "restored"]
    return {name for name in THREE if f"{name}/patients" in text}
