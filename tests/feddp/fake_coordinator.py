"""A small coordinator in this process, behind a real gRPC server with real mutual TLS."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from certs.credentials import peer_of
from privacy import ledger
from privacy.wire import entry_to_wire
from protos import errors, status
from protos.content import digest_of
from protos.feddp.v1 import (
    budgets_pb2,
    budgets_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    ledger_pb2,
    models_pb2,
    models_pb2_grpc,
    nodes_pb2,
    nodes_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)

TRUST_DOMAIN = "hospitals.example"

Step = jobs_pb2.Job | errors.FeddpError


def fail(context: grpc.ServicerContext, error: errors.FeddpError) -> None:
    """Answer with an error as the real server does."""
    context.set_trailing_metadata(((status.DETAILS_KEY, status.details(error)),))
    context.abort(grpc.StatusCode[error.code], error.message)


@dataclass
class State:
    """What the fake knows, and what it was asked.

    Attributes:
        watches: one script for each WatchJob call, in order; an error ends that stream.
            Without a script the coordinator is away.
        calls: names of the rpcs that were called, with the name in the caller's certificate.
        ended_at_once: the status with which a submitted job has ended already; empty for none.
        accepted_per_upload: most bytes that one Upload call makes durable.
        faults: rpc name -> errors that its next calls answer with.
    """

    jobs: dict[str, jobs_pb2.Job] = field(default_factory=dict)
    specs: dict[str, bytes] = field(default_factory=dict)
    requests: list[jobs_pb2.SubmitJobRequest] = field(default_factory=list)
    watches: list[list[Step]] = field(default_factory=list)
    nodes: dict[str, nodes_pb2.Node] = field(default_factory=dict)
    models: list[models_pb2.Model] = field(default_factory=list)
    submission_warnings: list[str] = field(default_factory=list)
    ended_at_once: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    partial: dict[str, bytes] = field(default_factory=dict)
    accounts: list[budgets_pb2.BudgetAccount] = field(default_factory=list)
    entries: list[ledger.Entry] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    accepted_per_upload: int = 1 << 40
    faults: dict[str, list[errors.FeddpError]] = field(default_factory=dict)

    def called(self, rpc: str) -> int:
        """How often an rpc was called."""
        return sum(name == rpc for name, _ in self.calls)


@dataclass
class Coordinator:
    """The fake that runs, and the profile folder that reaches it."""

    state: State
    profile: Path
    port: int
    stop: Callable[[], None]


class Fake(
    jobs_pb2_grpc.JobsServicer,
    nodes_pb2_grpc.NodesServicer,
    models_pb2_grpc.ModelsServicer,
    budgets_pb2_grpc.BudgetsServicer,
    transfer_pb2_grpc.TransferServicer,
):
    """Every service that people call, over one `State`."""

    def __init__(self, state: State) -> None:
        self.state = state

    def _enter(self, rpc: str, context: grpc.ServicerContext) -> None:
        caller = peer_of(context.auth_context(), TRUST_DOMAIN)
        self.state.calls.append((rpc, str(caller.spiffe_id)))
        if self.state.faults.get(rpc):
            fail(context, self.state.faults[rpc].pop(0))

    def SubmitJob(self, request, context):  # noqa: N802
        self._enter("SubmitJob", context)
        self.state.requests.append(request)
        job = jobs_pb2.Job(job_id="j1", name="heart", status="running", phase="selecting")
        if ended := self.state.ended_at_once:
            job.status, job.phase, job.message = ended, "ended", "no budget is left"
        self.state.jobs.setdefault("j1", job)
        self.state.specs["j1"] = request.spec
        answer = jobs_pb2.SubmitJobResponse(job=job)
        answer.job.warnings.extend(self.state.submission_warnings)
        return answer

    def ListJobs(self, request, context):  # noqa: N802
        self._enter("ListJobs", context)
        return jobs_pb2.ListJobsResponse(jobs=self.state.jobs.values())

    def GetJob(self, request, context):  # noqa: N802
        self._enter("GetJob", context)
        if request.job_id not in self.state.jobs:
            fail(context, errors.NotFound("JOB_UNKNOWN", "there is no such job"))
        spec = self.state.specs.get(request.job_id, b"")
        return jobs_pb2.GetJobResponse(job=self.state.jobs[request.job_id], spec=spec)

    def WatchJob(self, request, context) -> Iterator[jobs_pb2.WatchJobResponse]:  # noqa: N802
        self._enter("WatchJob", context)
        away = errors.Unavailable("DRAINING", "the coordinator restarts")
        for step in self.state.watches.pop(0) if self.state.watches else [away]:
            if isinstance(step, errors.FeddpError):
                fail(context, step)
            if step == "silence":
                over = threading.Event()
                context.add_callback(over.set)
                over.wait()
                return
            self.state.jobs[step.job_id] = step
            yield jobs_pb2.WatchJobResponse(job=step)

    def CancelJob(self, request, context):  # noqa: N802
        self._enter("CancelJob", context)
        job = jobs_pb2.Job(job_id=request.job_id, status="cancelled", phase="ended")
        return jobs_pb2.CancelJobResponse(job=job)

    def ResumeJob(self, request, context):  # noqa: N802
        self._enter("ResumeJob", context)
        job = self.state.jobs[request.job_id]
        if job.status != "failed":
            fail(context, errors.WrongPhase("JOB_NOT_FAILED", f"job j1 is {job.status}"))
        if not job.message:  # it fails again for what it says
            job.status, job.phase, job.round = "running", "selecting", 2
        return jobs_pb2.ResumeJobResponse(job=job)

    def CreateToken(self, request, context):  # noqa: N802
        self._enter("CreateToken", context)
        token = f"feddp1.{request.node}.{request.node_class}.{request.ttl_s}"
        return nodes_pb2.CreateTokenResponse(token=token, expires_at=1.8e9)

    def ListNodes(self, request, context):  # noqa: N802
        self._enter("ListNodes", context)
        return nodes_pb2.ListNodesResponse(nodes=self.state.nodes.values())

    def _node(self, name: str, context: grpc.ServicerContext) -> nodes_pb2.Node:
        if name not in self.state.nodes:
            fail(context, errors.NotFound("NODE_UNKNOWN", f"there is no node {name}"))
        return self.state.nodes[name]

    def GetNode(self, request, context):  # noqa: N802
        self._enter("GetNode", context)
        return nodes_pb2.GetNodeResponse(node=self._node(request.node, context))

    def DisableNode(self, request, context):  # noqa: N802
        self._enter("DisableNode", context)
        node = self._node(request.node, context)
        node.status = "disabled"
        return nodes_pb2.DisableNodeResponse(node=node)

    def EnableNode(self, request, context):  # noqa: N802
        self._enter("EnableNode", context)
        node = self._node(request.node, context)
        node.status = "enrolled"
        return nodes_pb2.EnableNodeResponse(node=node)

    def ListModels(self, request, context):  # noqa: N802
        self._enter("ListModels", context)
        return models_pb2.ListModelsResponse(models=self.state.models)

    def GetModel(self, request, context):  # noqa: N802
        self._enter("GetModel", context)
        for model in self.state.models:
            if request.id in (model.digest, model.job_id):
                return models_pb2.GetModelResponse(model=model)
        fail(context, errors.NotFound("MODEL_UNKNOWN", "there is no such model"))
        return None

    def ListAccounts(self, request, context):  # noqa: N802
        self._enter("ListAccounts", context)
        return budgets_pb2.ListAccountsResponse(accounts=self.state.accounts)

    def ListCheckpoints(self, request, context):  # noqa: N802
        self._enter("ListCheckpoints", context)
        return budgets_pb2.ListCheckpointsResponse()

    def ListEntries(self, request, context):  # noqa: N802
        self._enter("ListEntries", context)
        for entry in self.state.entries:
            yield budgets_pb2.ListEntriesResponse(entry=wire(entry))

    def UploadStatus(self, request, context):  # noqa: N802
        self._enter("UploadStatus", context)
        return self._progress(request.digest)

    def Upload(self, request_iterator, context):  # noqa: N802
        self._enter("Upload", context)
        messages = list(request_iterator)
        header = messages[0].header
        had = self.state.partial.get(header.digest, b"")
        if header.offset != len(had):
            fail(context, errors.Malformed("OFFSET_MISMATCH", "not where the bytes end"))
        sent = b"".join(message.data for message in messages)
        data = had + sent[: self.state.accepted_per_upload]
        self.state.partial[header.digest] = data
        if len(data) == header.size:
            assert digest_of(data) == header.digest
            self.state.blobs[header.digest] = data
        return self._progress(header.digest)

    def _progress(self, digest: str) -> transfer_pb2.UploadResponse:
        complete = digest in self.state.blobs
        size = len(self.state.blobs.get(digest, self.state.partial.get(digest, b"")))
        return transfer_pb2.UploadResponse(durable_bytes=size, complete=complete)

    def Download(self, request, context):  # noqa: N802
        self._enter("Download", context)
        if request.digest not in self.state.blobs:
            fail(context, errors.NotFound("BLOB_MISSING", "there is no such blob"))
        data = self.state.blobs[request.digest][request.offset :][: request.length]
        for start in range(0, len(data), 1 << 20):
            yield transfer_pb2.DownloadResponse(data=data[start : start + (1 << 20)])


def wire(entry: ledger.Entry) -> ledger_pb2.LedgerEntry:
    """An entry as it travels."""
    return entry_to_wire(entry)


def serve(state: State, credentials: grpc.ServerCredentials) -> tuple[int, Callable[[], None]]:
    """Serve on a free port of the loopback address; returns the port and how to stop."""
    server = grpc.server(ThreadPoolExecutor(8))
    fake = Fake(state)
    jobs_pb2_grpc.add_JobsServicer_to_server(fake, server)
    nodes_pb2_grpc.add_NodesServicer_to_server(fake, server)
    models_pb2_grpc.add_ModelsServicer_to_server(fake, server)
    budgets_pb2_grpc.add_BudgetsServicer_to_server(fake, server)
    transfer_pb2_grpc.add_TransferServicer_to_server(fake, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return port, lambda: server.stop(None).wait()
