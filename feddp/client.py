"""A synchronous client of a coordinator, for notebooks and the command line.

from feddp.client import Client
from feddp.jobfile import read_spec, task_of
from feddp.profile import Profile

with Client(Profile.load(Path("installation/operator"))) as client:
    job = client.submit(Path("job.yaml"))
    for job in client.watch(job.job_id):
        print(job.status, job.rounds_done)
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import grpc

from certs.mandates import Mandate, parse
from feddp.connection import Connection, pauses_s
from feddp.jobfile import facts_of
from feddp.profile import Profile
from feddp.signing import Caps, Work, load_key, mandate_for, mandate_to_resume
from feddp.submission import checked, publishers
from feddp.transfer import download, upload
from protos import tracing
from protos.errors import NotFound, Unavailable
from protos.feddp.v1 import (
    budgets_pb2,
    jobs_pb2,
    models_pb2,
    nodes_pb2,
    operations_pb2,
    users_pb2,
)
from protos.feddp.v1.budgets_pb2 import BudgetAccount
from protos.feddp.v1.budgets_pb2_grpc import BudgetsStub
from protos.feddp.v1.jobs_pb2 import Job
from protos.feddp.v1.jobs_pb2_grpc import JobsStub
from protos.feddp.v1.ledger_pb2 import LedgerEntry
from protos.feddp.v1.models_pb2 import Model
from protos.feddp.v1.models_pb2_grpc import ModelsStub
from protos.feddp.v1.nodes_pb2 import CreateTokenResponse, Node
from protos.feddp.v1.nodes_pb2_grpc import NodesStub
from protos.feddp.v1.operations_pb2 import Pause
from protos.feddp.v1.operations_pb2_grpc import OperationsStub
from protos.feddp.v1.transfer_pb2_grpc import TransferStub
from protos.feddp.v1.users_pb2 import InviteUserResponse, User
from protos.feddp.v1.users_pb2_grpc import UsersStub

ENDED = frozenset({"converged", "completed", "budget_exhausted", "failed", "cancelled"})
"""Statuses in which a job does nothing more."""

CALL_TIMEOUT_S = 20.0
AWAY_S_MAX = 300.0
"""How long `watch` and transfers wait for a coordinator that was there before and is gone."""

WATCH_CALL_S = 12.0
"""How long one stream of a watch lasts before the next: a stream that is dead, though it looks
open, makes nobody wait longer, and a proxy's bound on a call (15 s in Envoy) is never met."""

