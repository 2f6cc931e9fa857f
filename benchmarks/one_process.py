"""A whole federation in one process: what decides, books, trains and averages is the product's own.

The coordinator's turns run against a real database and folder of models, each hospital's worker
answers real orders with real records. Left out are the wire between them, the agents' sessions and
their own ledgers: a job takes a fifth of a second, so that hundreds of them can be measured.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from coordinator import aggregation, views
from coordinator.blobs import BlobStore
from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import parse_job
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine
from coordinator.rounds.answers import Answers
from coordinator.rounds.averaging import check_update
from coordinator.rounds.effects import Effects
from coordinator.rounds.live import LiveJob, job_to_json, plan_of
from coordinator.rounds.turns import Input, Turn, take_turn
from coordinator.sessions import Sessions
from coordinator.store import jobs, ledger, people
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from coordinator.submissions import check_published
from feddp.jobfile import task_of
from node_agent.data.datasets import load_data_sets
from node_agent.policy.orders import Order
from node_agent.policy.policy import load_policy
from node_agent.policy.steward import Rules
from node_agent.session.greeting import hello
from node_agent.tasks.registry import initial_model, installed
from node_agent.worker import Worker
from protos.feddp.v1 import federation_pb2 as federation
from protos.feddp.v1 import jobs_pb2

_FOREVER_S: Final = 1e12


@dataclass(frozen=True, slots=True)
class Node:
    """One hospital's folder and what its steward says."""

    name: str
    folder: Path
    rules: Rules


class Outbox(Sessions):
    """Every node is connected, and its orders are kept until somebody takes them."""

    def __init__(self) -> None:
        super().__init__(silent_s=_FOREVER_S, disconnected_s=_FOREVER_S)
        self._orders: list[tuple[str, federation.WorkOrder]] = []

    def send(self, node: str, message: federation.CoordinatorMessage) -> bool:
        """Keep an order; nothing else that a coordinator says needs an answer."""
        if message.WhichOneof("message") == "work_order":
            self._orders.append((node, message.work_order))
        return True

    def take(self) -> list[tuple[str, federation.WorkOrder]]:
        """The orders since the last time, each with its node."""
        taken, self._orders = self._orders, []
        return taken


