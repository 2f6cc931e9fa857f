"""A synchronous client of a coordinator, for notebooks and the command line.

from feddp.client import Client
from feddp.jobfile import read_spec, task_of
from feddp.profile import Profile

with Client(Profile.load(Path("installation/operator"))) as client:
    job = client.submit(Path("job.yaml"))
    for job in client.watch(job.job_id):
        print(job.status, job.rounds_done)
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from certs.credentials import channel_credentials
from feddp.evaluation import first_model
from feddp.jobfile import data_set_of, facts_of, read_spec, task_of
from feddp.profile import Profile
from feddp.signing import Caps, Work, load_key, mandate_for, mandate_to_resume
from feddp.transfer import download, upload
from protos.errors import Malformed, NotFound, Unavailable
from protos.feddp.v1 import budgets_pb2, jobs_pb2, models_pb2, nodes_pb2
from protos.feddp.v1.budgets_pb2 import BudgetAccount
from protos.feddp.v1.budgets_pb2_grpc import BudgetsStub
from protos.feddp.v1.jobs_pb2 import Job
from protos.feddp.v1.jobs_pb2_grpc import JobsStub
from protos.feddp.v1.ledger_pb2 import LedgerEntry
from protos.feddp.v1.models_pb2 import Model
from protos.feddp.v1.models_pb2_grpc import ModelsStub
from protos.feddp.v1.nodes_pb2 import CreateTokenResponse, Node
from protos.feddp.v1.nodes_pb2_grpc import NodesStub
from protos.feddp.v1.transfer_pb2_grpc import TransferStub
from protos.status import from_rpc

ENDED = frozenset({"converged", "completed", "budget_exhausted", "failed", "cancelled"})
"""Statuses in which a job does nothing more."""

CALL_TIMEOUT_S = 20.0
AWAY_S_MAX = 300.0
"""How long `watch` and transfers wait for a coordinator that was there before and is gone."""

WATCH_CALL_S = 12.0
"""How long one stream of a watch lasts before the next: a stream that is dead, though it looks
open, makes nobody wait longer, and a proxy's bound on a call (15 s in Envoy) is never met."""

_PAUSE_S_MIN = 0.2
_PAUSE_S_MAX = 5.0

