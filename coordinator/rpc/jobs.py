"""Jobs: what engineers submit, watch and cancel."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
from sqlalchemy import Connection

from coordinator import aggregation, views
from coordinator.blobs import BlobStore
from coordinator.config import CoordinatorConfig
from coordinator.jobspec import Job, parse_job
from coordinator.rounds.driver import Rounds
from coordinator.rounds.live import LiveJob, job_to_json
from coordinator.rpc.gate import Context, caller
from coordinator.store import jobs as job_store
from coordinator.store import people
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from protos.errors import Malformed, NotAllowed, NotFound
from protos.feddp.v1 import jobs_pb2 as pb
from protos.feddp.v1 import jobs_pb2_grpc as pb_grpc

WATCH_REPEAT_S = 5.0


@dataclass(slots=True)
class JobsService(pb_grpc.JobsServicer):
    """Serves engineers."""

    database: Database
    blobs: BlobStore
    rounds: Rounds
    config: CoordinatorConfig

    async def SubmitJob(
        self, request: pb.SubmitJobRequest, context: Context
    ) -> pb.SubmitJobResponse:
        """See jobs.proto."""
        who = caller()
        if not 1 <= len(request.request_id) <= 64:
            raise Malformed("REQUEST_ID", "request_id is 1 to 64 characters of the caller's choice")
        before = await self.database.read(
            lambda connection: job_store.same_request(connection, who.name, request.request_id)
        )
        if before is not None:
            return pb.SubmitJobResponse(job=await self._view(await self.rounds.job(before.job_id)))
        job = parse_job(request.spec, self.config)
        if job.project != who.project:
            raise NotAllowed("PROJECT", f"{who.name} submits jobs of project {who.project} only")
        nodes = await self.database.read(people.all_nodes)
        check_published(job, request.task_hash, nodes)
        aggregation.shape_of(self.blobs.model(request.initial_model_digest))
        record = JobRecord(
            job_id=f"job-{secrets.token_hex(6)}",
            project=job.project,
            name=job.name,
            submitted_by=who.name,
            request_id=request.request_id,
            spec=request.spec,
            resolved=job_to_json(job),
            task_hash=request.task_hash,
            status=job_store.RUNNING,
            created_at=time.time(),
        )
        live = await self.rounds.submit(record, job, request.initial_model_digest)
        return pb.SubmitJobResponse(job=await self._view(live))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """See jobs.proto."""
        project = caller().project
        found: list[pb.Job] = []
        for record in await self.database.read(job_store.listed):
            if record.project == project:
                view = await self._view(await self.rounds.job(record.job_id))
                view.ClearField("rounds")
                found.append(view)
        return pb.ListJobsResponse(jobs=found)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """See jobs.proto."""
        live = await self._mine(request.job_id)
        return pb.GetJobResponse(job=await self._view(live), spec=live.record.spec)

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
            try:
                await asyncio.wait_for(changed.wait(), WATCH_REPEAT_S)
            except TimeoutError:
                continue

    async def CancelJob(
        self, request: pb.CancelJobRequest, context: Context
    ) -> pb.CancelJobResponse:
        """See jobs.proto."""
        await self._mine(request.job_id)
        live = await self.rounds.cancel(request.job_id, caller().name)
        return pb.CancelJobResponse(job=await self._view(live))

    async def _mine(self, job_id: str) -> LiveJob:
        live = await self.rounds.job(job_id)
        if live.record.project != caller().project:
            raise NotFound("JOB_UNKNOWN", f"there is no job {job_id}; `feddp job list` shows them")
        return live

    async def _view(self, live: LiveJob) -> pb.Job:
        def gather(connection: Connection) -> views.JobFacts:
            return views.job_facts(connection, live)

        facts = await self.database.read(gather)
        return await asyncio.to_thread(views.job, live, facts)


def check_published(job: Job, task_hash: str, nodes: list[people.NodeRecord]) -> None:
    """Refuse a job that no node could ever take.

    Raises:
        NotFound: TASK_UNKNOWN, DATA_SET_UNKNOWN.
        Malformed: TASK_CONFIG_INVALID.
    """
    joined = [node for node in nodes if node.status != "invited"]
    data_sets = sorted({d.name for node in joined for d in node.hello.data_sets})
    if job.dataset not in data_sets:
        known = ", ".join(data_sets) or "none yet"
        raise NotFound(
            "DATA_SET_UNKNOWN", f"no node publishes the data set {job.dataset}; known: {known}"
        )
    tasks = {(t.name, t.content_hash): t for node in joined for t in node.hello.tasks}
    task = tasks.get((job.task, task_hash))
    if task is None:
        known = ", ".join(sorted(f"{name}@{digest[:12]}…" for name, digest in tasks)) or "none yet"
        raise NotFound(
            "TASK_UNKNOWN",
            f"no node allows the task {job.task}@{task_hash[:12]}…; known: {known}. If only the "
            "hash differs, your version of feddp and the nodes' are not the same",
        )
    check_task_config(job.task_config, json.loads(task.config_schema_json))


def check_task_config(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Check task_config against the schema that the nodes published with the task.

    Raises:
        Malformed: TASK_CONFIG_INVALID, every fault with its place.
    """
    validator = jsonschema.Draft202012Validator(schema)
    faults = sorted(
        validator.iter_errors(dict(config)), key=lambda fault: list(map(str, fault.path))
    )
    if faults:
        lines = [
            f"  task_config{''.join(f'.{part}' for part in fault.path)}: {fault.message[:200]}"
            for fault in faults[:20]
        ]
        raise Malformed(
            "TASK_CONFIG_INVALID", "the task refuses its task_config:\n" + "\n".join(lines)
        )
