"""What people do to a federation: each act is a scenario that passes some of its points.

A scenario acts while one process may die at any moment of it, and gives the jobs that it began,
each with the status in which it must end.
"""

import contextlib
import itertools
import shutil
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import grpc
import yaml

from certs.authority import NODE_LIFETIME, Authority
from certs.enrolment import key_digest, new_key, private_pem
from certs.spiffe import SpiffeId
from coordinator.store import certificates
from coordinator.store.database import Database
from feddp.client import CALL_TIMEOUT_S, Client
from feddp.jobfile import facts_of
from feddp.signing import Caps, Work, load_key, mandate_for
from feddp.submission import publishers
from feddp.transfer import upload
from node_agent.joining.enrol import join
from node_agent.joining.identity import load_identity
from node_agent.tasks.registry import initial_model, installed
from protos.errors import FeddpError, WrongPhase
from protos.feddp.v1 import diagnosis_pb2, diagnosis_pb2_grpc, jobs_pb2
from tests.chaos.lives import RESUME_S_MAX, WatchedFederation
from tests.integration.federation import null_job, wait_for

NODES: Final = ("alpha", "beta", "gamma")
SPARE: Final = "spare"

Jobs = dict[str, str]
Scenario = Callable[[WatchedFederation], Jobs]

_sizes = itertools.count(1000)


def spec(rounds: int = 1, more: int = 0, **federation: object) -> bytes:
    """A job whose model, of `more` than 1000 parameters, nobody has uploaded before."""
    read = yaml.safe_load(null_job(rounds, next(_sizes) + more))
    read["federation"].update(federation)
    return yaml.safe_dump(read).encode()


def submit(federation: WatchedFederation, what: bytes) -> str:
    """Submit one job, once, however often the coordinator dies meanwhile."""
    read = yaml.safe_load(what)
    model = initial_model(read["task"], read["task_config"], 0)
    request = jobs_pb2.SubmitJobRequest(
        spec=what,
        task_hash=installed()[read["task"]].content_hash,
        request_id=uuid.uuid4().hex,
    )

    def call(client: Client) -> str:
        request.initial_model_digest = upload(client._transfer, model, client._connection.again)
        if not request.HasField("mandate"):
            key, nodes = load_key(client.profile.folder), publishers(client.nodes(), what)
            assert key is not None
            task_hash, digest = request.task_hash, request.initial_model_digest
            work = Work(what, facts_of(what), task_hash, digest, nodes)
            quote = partial(client._quote, what, task_hash, len(model))
            request.mandate.CopyFrom(mandate_for(key, work, Caps(), quote))
        answer = client._jobs.SubmitJob(request, timeout=CALL_TIMEOUT_S)
        return str(answer.job.job_id)

    first = federation.again(call)
    assert federation.again(call) == first, "the same request made a second job"
    return str(first)


def submit_once(federation: WatchedFederation, what: bytes) -> str:
    """As an engineer does it."""
    return str(federation.again(lambda client: client.submit(what).job_id))


def watch(federation: WatchedFederation, job_id: str) -> None:
    """Look at a job until it has ended. Each look is short, so that none can hold a test up."""
    request = jobs_pb2.WatchJobRequest(job_id=job_id)
    deadline_s = time.monotonic() + 6 * RESUME_S_MAX
    while time.monotonic() < deadline_s:
        with federation.client() as client, contextlib.suppress(grpc.RpcError):
            for answer in client._jobs.WatchJob(request, timeout=RESUME_S_MAX):
                if answer.job.ended_at:
                    return
        time.sleep(0.05)
    raise AssertionError(f"job {job_id} does not end")


def progress(federation: WatchedFederation, job_id: str) -> tuple[int, bool]:
    """(rounds that are durable, whether the job has ended), from the disk: no call is needed."""
    with federation.database() as database:
        (rounds,) = database.execute(
            "SELECT count(*) FROM models WHERE job_id = ? AND kind = 'round'", (job_id,)
        ).fetchone()
        (status,) = database.execute(
            "SELECT status FROM jobs WHERE job_id = ?", (job_id,)
        ).fetchone()
    return rounds, status != "running"


def rolling(federation: WatchedFederation) -> Jobs:
    """A long job, begun by an earlier call or by this one, goes on by two rounds."""
    job_id = federation.rolling_job = federation.rolling_job or submit_once(federation, spec(60))
    goal, ended = 2 + progress(federation, job_id)[0], False

    def moved_on() -> bool:
        nonlocal ended
        rounds, ended = progress(federation, job_id)
        return ended or rounds >= goal

    wait_for("two rounds more are done", moved_on, 2 * RESUME_S_MAX)
    if not ended:
        return {}
    federation.rolling_job = ""
    return {job_id: "completed"}


def alone(federation: WatchedFederation) -> Jobs:
    """The nodes are all there, and free: no long job has them."""
    federation.wait_for_nodes(*NODES)
    job_id, federation.rolling_job = federation.rolling_job, ""
    if not job_id or progress(federation, job_id)[1]:
        return {}

    def end(client: Client) -> str:
        with contextlib.suppress(WrongPhase):  # it has ended meanwhile
            client.cancel(job_id)
        return client.job(job_id).status

    status = federation.again(end)
    assert status in ("cancelled", "completed")
    return {job_id: status}


def plain(federation: WatchedFederation) -> Jobs:
    """An engineer submits a job, watches it and fetches the model."""
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    out = federation.folder / "model.safetensors"
    federation.again(lambda client: client.download(job_id, out, force=True))
    return {job_id: "completed"}