class OneProcess:
    """A coordinator and the hospitals whose folders hold data sets and a policy.

    Args:
        folder: for the database and the models.
        agents: each node's folder by its name, as an agent has it.
        config: the coordinator's; its defaults fill in what a job leaves open.
    """

    def __init__(
        self, folder: Path, agents: Mapping[str, Path], config: CoordinatorConfig | None = None
    ) -> None:
        self._config = config or CoordinatorConfig()
        self._database = Database(f"sqlite:///{folder / 'coordinator.db'}")
        self._database.migrate()
        self.blobs = BlobStore(folder / "blobs")
        self._outbox = Outbox()
        self._answers = Answers(self._outbox, lambda _live, _node: None)
        self._effects = Effects(self.blobs, self._outbox)
        self._nodes = {name: self._join(name, path) for name, path in agents.items()}
        self._jobs = 0

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def run(self, spec: bytes, seed: int = 0, initial: bytes = b"") -> jobs_pb2.Job:
        """Run a job file to its end.

        Args:
            seed: of the initial weights; never of noise.
            initial: another initial model than the task's own.

        Raises:
            FeddpError: as `SubmitJob`.
        """
        live = self._submit(spec, initial or initial_model(*task_of(spec), seed))
        asyncio.run(self._run(live))
        facts = self._database.read_now(lambda connection: views.job_facts(connection, live))
        return views.job(live, facts)

    def _join(self, name: str, folder: Path) -> Node:
        data_sets = tuple(load_data_sets(folder))
        rules = Rules(load_policy(folder / "policy.yaml"), data_sets)
        said = hello(rules, installed(), lambda _account: None, [], lambda *_: 0)

        def write(connection: Connection) -> None:
            people.invite(
                connection, name, "edge", name, spiffe_id=name, now_s=0.0, expires_at_s=_FOREVER_S
            )
            people.enrol(connection, name, name, b"\0" * 32, b"")
            people.keep_hello(connection, name, said, 0.0)
            for one in said.accounts:
                ledger.open_account(
                    connection,
                    f"{name}/{one.name}",
                    name,
                    one.filter,
                    one.rdp_order,
                    one.epsilon_limit,
                    one.delta,
                )

        self._database.write_now(write)
        self._outbox.open(name)
        return Node(name, folder, rules)

    def _submit(self, spec: bytes, model: bytes) -> LiveJob:
        job = parse_job(spec, self._config)
        task, _ = task_of(spec)
        task_hash = installed()[task].content_hash
        check_published(job, task_hash, self._database.read_now(people.all_nodes))
        with self.blobs.scratch("initial") as scratch:
            scratch.write_bytes(model)
            initial = self.blobs.adopt_model(scratch)
        aggregation.check_model(self.blobs.model(initial))
        self._jobs += 1
        record = JobRecord(
            job_id=f"job-{self._jobs}",
            project=job.project,
            name=job.name,
            submitted_by="engineer",
            request_id=f"request-{self._jobs}",
            spec=spec,
            resolved=job_to_json(job),
            task_hash=task_hash,
            status=jobs.RUNNING,
            created_at=time.time(),
        )
        first = e.JobSubmitted(initial)
        phase, _ = machine.start(plan_of(job), first, record.created_at)

        def write(connection: Connection) -> None:
            jobs.add(connection, record)
            jobs.append(connection, record.job_id, 0, record.created_at, first)

        self._database.write_now(write)
        return LiveJob(record, job, phase, 1)

    async def _run(self, live: LiveJob) -> None:
        workers = {name: Worker() for name in self._nodes}
        inputs: list[Input] = [c.Survey()]
        while inputs:
            turn = self._turn(live, inputs)
            inputs = []
            for taken in turn.taken:
                for command in taken.asked:
                    reply = await self._effects.run(live, command)
                    if reply is not None:
                        inputs.append(reply)
            for name, order in self._outbox.take():
                inputs.append(self._work(live, self._nodes[name], workers[name], order))
        if not live.has_ended:
            raise RuntimeError(f"the job waits: {live.phase}")

    def _turn(self, live: LiveJob, inputs: list[Input]) -> Turn:
        turn = self._database.write_now(
            lambda connection: take_turn(connection, live, inputs, self._answers, time.time())
        )
        for fault in turn.faults.values():
            raise fault
        live.phase, live.steps = turn.phase, turn.steps
        return turn

    def _work(
        self, live: LiveJob, node: Node, worker: Worker, message: federation.WorkOrder
    ) -> e.Event:
        """Train as ordered; the update goes into the coordinator's folder once it is checked."""
        order = Order.from_wire(message)
        [data_set] = [one for one in node.rules.data_sets if one.name == order.data_set]
        release = order.release
        _ask(
            worker,
            op="prepare",
            job_id=order.job_id,
            task=order.task,
            task_hash=order.task_hash,
            task_config=order.task_config(),
            data_set=data_set.model_dump(mode="json"),
            declared_n=order.declared_n,
        )
        out = node.folder / "update.safetensors"
        answer = _ask(
            worker,
            op="train",
            attempt_id=order.attempt_id,
            round=order.round,
            base_model=str(self.blobs.model(order.base_model_digest)),
            base_model_digest=order.base_model_digest,
            out=str(out),
            release={
                "mechanism": release.mechanism,
                "noise_multiplier": release.noise_multiplier,
                "sample_rate": release.sample_rate,
                "steps": release.steps,
            },
            declared_n=order.declared_n,
            max_grad_norm=order.max_grad_norm,
            proximal_mu=order.proximal_mu,
            update_dtype=order.update_dtype,
        )
        if answer["op"] != "trained":
            return e.NoUpdateReceived(order.attempt_id, b"")
        digest, data = answer["digest"], out.read_bytes()
        self.blobs.keep_update(order.attempt_id, digest, data)
        found = live.attempt(order.attempt_id)
        if found is None:
            raise RuntimeError(f"attempt {order.attempt_id} is not this job's")
        check_update(live, found[1], self.blobs.update(order.attempt_id, digest), self.blobs)
        return e.UpdateReceived(order.attempt_id, digest, len(data), b"")


def _ask(worker: Worker, **request: Any) -> dict[str, Any]:
    answer = worker.handle(json.dumps(request).encode())
    if answer["op"] == "refused":
        raise RuntimeError(f"{answer['reason']}: {answer['message']}")
    return answer
