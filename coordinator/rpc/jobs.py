"""Jobs: what engineers submit, watch and cancel."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Literal
from weakref import WeakValueDictionary

from sqlalchemy import Connection

from coordinator import aggregation, mandates, quoting, views
from coordinator.authz import Caller
from coordinator.blobs import BlobStore
from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import Job, parse_job
from coordinator.pausing import REASON as PAUSED
from coordinator.pausing import Pausing, said
from coordinator.rounds.driver import Rounds
from coordinator.rounds.live import LiveJob, job_to_json
from coordinator.rpc.gate import Context, caller, traceparent
from coordinator.store import jobs as job_store
from coordinator.store import ledger, limits, people
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from coordinator.submissions import check_published, unavailable, waited_for
from protos import tracing
from protos.errors import Conflict, Malformed, NotAllowed, NotFound
from protos.feddp.v1 import jobs_pb2 as pb
from protos.feddp.v1 import jobs_pb2_grpc as pb_grpc

WATCH_REPEAT_S = 5.0
WATCH_REST_S = 0.3
FIRST_TURN_S_MAX = 2.0
"""How long the answer to a submission waits for the job's first turn, which takes milliseconds."""
EARLIER_MAX = 5
"""Jobs that a quote looks at for how long rounds take."""


@dataclass(slots=True)
class JobsService(pb_grpc.JobsServicer):
    """Serves engineers."""

    database: Database
    blobs: BlobStore
    rounds: Rounds
    config: CoordinatorConfig
    pausing: Pausing
    _submitting: WeakValueDictionary[tuple[str, str], asyncio.Lock] = field(
        default_factory=WeakValueDictionary
    )
    _resuming: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def SubmitJob(
        self, request: pb.SubmitJobRequest, context: Context
    ) -> pb.SubmitJobResponse:
        """See jobs.proto."""
        said = tracing.parse(traceparent(context))
        _check_request_id(request.request_id)
        # Calls of one request one after the other: a retry may meet the call that it replaces.
        asked = (caller().name, request.request_id)
        with tracing.span("start", said, {}, place=None if said else tracing.new_trace()):
            async with self._submitting.setdefault(asked, asyncio.Lock()):
                return await self._submitted(request)

    async def _submitted(self, request: pb.SubmitJobRequest) -> pb.SubmitJobResponse:
        who = caller()
        before = await self.database.read(
            lambda connection: job_store.same_request(connection, who.name, request.request_id)
        )
        if before is not None:
            live = await self.rounds.job(before.job_id)
            _check_same(live, request)
            return pb.SubmitJobResponse(job=await self._view(live))
        job = await self._checked(request.spec, request.task_hash)
        warnings = unavailable(job, await self.database.read(people.all_nodes))
        initial = await asyncio.to_thread(self.blobs.model, request.initial_model_digest)
        await asyncio.to_thread(aggregation.check_model, initial, job.update_dtype)
        record = self._record(job, request.spec, request.task_hash, request.request_id)
        facts = await self.rounds.prospect(record, job)
        absent, few = await asyncio.to_thread(waited_for, job, request.task_hash, facts)
        if request.HasField("mandate"):
            record = await self._signed(record, job, request)
        live = await self.rounds.submit(record, job, request.initial_model_digest)
        if few:
            await _first_turn(live)
        view = await self._view(live)
        waits = [f"the job waits: {few}"] if few and view.phase != "ended" else []
        view.warnings.extend(dict.fromkeys([*warnings, *absent, *waits]))
        return pb.SubmitJobResponse(job=view)

    async def _signed(self, record: JobRecord, job: Job, request: pb.SubmitJobRequest) -> JobRecord:
        """The record of a signed job, whose id is the one that was signed.

        Raises:
            Malformed: MANDATE_INVALID, MANDATE_MISMATCH.
            Conflict: JOB_ID_TAKEN.
        """
        mandate = mandates.check(request.mandate)
        mandates.check_fits(
            mandate,
            job,
            request.spec,
            request.task_hash,
            request.initial_model_digest,
            record.created_at,
        )
        taken = await self.database.read(lambda inside: job_store.has_id(inside, mandate.job_id))
        if taken:
            raise Conflict("JOB_ID_TAKEN", f"there is a job {mandate.job_id}; submit it once more")
        kept = request.mandate.SerializeToString()
        return replace(record, job_id=mandate.job_id, mandate=kept)

    async def QuoteJob(self, request: pb.QuoteJobRequest, context: Context) -> pb.QuoteJobResponse:
        """See jobs.proto."""
        job = await self._checked(request.spec, request.task_hash)
        record = self._record(job, request.spec, request.task_hash, request_id="")
        facts = await self.rounds.prospect(record, job)
        answer = await asyncio.to_thread(
            quoting.quote, job, request.task_hash, facts, request.model_bytes
        )
        guarantees = await self.database.read(lambda inside: _guarantees(inside, answer))
        nodes = await self.database.read(people.all_nodes)
        under_way = quoting.jobs_under_way(nodes, self.rounds.running())
        for one in answer.nodes:
            one.jobs_under_way = under_way[one.account]
            if (guarantee := guarantees.get(one.account)) is not None:
                one.epsilon_guarantee = guarantee
        expected_s = quoting.expected_s(job, await self._earlier(job))
        if expected_s is not None:
            answer.seconds_expected = expected_s
        return answer

    async def _earlier(self, job: Job) -> list[LiveJob]:
        """The newest jobs of this very model on this data set, the newest first."""
        found: list[LiveJob] = []
        for record in await self.database.read(job_store.listed):
            if len(found) < EARLIER_MAX and record.project == job.project:
                live = await self.rounds.job(record.job_id)
                like = (live.job.task, live.job.task_config, live.job.dataset, live.job.local_steps)
                if like == (job.task, job.task_config, job.dataset, job.local_steps):
                    found.append(live)
        return found

    async def _checked(self, spec: bytes, task_hash: str) -> Job:
        """The job that a file asks for, if its caller may ask for it and some node could take it.

        Raises:
            Malformed: JOB_INVALID, TASK_CONFIG_INVALID, DELTA_TOO_LARGE,
                DELTA_MISMATCH.
            NotAllowed: PROJECT.
            NotFound: TASK_UNKNOWN, DATA_SET_UNKNOWN.
        """
        who = caller()
        job = parse_job(spec, self.config)
        _check_own(who, job.project, "submits")
        check_published(job, task_hash, await self.database.read(people.all_nodes))
        return job

    def _record(self, job: Job, spec: bytes, task_hash: str, request_id: str) -> JobRecord:
        return JobRecord(
            job_id=f"job-{secrets.token_hex(6)}",
            project=job.project,
            name=job.name,
            submitted_by=caller().name,
            request_id=request_id,
            spec=spec,
            resolved=job_to_json(job),
            task_hash=task_hash,
            status=job_store.RUNNING,
            created_at=time.time(),
        )

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """See jobs.proto."""
        who = caller()
        found: list[pb.Job] = []
        for record in await self.database.read(job_store.listed):
            if who.sees(record.project):
                view = await self._view(await self.rounds.job(record.job_id))
                view.ClearField("rounds")
                found.append(view)
        return pb.ListJobsResponse(jobs=found)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """See jobs.proto."""
        live = await self._mine(request.job_id)
        answer = pb.GetJobResponse(job=await self._view(live), spec=live.record.spec)
        if live.record.mandate:
            answer.mandate.ParseFromString(live.record.mandate)
        return answer

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        """See jobs.proto."""
        live = await self._mine(request.job_id)
        while True:
            changed, ended = live.changed, live.has_ended
            yield pb.WatchJobResponse(job=await self._view(live))
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_REPEAT_S):
                    await changed.wait()
            if not live.has_ended:
                # A fast job changes many times a second; nobody reads as fast.
                await asyncio.sleep(WATCH_REST_S)

    async def CancelJob(
        self, request: pb.CancelJobRequest, context: Context
    ) -> pb.CancelJobResponse:
        """See jobs.proto."""
        live, who = await self._mine(request.job_id), caller()
        if "operator" not in who.roles:
            _check_own(who, live.record.project, "cancels")
        live = await self.rounds.cancel(request.job_id, who.name)
        return pb.CancelJobResponse(job=await self._view(live))

    async def ResumeJob(
        self, request: pb.ResumeJobRequest, context: Context
    ) -> pb.ResumeJobResponse:
        """See jobs.proto."""
        _check_request_id(request.request_id)
        live = await self._mine(request.job_id)
        _check_own(caller(), live.record.project, "resumes")
        # One after the other: else the second puts what it has signed in the place of what the
        # orders of the first went out with, and nodes refuse a text that was signed twice.
        async with self._resuming.setdefault(live.job_id, asyncio.Lock()):
            return await self._resumed(request)

    async def _resumed(self, request: pb.ResumeJobRequest) -> pb.ResumeJobResponse:
        job_id = request.job_id
        live = await self.rounds.job(job_id)
        mandate = self._resumption(live, request, await self.rounds.resumptions(job_id))
        live = await self.rounds.resume(job_id, caller().name, request.request_id, mandate)
        return pb.ResumeJobResponse(job=await self._view(live))

    def _resumption(
        self, live: LiveJob, request: pb.ResumeJobRequest, asked: frozenset[str]
    ) -> bytes:
        """What was signed to go on; empty where nobody signed, or nothing is to be done.

        Args:
            asked: request ids with which the job has gone on before.

        Raises:
            Malformed: MANDATE_MISSING, MANDATE_INVALID, MANDATE_MISMATCH.
        """
        before = mandates.kept(live.record.mandate)
        if before is None or request.request_id in asked:
            return b""
        if not request.HasField("mandate"):
            raise Malformed(
                "MANDATE_MISSING",
                f"job {live.job_id} was signed, and nodes take no order of it once it has ended: "
                "whoever signed it resumes it, with the same key",
            )
        data = request.mandate.SerializeToString()
        # One that is kept was used up, unless the coordinator ended before the job went on with it.
        if data != live.record.mandate or before.resumption <= len(asked):
            mandates.check_follows(mandates.check(request.mandate), before, time.time())
        return data

    async def _mine(self, job_id: str) -> LiveJob:
        live = await self.rounds.job(job_id)
        if not caller().sees(live.record.project):
            raise NotFound("JOB_UNKNOWN", f"there is no job {job_id}; `feddp job list` shows them")
        return live

    async def _view(self, live: LiveJob) -> pb.Job:
        # The phase first: what the ledger has posted since can only make the figures larger.
        live = replace(live)

        def gather(connection: Connection) -> views.JobFacts:
            return views.job_facts(connection, live)

        facts = await self.database.read(gather)
        view = await asyncio.to_thread(views.job, live, facts)
        if not live.has_ended and self.pausing.now is not None:
            view.warnings.append(f"{PAUSED}: {said(self.pausing.now)}")
        if not live.has_ended and not self.blobs.has_room(self._round_bytes(live)):
            view.warnings.append(
                "the coordinator's disk has no room for another model; updates wait until it has"
            )
        if not live.has_ended and self.database.is_full:
            view.warnings.append(
                "DATABASE_FULL: the disk of the coordinator's database is full; all waits until it "
                "has room"
            )
        if not live.has_ended and self.blobs.fault:
            view.warnings.append(f"STORE_UNREACHABLE: {self.blobs.fault}")
        return view

    def _round_bytes(self, live: LiveJob) -> int:
        """Of the model that the job works at."""
        digest = live.phase.course.model
        return self.blobs.model(digest).stat().st_size if self.blobs.has_model(digest) else 0