_RETRIED = {
    "methodConfig": [
        {
            "name": [{"service": f"feddp.v1.{name}"} for name in ("Jobs", "Models", "Budgets")],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
"""Every call of these services may be sent again; making a join token may not."""

_OPTIONS = (
    ("grpc.service_config", json.dumps(_RETRIED)),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

_STREAM_ENDS = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)
"""How a watch ends that the coordinator or a proxy cut in good health."""

T = TypeVar("T")


class Client:
    """One person's connection to a coordinator; close it, or use it in a `with`.

    Every method raises what the coordinator answered, as a class of `protos.errors`, and
    Unavailable when it cannot be reached. Messages of the wire are returned as they are
    (`protos/feddp/v1`).
    """

    def __init__(self, profile: Profile) -> None:
        """Connect lazily.

        Raises:
            Malformed: CREDENTIALS_INVALID.
        """
        self.profile = profile
        credentials = channel_credentials(profile.bundle, profile.key, profile.chain)
        self._channel = grpc.secure_channel(profile.address, credentials, options=_OPTIONS)
        self._jobs = JobsStub(self._channel)
        self._nodes = NodesStub(self._channel)
        self._models = ModelsStub(self._channel)
        self._budgets = BudgetsStub(self._channel)
        self._transfer = TransferStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; what runs at the coordinator goes on."""
        self._channel.close()

    def submit(self, spec: Path | bytes, seed: int = 0, caps: Caps = Caps()) -> Job:  # noqa: B008
        """Check a job file here, upload its initial model, and start the job. The initial model of
        an evaluation is the one that it evaluates. A profile that has a key (`feddp job key new`)
        signs the job, for the nodes that publish its data set now unless `caps` names others.

        Args:
            spec: the file, or its bytes; the coordinator keeps them byte for byte.
            seed: fixes the initial weights only, never noise or sampling.
            caps: how far the signature goes.

        Raises:
            Malformed: JOB_INVALID, TASK_CONFIG_INVALID, MODEL_MISMATCH, EPSILON_MAX_MISSING.
            NotFound: FILE_MISSING, TASK_UNKNOWN, DATA_SET_UNKNOWN, MODEL_UNKNOWN.
        """
        data, task_hash, model = self._read(spec, seed)
        digest = upload(self._transfer, model, self._again)
        request = jobs_pb2.SubmitJobRequest(
            spec=data,
            task_hash=task_hash,
            initial_model_digest=digest,
            # Repeated if the reply is lost: it stays one job.
            request_id=uuid.uuid4().hex,
        )
        if key := load_key(self.profile.folder):
            work = Work(data, facts_of(data), task_hash, digest, self._publishers(data))
            signed = mandate_for(key, work, caps, lambda: self._quote(data, task_hash, len(model)))
            request.mandate.CopyFrom(signed)
        job: Job = self._again(lambda: self._jobs.SubmitJob(request, timeout=CALL_TIMEOUT_S)).job
        return job

    def quote(self, spec: Path | bytes) -> jobs_pb2.QuoteJobResponse:
        """What a job would cost each hospital; nothing is uploaded, and nothing changes.

        Raises:
            FeddpError: as `submit`.
        """
        data, task_hash, model = self._read(spec, seed=0)
        return self._quote(data, task_hash, len(model))

    def _publishers(self, spec: bytes) -> list[str]:
        """Nodes that publish the job's data set."""
        name = data_set_of(spec)
        return [
            node.name for node in self.nodes() if any(one.name == name for one in node.data_sets)
        ]

    def _quote(self, spec: bytes, task_hash: str, size: int) -> jobs_pb2.QuoteJobResponse:
        request = jobs_pb2.QuoteJobRequest(spec=spec, task_hash=task_hash, model_bytes=size)
        answer: jobs_pb2.QuoteJobResponse
        answer = self._again(lambda: self._jobs.QuoteJob(request, timeout=CALL_TIMEOUT_S))
        return answer

    def _read(self, spec: Path | bytes, seed: int) -> tuple[bytes, str, bytes]:
        """(the job file, its task's content hash, the model that it begins with), checked here."""
        from node_agent.tasks.registry import EVALUATION, initial_model, installed

        data = read_spec(spec)
        task, task_config = task_of(data)
        if task == EVALUATION:
            model = first_model(self, task_config)
        else:
            model = initial_model(task, task_config, seed)
        self._check_columns(data, task, task_config)
        return data, installed()[task].content_hash, model

    def _check_columns(self, spec: bytes, task: str, task_config: Mapping[str, Any]) -> None:
        """Refuse a task_config that fits none of the data sets as their nodes publish them."""
        from node_agent.datasets import published
        from node_agent.tasks.registry import parse_config

        name, faults, fits = data_set_of(spec), list[Malformed](), False
        for node in self.nodes():
            for one in node.data_sets:
                if one.name != name:
                    continue
                try:
                    parse_config(task, task_config, published(one.name, one.schema_json))
                    fits = True
                except Malformed as fault:
                    faults.append(fault)
                except ValueError:
                    fits = True  # it publishes no schema that we can read; the node decides
        if faults and not fits:
            raise faults[0]

    def jobs(self) -> list[Job]:
        """Every job that the caller may see, newest first, without its rounds."""
        with self._errors():
            answer = self._jobs.ListJobs(jobs_pb2.ListJobsRequest(), timeout=CALL_TIMEOUT_S)
        return list(answer.jobs)

    def job(self, job_id: str) -> Job:
        """One job with its rounds."""
        return self.job_and_spec(job_id)[0]

    def job_and_spec(self, job_id: str) -> tuple[Job, bytes]:
        """One job with its rounds, and the bytes that were submitted."""
        with self._errors():
            request = jobs_pb2.GetJobRequest(job_id=job_id)
            answer = self._jobs.GetJob(request, timeout=CALL_TIMEOUT_S)
        return answer.job, answer.spec

    def watch(self, job_id: str, on_away: Callable[[str], None] | None = None) -> Iterator[Job]:
        """The job now and after every change, until it has ended; the last one is the ended job.

        A coordinator that restarts in between is waited for, `AWAY_S_MAX` at most; `on_away` is
        told once each time the connection is lost. Nothing reached at the start is an error.
        """
        reached = False
        away_since: float | None = None
        pause_s = _PAUSE_S_MIN
        while True:
            fault: Unavailable | None = Unavailable("UNREACHABLE", self._unreached())
            try:
                for job in self._watch_once(job_id):
                    fault, reached, away_since, pause_s = None, True, None, _PAUSE_S_MIN
                    yield job
                    if job.status in ENDED:
                        return
            except Unavailable as error:
                fault = error
            now = time.monotonic()
            if fault is not None and away_since is None:
                away_since = now
                if reached and on_away is not None:
                    on_away(fault.message)
            if fault is not None and (not reached or now - (away_since or now) > AWAY_S_MAX):
                raise fault
            time.sleep(pause_s)
            pause_s = min(_PAUSE_S_MAX, pause_s * 2)

    def _watch_once(self, job_id: str) -> Iterator[Job]:
        with self._errors(_STREAM_ENDS):
            request = jobs_pb2.WatchJobRequest(job_id=job_id)
            stream = self._jobs.WatchJob(request, timeout=WATCH_CALL_S)
            for answer in stream:
                yield answer.job

    def cancel(self, job_id: str) -> Job:
        """End a job; what it spent stays booked."""
        with self._errors():
            request = jobs_pb2.CancelJobRequest(job_id=job_id)
            job: Job = self._jobs.CancelJob(request, timeout=CALL_TIMEOUT_S).job
        return job

    def resume(self, job_id: str) -> Job:
        """Take a failed job up again, from its last published model; what it spent stays booked.
        A signed job is signed anew, by whoever signed it.

        Raises:
            NotFound: JOB_UNKNOWN, KEY_MISSING.
            NotAllowed: MANDATE_OTHER_ENGINEER.
            WrongPhase: JOB_NOT_FAILED.
        """
        # Repeated if the reply is lost: it stays one request.
        request = jobs_pb2.ResumeJobRequest(job_id=job_id, request_id=uuid.uuid4().hex)
        with self._errors():
            asked = jobs_pb2.GetJobRequest(job_id=job_id)
            before = self._jobs.GetJob(asked, timeout=CALL_TIMEOUT_S)
        if before.HasField("mandate"):
            key = load_key(self.profile.folder)
            if key is None:
                raise NotFound(
                    "KEY_MISSING",
                    f"job {job_id} was signed, and {self.profile.folder} holds no key; whoever "
                    "signed it can resume it",
                )
            request.mandate.CopyFrom(mandate_to_resume(key, before.mandate, job_id))
        job: Job = self._again(lambda: self._jobs.ResumeJob(request, timeout=CALL_TIMEOUT_S)).job
        return job

    def create_token(
        self,
        node: str,
        node_class: str = "edge",
        ttl_s: int = 86400,
        *,
        approval: bool = False,
        rejoin: bool = False,
    ) -> CreateTokenResponse:
        """A join token for one node; an earlier unused one of that node is void from now on.

        Args:
            approval: whoever redeems it waits for `approve`.
            rejoin: the node has joined, and joins again.
        """
        request = nodes_pb2.CreateTokenRequest(
            node=node, node_class=node_class, ttl_s=ttl_s, approval=approval, rejoin=rejoin
        )
        with self._errors():
            answer: CreateTokenResponse = self._nodes.CreateToken(request, timeout=CALL_TIMEOUT_S)
        return answer

    def nodes(self) -> list[Node]:
        """Every node, by name."""
        with self._errors():
            answer = self._nodes.ListNodes(nodes_pb2.ListNodesRequest(), timeout=CALL_TIMEOUT_S)
        return list(answer.nodes)

    def node(self, name: str) -> Node:
        """One node."""
        with self._errors():
            request = nodes_pb2.GetNodeRequest(node=name)
            node: Node = self._nodes.GetNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def disable(self, name: str) -> Node:
        """Refuse a node from now on and cut its connections."""
        with self._errors():
            request = nodes_pb2.DisableNodeRequest(node=name)
            node: Node = self._nodes.DisableNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def enable(self, name: str) -> Node:
        """Admit a disabled node again."""
        with self._errors():
            request = nodes_pb2.EnableNodeRequest(node=name)
            node: Node = self._nodes.EnableNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def approve(self, name: str, key: str = "", steward: str = "") -> Node:
        """Let in the machine that waits to join as a node.

        Args:
            key: the beginning of its key's digest, as the hospital read it out.
            steward: who at the hospital confirmed it.
        """
        with self._errors():
            request = nodes_pb2.ApproveJoinRequest(node=name, key=key, steward=steward)
            node: Node = self._nodes.ApproveJoin(request, timeout=CALL_TIMEOUT_S).node
        return node

    def reject(self, name: str) -> Node:
        """Refuse the machine that waits to join as a node."""
        with self._errors():
            request = nodes_pb2.RejectJoinRequest(node=name)
            node: Node = self._nodes.RejectJoin(request, timeout=CALL_TIMEOUT_S).node
        return node

    def release(self, name: str) -> Node:
        """End a node's quarantine."""
        with self._errors():
            request = nodes_pb2.ReleaseNodeRequest(node=name)
            node: Node = self._nodes.ReleaseNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def revoke(self, name: str) -> Node:
        """Revoke every certificate of a node for good and cut its connections."""
        with self._errors():
            request = nodes_pb2.RevokeNodeRequest(node=name)
            node: Node = self._nodes.RevokeNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def models(self, job_id: str = "") -> list[Model]:
        """Every model, or those of one job."""
        with self._errors():
            request = models_pb2.ListModelsRequest(job_id=job_id)
            return list(self._models.ListModels(request, timeout=CALL_TIMEOUT_S).models)

    def model(self, model_id: str) -> Model:
        """One model by its digest, or the answer of the job with that id."""
        with self._errors():
            request = models_pb2.GetModelRequest(id=model_id)
            model: Model = self._models.GetModel(request, timeout=CALL_TIMEOUT_S).model
        return model

    def download(self, model_id: str, out: Path, *, force: bool = False) -> Model:
        """Write a model's safetensors to `out`: whole, checked, never over a file unless `force`.

        Raises:
            Conflict: FILE_EXISTS.
            Malformed: DIGEST_MISMATCH.
        """
        model = self.model(model_id)
        download(self._transfer, model.digest, model.bytes, out, self._again, force=force)
        return model

    def accounts(self, data_set: str = "") -> list[BudgetAccount]:
        """Privacy accounts, or those that pay for one data set.

        `epsilon_spent` is an account's running epsilon and `epsilon_booked` what counts against its
        `epsilon_limit` of now; the guarantee is `epsilon_guarantee`, all at `delta`.
        """
        with self._errors():
            request = budgets_pb2.ListAccountsRequest(data_set=data_set)
            return list(self._budgets.ListAccounts(request, timeout=CALL_TIMEOUT_S).accounts)

    def checkpoints(self) -> budgets_pb2.ListCheckpointsResponse:
        """Checkpoints over all accounts, and what nodes have countersigned; nothing from a
        coordinator of 0.1.0, which keeps neither."""
        answer = budgets_pb2.ListCheckpointsResponse()
        with self._errors((grpc.StatusCode.UNIMPLEMENTED,)):
            request = budgets_pb2.ListCheckpointsRequest()
            answer.CopyFrom(self._budgets.ListCheckpoints(request, timeout=CALL_TIMEOUT_S))
        return answer

    def ledger(self, data_set: str = "") -> list[LedgerEntry]:
        """Ledger entries of those accounts, each account's in chain order."""
        with self._errors():
            request = budgets_pb2.ListEntriesRequest(data_set=data_set)
            stream = self._budgets.ListEntries(request, timeout=AWAY_S_MAX)
            return [answer.entry for answer in stream]

    @contextmanager
    def _errors(self, stream_ends: tuple[grpc.StatusCode, ...] = ()) -> Iterator[None]:
        """Turn a status of gRPC into an error of ours that names the address.

        `stream_ends` are statuses with which a stream that can be opened again just ends.
        """
        try:
            yield
        except grpc.RpcError as call:
            code = call.code()
            error = from_rpc(call)
            if code in stream_ends:
                return
            if error.reason == "UNREACHABLE":
                raise Unavailable("UNREACHABLE", self._unreached()) from None
            raise error from None

    def _unreached(self) -> str:
        return (
            f"the coordinator at {self.profile.address} cannot be reached, or its certificate or "
            f"ours ({self.profile.folder}) is not accepted; check that it runs and that the "
            "profile belongs to it"
        )

    def _again(self, call: Callable[[], T]) -> T:
        """Run a call that may be sent again; wait for a peer that was reached and went away."""
        pause_s = _PAUSE_S_MIN
        for _ in range(5):
            try:
                with self._errors():
                    return call()
            except Unavailable:
                time.sleep(pause_s)
                pause_s = min(_PAUSE_S_MAX, pause_s * 2)
        with self._errors():
            return call()
