"""The Python client against a server with real mutual TLS."""

import contextlib
import re
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from fake_coordinator import Coordinator
from job_scripts import SPEC, job_in

from certs.authority import Authority
from feddp import transfer
from feddp.client import Client
from feddp.connection import _RETRIED
from feddp.profile import Profile
from node_agent.tasks.registry import initial_model, installed
from protos.content import digest_of
from protos.errors import Conflict, Malformed, NotFound, Unavailable
from protos.feddp.v1.models_pb2 import Model
from protos.feddp.v1.nodes_pb2 import Node

PROTOS = Path(__file__).resolve().parents[2] / "protos/feddp/v1"
SILENCE = "silence"
AWAY = Unavailable("DRAINING", "the coordinator restarts")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddp.connection._PAUSE_S_MIN", 0.0)
    monkeypatch.setattr("feddp.connection._PAUSE_S_MAX", 0.0)


def test_submit_uploads_the_initial_model_and_sends_the_file_as_it_is(
    coordinator: Coordinator, client: Client, tmp_path: Path
) -> None:
    """The spec arrives byte for byte, with the task's hash and a model that is there already."""
    (tmp_path / "job.yaml").write_bytes(SPEC)
    job = client.submit(tmp_path / "job.yaml", seed=3)
    (request,) = coordinator.state.requests
    features = [{"column": "age", "center": 55, "scale": 10}]
    config = {"model": "logistic", "learning_rate": 2.0, "features": features}
    model = initial_model("tabular-classifier", config, 3)
    assert job.job_id == "j1"
    assert request.spec == SPEC
    assert request.task_hash == installed()["tabular-classifier"].content_hash
    assert request.initial_model_digest == digest_of(model)
    assert coordinator.state.blobs[request.initial_model_digest] == model
    assert coordinator.state.calls[-1] == ("SubmitJob", "spiffe://hospitals.example/user/operator")


def test_a_lost_answer_to_submit_repeats_the_same_request_id(
    coordinator: Coordinator, client: Client
) -> None:
    """The request is sent again under its id, so that it stays one job."""
    seen: list[str] = []
    stub = client._jobs.SubmitJob

    class Lossy:
        def SubmitJob(self, request, timeout, metadata):  # noqa: N802
            answer = stub(request, timeout=timeout, metadata=metadata)
            seen.append(request.request_id)
            if len(seen) == 1:
                raise AWAY
            return answer

    client._jobs = Lossy()  # type: ignore[assignment]
    client.submit(SPEC)
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert 1 <= len(seen[0]) <= 64


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (b"{", "JOB_INVALID"),
        (b"- a list", "JOB_INVALID"),
        (b"task: [1]", "JOB_INVALID"),
        (b"task: tabular-classifier\ntask_config: 3", "JOB_INVALID"),
        (SPEC.replace(b"logistic", b"forest"), "TASK_CONFIG_INVALID"),
        (SPEC.replace(b"tabular-classifier", b"no-such-task"), "TASK_UNKNOWN"),
        (b"#" * (1 << 20) + b"\n", "JOB_INVALID"),
        (b"task: !!python/object/apply:os.getpid []", "JOB_INVALID"),
    ],
)
def test_a_bad_job_file_is_refused_before_anything_is_sent(
    coordinator: Coordinator, client: Client, spec: bytes, reason: str
) -> None:
    """A file that can never be right does not leave half a job behind."""
    with pytest.raises((Malformed, NotFound)) as refused:
        client.submit(spec)
    assert refused.value.reason == reason
    assert coordinator.state.calls == []


def test_an_upload_goes_on_at_the_byte_that_is_durable(
    coordinator: Coordinator, client: Client
) -> None:
    """Two broken calls and a slow receiver cost only the bytes that were not kept."""
    data = bytes(range(256)) * 70_000
    coordinator.state.accepted_per_upload = 7 << 20
    coordinator.state.faults["Upload"] = [AWAY, AWAY]
    digest = transfer.upload(client._transfer, data, client._connection.again)
    assert coordinator.state.blobs[digest] == data
    # Ranges of 1 and 4 MiB, then as much as the receiver takes.
    assert coordinator.state.called("Upload") == 2 + 4