_STREAM_ENDS = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)
"""How a watch ends that the coordinator or a proxy cut in good health."""


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
        self.signed: Mandate | None = None  # the last job, as it was signed here
        self._connection = Connection(profile)
        channel = self._connection.channel
        self._jobs = JobsStub(channel)
        self._nodes = NodesStub(channel)
        self._users = UsersStub(channel)
        self._models = ModelsStub(channel)
        self._operations = OperationsStub(channel)
        self._budgets = BudgetsStub(channel)
        self._transfer = TransferStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; what runs at the coordinator goes on."""
        self._connection.close()

    def submit(self, spec: Path | bytes, seed: int = 0, caps: Caps = Caps()) -> Job:  # noqa: B008
        """Check a job file here, upload its initial model, and start the job. The initial model of
        an evaluation is the one that it evaluates. A profile that has a key (`feddp job key new`)
        signs the job, for the nodes that publish its data set now unless `caps` names others.

        Args:
            spec: the file, or its bytes; the coordinator keeps them byte for byte.
            seed: fixes the initial weights only, never noise or sampling.
            caps: how far the signature goes.

        Raises:
            Malformed: JOB_INVALID, TASK_CONFIG_INVALID, MODEL_MISMATCH, EPSILON_MAX_INVALID,
                EPSILON_MAX_MISSING.
            NotFound: FILE_MISSING, TASK_UNKNOWN, DATA_SET_UNKNOWN, MODEL_UNKNOWN.
        """
        data, task_hash, model = checked(spec, seed, self.nodes, self.download)
        digest = upload(self._transfer, model, self._connection.again)
        request = jobs_pb2.SubmitJobRequest(
            spec=data,
            task_hash=task_hash,
            initial_model_digest=digest,
            # Repeated if the reply is lost: it stays one job.
            request_id=uuid.uuid4().hex,
        )
        if key := load_key(self.profile.folder):
            work = Work(data, facts_of(data), task_hash, digest, publishers(self.nodes(), data))
            signed = mandate_for(key, work, caps, lambda: self._quote(data, task_hash, len(model)))
            request.mandate.CopyFrom(signed)
        job: Job = self._connection.again(
            lambda: self._jobs.SubmitJob(
                request, timeout=CALL_TIMEOUT_S, metadata=tracing.metadata()
            )
        ).job
        # Only now: what no job can be signed for, the coordinator refuses by its name in the file.
        self.signed = parse(request.mandate.body) if request.HasField("mandate") else None
        return job

    def quote(self, spec: Path | bytes) -> jobs_pb2.QuoteJobResponse:
        """What a job would cost each hospital; nothing is uploaded, and nothing changes.

        Raises:
            FeddpError: as `submit`.
        """
        data, task_hash, model = checked(spec, 0, self.nodes, self.download)
        return self._quote(data, task_hash, len(model))

    def _quote(self, spec: bytes, task_hash: str, size: int) -> jobs_pb2.QuoteJobResponse:
        request = jobs_pb2.QuoteJobRequest(spec=spec, task_hash=task_hash, model_bytes=size)
        answer: jobs_pb2.QuoteJobResponse
        answer = self._connection.again(
            lambda: self._jobs.QuoteJob(request, timeout=CALL_TIMEOUT_S)
        )
        return answer

    def jobs(self) -> list[Job]:
        """Every job that the caller may see, newest first, without its rounds."""
        with self._connection.errors():
            answer = self._jobs.ListJobs(jobs_pb2.ListJobsRequest(), timeout=CALL_TIMEOUT_S)
        return list(answer.jobs)

    def job(self, job_id: str) -> Job:
        """One job with its rounds."""
        return self.job_and_spec(job_id)[0]

    def job_and_spec(self, job_id: str) -> tuple[Job, bytes]:
        """One job with its rounds, and the bytes that were submitted."""
        with self._connection.errors():
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
        pauses = pauses_s()
        while True:
            fault: Unavailable | None = self._connection.unreached()
            try:
                for job in self._watch_once(job_id):
                    fault, reached, away_since, pauses = None, True, None, pauses_s()
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
            time.sleep(next(pauses))

    def _watch_once(self, job_id: str) -> Iterator[Job]:
        with self._connection.errors(_STREAM_ENDS):
            request = jobs_pb2.WatchJobRequest(job_id=job_id)
            stream = self._jobs.WatchJob(request, timeout=WATCH_CALL_S)
            for answer in stream:
                yield answer.job

    def cancel(self, job_id: str) -> Job:
        """End a job; what it spent stays booked."""
        with self._connection.errors():
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
        with self._connection.errors():
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
            again = mandate_to_resume(key, before.mandate, job_id, self.profile.folder)
            request.mandate.CopyFrom(again)
        job: Job = self._connection.again(
            lambda: self._jobs.ResumeJob(request, timeout=CALL_TIMEOUT_S)
        ).job
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
        with self._connection.errors():
            answer: CreateTokenResponse = self._nodes.CreateToken(request, timeout=CALL_TIMEOUT_S)
        return answer

    def nodes(self) -> list[Node]:
        """Every node, by name."""
        with self._connection.errors():
            answer = self._nodes.ListNodes(nodes_pb2.ListNodesRequest(), timeout=CALL_TIMEOUT_S)
        return list(answer.nodes)

    def node(self, name: str) -> Node:
        """One node."""
        with self._connection.errors():
            request = nodes_pb2.GetNodeRequest(node=name)
            node: Node = self._nodes.GetNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def disable(self, name: str) -> Node:
        """Refuse a node from now on and cut its connections."""
        with self._connection.errors():
            request = nodes_pb2.DisableNodeRequest(node=name)
            node: Node = self._nodes.DisableNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def enable(self, name: str) -> Node:
        """Admit a disabled node again."""
        with self._connection.errors():
            request = nodes_pb2.EnableNodeRequest(node=name)
            node: Node = self._nodes.EnableNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def approve(self, name: str, key: str = "", steward: str = "") -> Node:
        """Let in the machine that waits to join as a node.

        Args:
            key: the beginning of its key's digest, as the hospital read it out.
            steward: who at the hospital confirmed it.
        """
        with self._connection.errors():
            request = nodes_pb2.ApproveJoinRequest(node=name, key=key, steward=steward)
            node: Node = self._nodes.ApproveJoin(request, timeout=CALL_TIMEOUT_S).node
        return node

    def reject(self, name: str) -> Node:
        """Refuse the machine that waits to join as a node."""
        with self._connection.errors():
            request = nodes_pb2.RejectJoinRequest(node=name)
            node: Node = self._nodes.RejectJoin(request, timeout=CALL_TIMEOUT_S).node
        return node

    def release(self, name: str) -> Node:
        """End a node's quarantine."""
        with self._connection.errors():
            request = nodes_pb2.ReleaseNodeRequest(node=name)
            node: Node = self._nodes.ReleaseNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def revoke(self, name: str) -> Node:
        """Revoke every certificate of a node for good and cut its connections."""
        with self._connection.errors():
            request = nodes_pb2.RevokeNodeRequest(node=name)
            node: Node = self._nodes.RevokeNode(request, timeout=CALL_TIMEOUT_S).node
        return node

    def invite_user(
        self, user: str, roles: Iterable[str], ttl_s: int = 86400, project: str = ""
    ) -> InviteUserResponse:
        """A token with which one person joins; an earlier unused one of theirs is void from now on.

        Args:
            roles: of "operator", "engineer" and "privacy-officer", at least one.
            project: whose jobs an engineer submits and sees; empty: "default".
        """
        request = users_pb2.InviteUserRequest(user=user, roles=roles, ttl_s=ttl_s, project=project)
        with self._connection.errors():
            answer: InviteUserResponse = self._users.InviteUser(request, timeout=CALL_TIMEOUT_S)
        return answer

    def users(self) -> list[User]:
        """Everybody who was ever invited, or came with the installation, by name."""
        with self._connection.errors():
            answer = self._users.ListUsers(users_pb2.ListUsersRequest(), timeout=CALL_TIMEOUT_S)
        return list(answer.users)

    def revoke_user(self, user: str) -> User:
        """Revoke every certificate of a person for good, and their invitation."""
        with self._connection.errors():
            request = users_pb2.RevokeUserRequest(user=user)
            revoked: User = self._users.RevokeUser(request, timeout=CALL_TIMEOUT_S).user
        return revoked

    def pause_all(self, reason: str) -> Pause:
        """Stop all work until `resume_all`; a pause that is on stays as it is.

        Raises:
            Malformed: REASON_INVALID.
        """
        with self._connection.errors():
            request = operations_pb2.PauseAllRequest(reason=reason)
            made: Pause = self._operations.PauseAll(request, timeout=CALL_TIMEOUT_S).pause
        return made

    def resume_all(self) -> bool:
        """End a pause; False if there was none."""
        with self._connection.errors():
            request = operations_pb2.ResumeAllRequest()
            return bool(self._operations.ResumeAll(request, timeout=CALL_TIMEOUT_S).resumed)

    def pause(self) -> Pause | None:
        """The pause that is on."""
        with self._connection.errors():
            request = operations_pb2.GetPauseRequest()
            answer = self._operations.GetPause(request, timeout=CALL_TIMEOUT_S)
        return answer.pause if answer.HasField("pause") else None

    def models(self, job_id: str = "") -> list[Model]:
        """Every model, or those of one job."""
        with self._connection.errors():
            request = models_pb2.ListModelsRequest(job_id=job_id)
            return list(self._models.ListModels(request, timeout=CALL_TIMEOUT_S).models)

    def model(self, model_id: str) -> Model:
        """One model by its digest, or the answer of the job with that id."""
        with self._connection.errors():
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
        download(
            self._transfer, model.digest, model.bytes, out, self._connection.again, force=force
        )
        return model

    def accounts(self, data_set: str = "") -> list[BudgetAccount]:
        """Privacy accounts, or those that pay for one data set.

        `epsilon_spent` is an account's running epsilon and `epsilon_booked` what counts against its
        `epsilon_limit` of now; the guarantee is `epsilon_guarantee`, all at `delta`.
        """
        with self._connection.errors():
            request = budgets_pb2.ListAccountsRequest(data_set=data_set)
            return list(self._budgets.ListAccounts(request, timeout=CALL_TIMEOUT_S).accounts)

    def checkpoints(self) -> budgets_pb2.ListCheckpointsResponse:
        """Checkpoints over all accounts, and what nodes have countersigned; nothing from a
        coordinator of 0.1.0, which keeps neither."""
        answer = budgets_pb2.ListCheckpointsResponse()
        with self._connection.errors((grpc.StatusCode.UNIMPLEMENTED,)):
            request = budgets_pb2.ListCheckpointsRequest()
            answer.CopyFrom(self._budgets.ListCheckpoints(request, timeout=CALL_TIMEOUT_S))
        return answer

    def ledger(self, data_set: str = "") -> list[LedgerEntry]:
        """Ledger entries of those accounts, each account's in chain order."""
        with self._connection.errors():
            request = budgets_pb2.ListEntriesRequest(data_set=data_set)
            stream = self._budgets.ListEntries(request, timeout=AWAY_S_MAX)
            return [answer.entry for answer in stream]
