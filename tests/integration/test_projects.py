"""Two projects at one coordinator: whose jobs, models and shares of a data set are whose."""

import json
from pathlib import Path

import grpc
import pytest
import yaml

from certs.credentials import channel_credentials
from feddp.client import Client
from feddp.joining import join
from feddp.profile import Profile
from feddp.signing import make_key
from privacy.calibration import units_for
from protos.errors import FeddpError
from protos.feddp.v1 import transfer_pb2, transfer_pb2_grpc
from protos.status import from_rpc
from tests.integration.federation import Federation, cli_json, job_file, run_cli

THREE = ("alpha", "beta", "gamma")
ROUNDS_OF_SHARE = 1.5
"""What each project's share of the account is worth, in rounds of two steps."""

NOISE = (2 * ROUNDS_OF_SHARE * 10**12 / units_for("gdp", 0, 1.0, 1e-5)) ** 0.5


def engineer(federation: Federation, name: str, project: str) -> Path:
    """Somebody of a project, with a key that signs; their profile."""
    folder = str(federation.installation.folder)
    words = ("--role", "engineer", "--project", project, "--dir", folder)
    made = cli_json("user", "invite", name, *words)
    profile = federation.folder / f"profile-of-{name}"
    assert join(made["token"], profile).project == project
    make_key(profile)
    return profile


def spec(project: str) -> bytes:
    privacy = {"target_epsilon": None, "noise_multiplier": NOISE}
    return job_file(
        name=f"of-{project}", project=project, federation={"rounds": 2}, privacy=privacy
    )


def bytes_of(federation: Federation, profile: Path, digest: str) -> str:
    """The reason for which the model of a digest is refused to whoever knows it; empty for none."""
    mine = Profile.load(profile)
    credentials = channel_credentials(mine.bundle, mine.key, mine.chain)
    with grpc.secure_channel(federation.address, credentials) as channel:
        stub = transfer_pb2_grpc.TransferStub(channel)
        try:
            list(stub.Download(transfer_pb2.DownloadRequest(digest=digest), timeout=20))
        except grpc.RpcError as error:
            return from_rpc(error).reason
    return ""


@pytest.fixture
def two_projects(coordinator: Federation) -> dict[str, Path]:
    """Project -> its engineer's profile, with three hospitals that let both in."""
    profiles = {
        "heart": engineer(coordinator, "ana", "heart"),
        "lung": engineer(coordinator, "ben", "lung"),
    }
    pinned = []
    for profile in profiles.values():
        shown = run_cli("job", "key", "show", "--profile", str(profile))[1]
        pinned += yaml.safe_load(shown)["who_may_ask"]["engineers"]
    assert [one["projects"] for one in pinned] == [["heart"], ["lung"]]
    for name in THREE:
        coordinator.add_node(name, epsilon_per_project={"heart": 1.0, "lung": 1.0})
        path = coordinator.agent(name) / "policy.yaml"
        policy = {**yaml.safe_load(path.read_text()), "who_may_ask": {"engineers": pinned}}
        path.write_text(yaml.safe_dump(policy))
        coordinator.start(name)
    coordinator.wait_for_nodes(*THREE)
    return profiles


def test_a_project_spends_its_own_share_and_sees_its_own_jobs(
    coordinator: Federation, two_projects: dict[str, Path], tmp_path: Path
) -> None:
    """One project's share pays one round of its job and leaves the other's whole; an engineer finds
    neither job nor model of the other project, an operator both."""
    jobs: dict[str, str] = {}
    for project, profile in two_projects.items():
        file = tmp_path / f"{project}.yaml"
        file.write_bytes(spec(project))
        code, out, _ = run_cli("job", "quote", str(file), "--profile", str(profile), "--json")
        quoted = json.loads(out)
        assert (code, quoted["rounds_possible"]) == (4, 1)
        assert {one["tightest"] for one in quoted["nodes"]} == {f"project {project}"}
        submitted = cli_json("job", "submit", str(file), "--profile", str(profile))
        jobs[project] = submitted["job_id"]
        done = coordinator.wait_for_end(jobs[project])
        assert (done.status, done.rounds_done) == ("budget_exhausted", 1), done.message

    shown = cli_json("budget", "show", "--dir", str(coordinator.installation.folder))
    for account in shown["accounts"]:
        used = {one["name"]: one["used_units"] for one in account["shares"]}
        assert used == pytest.approx({"heart": 2e12 / NOISE**2, "lung": 2e12 / NOISE**2})
    projects = {e.statement.job_id: e.statement.project for e in coordinator.entries()}
    assert projects == {jobs["heart"]: "heart", jobs["lung"]: "lung"}

    with coordinator.client() as operator:
        assert {job.job_id for job in operator.jobs()} == set(jobs.values())
        models = {job_id: operator.models(job_id)[-1].digest for job_id in jobs.values()}
    for project, profile in two_projects.items():
        (other,) = set(jobs) - {project}
        with Client(Profile.load(profile)) as client:
            assert [job.job_id for job in client.jobs()] == [jobs[project]]
            assert {one.project for one in client.models()} == {project}
            client.download(models[jobs[project]], tmp_path / f"{project}.safetensors")
            for call in (client.job, client.cancel):
                with pytest.raises(FeddpError) as error:
                    call(jobs[other])
                assert error.value.reason == "JOB_UNKNOWN"
            with pytest.raises(FeddpError) as error:
                client.download(models[jobs[other]], tmp_path / "no.safetensors")
            assert error.value.reason == "MODEL_UNKNOWN"
        assert bytes_of(coordinator, profile, models[jobs[project]]) == ""
        assert bytes_of(coordinator, profile, models[jobs[other]]) == "NOT_ALLOWED"


def test_an_engineer_submits_for_their_own_project_alone(
    coordinator: Federation, two_projects: dict[str, Path], tmp_path: Path
) -> None:
    """The sentence says what to write; nothing is submitted. A name that cannot be a project's is
    refused when somebody is invited to it."""
    file = tmp_path / "job.yaml"
    file.write_bytes(spec("lung"))
    code, _, err = run_cli("job", "submit", str(file), "--profile", str(two_projects["heart"]))
    assert code == 3
    assert "write `project: heart` in the job's file" in err
    folder = str(coordinator.installation.folder)
    assert cli_json("job", "list", "--dir", folder)["jobs"] == []
    words = ("user", "invite", "eve", "--role", "engineer", "--dir", folder, "--json")
    code, _, err = run_cli(*words, "--project", "no project")
    assert (code, json.loads(err)["error"]["reason"]) == (2, "PROJECT_INVALID")
    listed = {
        one["name"]: one["project"] for one in cli_json("user", "list", "--dir", folder)["users"]
    }
    assert listed == {"ana": "heart", "ben": "lung", "operator": "default"}