def test_an_upload_that_is_there_already_sends_no_bytes(
    coordinator: Coordinator, client: Client
) -> None:
    """Blobs are named by their content."""
    coordinator.state.blobs[digest_of(b"model")] = b"model"
    transfer.upload(client._transfer, b"model", client._connection.again)
    assert coordinator.state.called("Upload") == 0


def test_an_upload_whose_bytes_are_all_there_unchecked_is_finished(
    coordinator: Coordinator, client: Client
) -> None:
    """A coordinator that died between the last byte and its check is asked to check now."""
    coordinator.state.partial[digest_of(b"model")] = b"model"
    digest = transfer.upload(client._transfer, b"model", client._connection.again)
    assert coordinator.state.blobs[digest] == b"model"


def test_an_upload_of_which_nothing_is_kept_ends(coordinator: Coordinator, client: Client) -> None:
    """A receiver that keeps nothing is reported, not asked for ever."""
    coordinator.state.accepted_per_upload = 0
    with pytest.raises(Malformed, match="took none"):
        transfer.upload(client._transfer, b"model", client._connection.again)


def test_watch_goes_on_after_the_coordinator_was_away(
    coordinator: Coordinator, client: Client
) -> None:
    """A restart in the middle is told once and does not end the watch."""
    coordinator.state.watches = [
        [job_in("running"), AWAY],
        [AWAY],
        [job_in("running", 1)],
        [job_in("completed", 2)],
    ]
    told: list[str] = []
    seen = [job.rounds_done for job in client.watch("j1", told.append)]
    assert seen == [0, 1, 2]
    assert len(told) == 1