def _guarantees(connection: Connection, quote: pb.QuoteJobResponse) -> dict[str, float | None]:
    names = sorted({one.account for one in quote.nodes if one.account})
    return limits.guarantees(connection, ledger.named_accounts(connection, names))


async def _first_turn(live: LiveJob) -> None:
    """Whether a job waits for hospitals, or has ended as their budgets can never pay for it, is
    known once they were looked at."""
    changed = live.changed
    if live.steps == 1:  # its submission
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TURN_S_MAX):
                await changed.wait()


def _check_same(live: LiveJob, request: pb.SubmitJobRequest) -> None:
    """Refuse another job under the id of a request that was answered: whoever sent it would take
    the first job for its own. What was signed may differ: it is signed anew for a retry.

    Raises:
        Conflict: REQUEST_ID_TAKEN.
    """
    asked = (request.spec, request.task_hash, request.initial_model_digest)
    if asked != (live.record.spec, live.record.task_hash, live.phase.course.initial):
        raise Conflict(
            "REQUEST_ID_TAKEN",
            f"the request with this request_id made job {live.job_id}, of another job file, task "
            "or initial model; nothing was changed: submit this one with a request_id of its own",
        )


def _check_request_id(request_id: str) -> None:
    if not 1 <= len(request_id) <= 64:
        raise Malformed("REQUEST_ID", "request_id is 1 to 64 characters of the caller's choice")


def _check_own(who: Caller, project: str, what: Literal["submits", "resumes", "cancels"]) -> None:
    """Refuse to decide over another project's jobs; to whoever may look at them, too.

    Raises:
        NotAllowed: PROJECT.
    """
    if project != who.project:
        remedy = f"an engineer of {project} {what} it"
        if what == "submits":
            remedy = f"write `project: {who.project}` in the job's file"
        raise NotAllowed(
            "PROJECT",
            f"{who.name} {what} jobs of project {who.project} only, and this one's is "
            f"{project}; {remedy}",
        )