def bulk(federation: WatchedFederation) -> Jobs:
    """A job whose model is too large for one message."""
    job_id = submit_once(federation, spec(2, more=500_000))
    watch(federation, job_id)
    return {job_id: "completed"}


def followed(federation: WatchedFederation) -> Jobs:
    """The nodes follow the ledger after a job, and countersign where it stands."""

    def signed() -> int:
        with federation.database() as database:
            (count,) = database.execute("SELECT count(*) FROM countersignatures").fetchone()
        return int(count)

    ended, before = alone(federation), signed()
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    wait_for("three heads more are countersigned", lambda: signed() >= before + 3, 20)
    return {**ended, job_id: "completed"}


def office(federation: WatchedFederation) -> Jobs:
    """People look at everything."""
    ask = federation.again
    jobs = ask(lambda client: client.jobs())
    job_id = next(job.job_id for job in jobs if job.status == "completed")
    ask(lambda client: client.job(job_id))
    watch(federation, job_id)
    ask(lambda client: client.nodes())
    ask(lambda client: client.node(NODES[0]))
    ask(lambda client: client.accounts())
    ask(lambda client: client.ledger())
    ask(lambda client: client.checkpoints())
    ask(lambda client: client.quote(spec()))
    ask(lambda client: client.models())
    ask(lambda client: client.model(job_id))
    return {}


def stopped(federation: WatchedFederation) -> Jobs:
    """The operator stops all work for a moment; a job that was begun waits, and then goes on."""
    ask = federation.again
    ask(lambda client: client.pause_all("a look"))
    pause = ask(lambda client: client.pause())
    assert (pause.by, pause.reason) == ("operator", "a look")
    ask(lambda client: client.resume_all())
    assert ask(lambda client: client.pause()) is None
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    return {job_id: "completed"}


def enrolment(federation: WatchedFederation) -> Jobs:
    """A node joins, is disabled and enabled again."""
    folder = federation.agent(f"{SPARE}-{uuid.uuid4().hex[:6]}")
    token = federation.again(lambda client: client.create_token(folder.name, "edge", 3600)).token
    deadline_s = time.monotonic() + RESUME_S_MAX
    while True:
        try:
            join(token, folder)
            break
        except FeddpError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
    for change in (Client.disable, Client.enable):
        federation.again(lambda client, change=change: change(client, folder.name))
    shutil.rmtree(folder)
    return {}


def echo(federation: WatchedFederation) -> Jobs:
    """A hospital's doctor asks what the way is like; what is cut off is asked again."""
    identity = load_identity(federation.agent(NODES[0]) / "identity")

    def call(_: Client) -> None:
        with grpc.secure_channel(federation.address, identity.credentials()) as channel:
            probe = diagnosis_pb2_grpc.DiagnosisStub(channel).Probe
            asked = [diagnosis_pb2.ProbeRequest(answer_bytes=100)]
            (answer,) = probe(iter(asked), timeout=CALL_TIMEOUT_S)
        assert len(answer.data) == 100

    federation.again(call)
    return {}


def renewal(federation: WatchedFederation) -> Jobs:
    """A node's certificate is due: it gets another, moves its session there, and works on."""
    ended, name = alone(federation), NODES[0]
    federation.send_away(name)
    old = _aged(federation, name)
    federation.start(name)

    def superseded() -> bool:
        with federation.database() as database:
            found = "SELECT superseded FROM certificates WHERE fingerprint = ?"
            return bool(database.execute(found, (old,)).fetchone()[0])

    wait_for("a newer certificate is in use", superseded, 2 * RESUME_S_MAX)
    federation.wait_for_nodes(*NODES)
    job_id = submit_once(federation, spec())
    watch(federation, job_id)
    return {**ended, job_id: "completed"}


def _aged(federation: WatchedFederation, name: str) -> str:
    """Give a node that is away a certificate of 160 hours ago; its fingerprint."""
    root, folder = federation.installation.folder, federation.agent(name) / "identity"
    authority, key = Authority.load(root / "pki"), new_key()
    identity = SpiffeId(authority.trust_domain, "node", name)
    long_ago = datetime.now(UTC) - timedelta(hours=160)
    issued = authority.issue(key.public_key(), identity, now=long_ago, lifetime=NODE_LIFETIME)
    database = Database(f"sqlite:///{root / 'coordinator.db'}")
    try:
        database.write_now(
            lambda connection: certificates.add(connection, issued, key_digest(key.public_key()))
        )
    finally:
        database.close()
    for change in (Client.disable, Client.enable):  # after which the coordinator knows it
        federation.again(lambda client, change=change: change(client, name))
    (folder / "node.key").write_bytes(private_pem(key))
    (folder / "node.crt").write_bytes(issued.chain_pem)
    (folder / "next.key").unlink(missing_ok=True)
    return issued.fingerprint


def restart(federation: WatchedFederation) -> Jobs:
    """The coordinator dies while its nodes train."""
    federation.arm("coordinator", "coordinator.rounds.events:BudgetsReserved:journal:after")
    job_id = submit_once(federation, spec(2))
    watch(federation, job_id)
    return {job_id: "completed"}


def again(federation: WatchedFederation) -> Jobs:
    """The same request comes twice."""
    return {submit(federation, spec()): "completed"}


def cancel(federation: WatchedFederation) -> Jobs:
    """An engineer changes their mind."""
    job_id = submit_once(federation, spec(50))
    federation.again(lambda client: client.cancel(job_id))
    return {job_id: "cancelled"}