def test_a_watch_that_hears_nothing_is_opened_again(
    coordinator: Coordinator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream may look open and be dead; the next one shows the job."""
    monkeypatch.setattr("feddp.client.WATCH_CALL_S", 0.5)
    coordinator.state.watches = [[job_in("running"), SILENCE], [job_in("completed", 2)]]
    assert [job.rounds_done for job in client.watch("j1")] == [0, 2]


def test_watch_of_a_job_that_is_unknown_is_an_error(
    coordinator: Coordinator, client: Client
) -> None:
    """Only an absent coordinator is waited for, not a wrong id."""
    coordinator.state.watches = [[NotFound("JOB_UNKNOWN", "there is no such job")]]
    with pytest.raises(NotFound):
        list(client.watch("j1"))


def test_watch_gives_up_when_the_coordinator_stays_away(
    coordinator: Coordinator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting has a bound."""
    monkeypatch.setattr("feddp.client.AWAY_S_MAX", 0.2)
    coordinator.state.watches = [[job_in("running"), AWAY]]
    with pytest.raises(Unavailable):
        list(client.watch("j1"))


def _blob(coordinator: Coordinator, data: bytes) -> str:
    digest = digest_of(data)
    coordinator.state.blobs[digest] = data
    coordinator.state.models.append(Model(digest=digest, job_id="j1", bytes=len(data)))
    return digest


def test_download_goes_on_at_the_byte_that_is_there(
    coordinator: Coordinator, client: Client, tmp_path: Path
) -> None:
    """What an interrupted download left is not fetched again."""
    data = bytes(range(251)) * 80_000
    digest = _blob(coordinator, data)
    out = tmp_path / "model.safetensors"
    (tmp_path / f".{out.name}.{digest[:16]}.partial").write_bytes(data[: 19 << 20])
    client.download("j1", out)
    assert out.read_bytes() == data
    assert coordinator.state.called("Download") == 1
    assert [path.name for path in tmp_path.glob(".*partial")] == []


def test_a_download_with_wrong_bytes_writes_nothing(
    coordinator: Coordinator, client: Client, tmp_path: Path
) -> None:
    """The digest is checked before the file gets its name."""
    digest = _blob(coordinator, b"right")
    coordinator.state.blobs[digest] = b"wrong"
    with pytest.raises(Malformed) as refused:
        client.download(digest, tmp_path / "m")
    assert refused.value.reason == "DIGEST_MISMATCH"
    assert not any(path.is_file() for path in tmp_path.glob("*m*"))


def test_a_download_never_overwrites_without_force(
    coordinator: Coordinator, client: Client, tmp_path: Path
) -> None:
    """A model that somebody has is theirs."""
    digest = _blob(coordinator, b"new")
    out = tmp_path / "m"
    out.write_bytes(b"old")
    with pytest.raises(Conflict):
        client.download(digest, out)
    assert out.read_bytes() == b"old"
    client.download(digest, out, force=True)
    assert out.read_bytes() == b"new"


def test_a_profile_of_another_authority_does_not_get_in(
    coordinator: Coordinator,
    write_profile: Callable[[Authority, int, str], Path],
    tmp_path: Path,
) -> None:
    """Neither end accepts the other, and the error names the profile."""
    stranger = Authority.create(tmp_path / "other-ca", "hospitals.example")
    folder = write_profile(stranger, coordinator.port, "stranger")
    with Client(Profile.load(folder)) as client, pytest.raises(Unavailable, match="stranger"):
        client.nodes()
    assert coordinator.state.calls == []


def test_what_may_be_sent_again_is_while_another_coordinator_takes_over(
    coordinator: Coordinator, client: Client
) -> None:
    """Also the commands of an incident. A join token is made once: the reply may have been lost."""
    faults = coordinator.state.faults
    faults |= {name: [AWAY, AWAY] for name in ("ListNodes", "DisableNode", "GetNode")}
    coordinator.state.nodes["a"] = Node(name="a")
    assert [node.name for node in client.nodes()] == ["a"]
    client.disable("a")
    client.node("a")
    assert [coordinator.state.called(name) for name in faults] == [3, 3, 3]
    faults["CreateToken"] = [AWAY, AWAY]
    with pytest.raises(Unavailable):
        client.create_token("b")
    assert coordinator.state.called("CreateToken") == 1


def test_each_call_that_makes_no_token_may_be_sent_again() -> None:
    """As the protos say of each; one that is new has to be thought about."""
    again, once = _RETRIED["methodConfig"]
    services = {name["service"].removeprefix("feddp.v1.") for name in again["name"]}
    assert services >= {"Nodes", "Users", "Operations"}
    excepted = {(n["service"].removeprefix("feddp.v1."), n["method"]) for n in once["name"]}
    for service in ("Nodes", "Users", "Operations"):
        said = (PROTOS / f"{service.lower()}.proto").read_text()
        for before, name in re.findall(r"((?:  //[^\n]*\n)+)  rpc (\w+)\(", said):
            safe = "Safe to retry" in " ".join(before.replace("//", "").split())
            assert safe == ((service, name) not in excepted), (service, name)


def test_a_coordinator_that_hangs_is_given_up_for_the_next(
    coordinator: Coordinator,
    write_profile: Callable[[Authority, int, str], Path],
    authority: Authority,
) -> None:
    """Its kernel takes the connection and nobody answers; a balancer leads the next elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hung: list[socket.socket] = []

        def serve() -> None:
            hung.append(listener.accept()[0])
            while True:
                try:
                    one, _ = listener.accept()
                except OSError:
                    return
                other = socket.create_connection(("127.0.0.1", coordinator.port))
                for source, target in ((one, other), (other, one)):
                    Thread(target=_pass, args=(source, target), daemon=True).start()

        Thread(target=serve, daemon=True).start()
        folder = write_profile(authority, listener.getsockname()[1], "other")
        with Client(Profile.load(folder)) as client:
            assert client.nodes() == []
        assert len(hung) == 1


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
