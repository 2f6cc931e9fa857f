"""Signed jobs from the engineer's key to the hospitals' ledgers, with real processes."""

import os
import stat
from pathlib import Path

import pytest
import yaml

from protos.feddp.v1 import jobs_pb2
from tests.integration.federation import (
    Federation,
    cli_json,
    job_file,
    null_job,
    run_cli,
    wait_for,
)
from tests.integration.raw_node import reason_of

THREE = ("alpha", "beta", "gamma")


@pytest.fixture
def three(coordinator: Federation) -> Federation:
    """A coordinator and three agents."""
    for name in THREE:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*THREE)
    return coordinator


def change(federation: Federation, name: str, **keys: object) -> None:
    """Write keys into a node's policy."""
    path = federation.agent(name) / "policy.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))


def waits(federation: Federation, job_id: str, node: str, reason: str) -> str:
    """What the job says of a node that it waits for."""

    def said() -> str:
        found = [one for one in federation.job(job_id).waiting if one.node == node]
        return next((one.message for one in found if one.reason == reason), "")

    wait_for(f"{job_id} waits for {node}: {reason}", lambda: bool(said()))
    return said()


def test_a_key_is_made_once_its_owners_alone_and_signs(three: Federation, tmp_path: Path) -> None:
    """`job key new` never writes over a key; a signed job completes and says until when."""
    folder = str(three.installation.folder)
    key = three.installation.profile / "orders.key"
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    assert run_cli("job", "key", "new", "--dir", folder)[0] != 0
    public = cli_json("job", "key", "show", "--dir", folder)["public_key"]
    assert (three.installation.profile / "orders.pub").read_text().strip() == public
    file = tmp_path / "job.yaml"
    file.write_bytes(job_file(privacy={"target_epsilon": None, "noise_multiplier": 20.0}))
    code, out, err = run_cli("job", "submit", str(file), "--dir", folder, "--valid", "1", "--watch")
    assert code == 0, out + err
    assert "signed until" in out
    (job,) = cli_json("job", "list", "--dir", folder)["jobs"]
    assert (job["signed_by"], job["status"]) == (public, "completed")


def test_a_job_for_some_nodes_is_worked_at_by_these_alone(
    three: Federation, tmp_path: Path
) -> None:
    """The others are not even ordered; fewer than a round needs are refused at once."""
    three.add_node("delta")
    three.start("delta")
    three.wait_for_nodes("delta")
    folder = str(three.installation.folder)
    file = tmp_path / "job.yaml"
    file.write_bytes(null_job(rounds=1))
    words = ("job", "submit", str(file), "--dir", folder)
    code, _, err = run_cli(*words, "--nodes", "alpha,beta")
    assert (code, "signed for 2 nodes" in err) == (2, True), err
    code, _, err = run_cli(*words, "--nodes", "alpha,nobody")
    assert (code, "nobody publishes no data set" in err) == (3, True), err
    job_id = cli_json(*words, "--nodes", "alpha,beta,delta")["job_id"]
    job = three.wait_for_end(job_id)
    assert job.status == "completed"
    assert {one.node for one in job.rounds[0].participation if one.outcome == "update"} == {
        "alpha",
        "beta",
        "delta",
    }
    left_out = [one.reason for one in job.rounds[0].participation if one.node == "gamma"]
    assert left_out == ["MANDATE_OTHER_NODES"]


def test_a_first_job_waits_until_the_steward_lets_it_in(three: Federation) -> None:
    """Both sides say so; nothing is charged meanwhile; then it goes on by itself."""
    change(three, "alpha", work={"approve_first_job": True})
    job_id = three.submit(null_job(rounds=1))
    assert "feddp agent approve" in waits(three, job_id, "alpha", "APPROVAL_NEEDED")
    place = ("--dir", str(three.agent("alpha")))
    listed = cli_json("agent", "approve", "--list", *place)["jobs"]
    assert [(one["job_id"], one["approved_at_s"]) for one in listed] == [(job_id, 0)]
    assert cli_json("agent", "status", *place)["ledger"]["entries"] == 0
    cli_json("agent", "approve", job_id, *place)
    assert three.wait_for_end(job_id).status == "completed"


def test_a_first_job_that_is_refused_is_asked_for_again_once_it_is_let_in(
    three: Federation,
) -> None:
    """The engineer sees who has refused it; another that is cancelled waits for nobody."""
    change(three, "alpha", work={"approve_first_job": True})
    place = ("--dir", str(three.agent("alpha")))

    def waiting() -> list[str]:
        listed = cli_json("agent", "approve", "--list", *place)["jobs"]
        return [one["job_id"] for one in listed if one["state"] == "waits"]

    gone = three.submit(null_job(rounds=1))
    wait_for("it waits", lambda: waiting() == [gone])
    assert len(cli_json("agent", "status", *place)["waiting"]) == 1
    assert run_cli("job", "cancel", gone, "--dir", str(three.installation.folder))[0] == 0
    wait_for("it waits no more", lambda: waiting() == [])
    assert run_cli("agent", "approve", gone, *place)[0] == 3
    job_id = three.submit(null_job(rounds=1))
    waits(three, job_id, "alpha", "APPROVAL_NEEDED")
    (asked,) = cli_json("agent", "approve", "--reject", job_id, *place)["jobs"]
    assert (asked["state"], asked["signed_by"], asked["mechanism"]) == (
        *("refused", three.engineer["name"], "no_data"),
    )
    assert "has looked at this job and refused it" in waits(
        three, job_id, "alpha", "APPROVAL_REFUSED"
    )
    cli_json("agent", "approve", job_id, *place)
    assert three.wait_for_end(job_id).status == "completed"


def test_a_key_that_is_pinned_later_lets_the_job_go_on(three: Federation) -> None:
    """Until then it waits for the hospital, whose steward is named as who can help."""
    change(three, "alpha", who_may_ask={"engineers": []})
    job_id = three.submit(null_job(rounds=1))
    assert "data steward can" in waits(three, job_id, "alpha", "ENGINEER_UNKNOWN")
    change(three, "alpha", who_may_ask={"engineers": [three.engineer]})
    assert three.wait_for_end(job_id).status == "completed"


def test_a_failed_job_goes_on_once_its_engineer_has_signed_it_anew(three: Federation) -> None:
    """Without the key the resumption is refused, as every node would refuse its orders; with it the
    job completes."""
    blobs = three.installation.folder / "blobs"
    for name in THREE:
        three.kill(name)
    before = set(blobs.iterdir())
    job_id = three.submit(null_job(rounds=2))
    (initial,) = [path for path in blobs.iterdir() if path.is_file() and path not in before]
    kept = initial.read_bytes()
    initial.unlink()
    for name in THREE:
        three.start(name)
    assert three.wait_for_end(job_id).status == "failed"
    initial.write_bytes(kept)
    folder, key = str(three.installation.folder), three.installation.profile / "orders.key"
    key.rename(key.with_suffix(".away"))
    code, _, err = run_cli("job", "resume", job_id, "--dir", folder)
    assert (code, "was signed" in err) == (3, True), err
    request = jobs_pb2.ResumeJobRequest(job_id=job_id, request_id="without")
    with three.client() as client, reason_of() as reasons:
        client._jobs.ResumeJob(request, timeout=10)
    assert reasons == ["MANDATE_MISSING"]
    key.with_suffix(".away").rename(key)
    assert run_cli("job", "resume", job_id, "--dir", folder)[0] == 0
    assert three.wait_for_end(job_id).status == "completed"
