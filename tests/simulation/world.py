"""One seed in virtual time: a coordinator, nodes that come and go, jobs, and what goes wrong."""

import contextlib
import heapq
from collections.abc import Callable
from random import Random
from typing import Any

import structlog

from coordinator.jobspec import Job
from coordinator.rounds import events as e
from coordinator.rounds.live import job_to_json
from coordinator.rounds.phases import Ended
from coordinator.rpc import greeting as coordinator_greeting
from coordinator.store.jobs import RUNNING, JobRecord
from node_agent.session import greeting, publication
from protos.content import digest_of
from tests.simulation.coordinator_side import Coordinator
from tests.simulation.coordinator_work import Model
from tests.simulation.faults import Faults
from tests.simulation.hospital import DELTA, NULL, NULL_HASH, TASK, TASK_HASH
from tests.simulation.invariants import Checker
from tests.simulation.network import TO_COORDINATOR, TO_NODE, Network
from tests.simulation.node_side import Node
from tests.simulation.process import Process
from tests.simulation.raises import Desk
from tests.simulation.sql_store import Store
from tests.simulation.stores import MemoryStore

ENDS_AT_S = 2500.0
"""Long after the last fault every job has ended, or waits for what only people can change."""

QUIET_S = 100.0
"""After the last job has ended, for the nodes to let go of their attempts."""

JOBS_MAX = 6

STILL_S = 400.0
"""A job that has not moved for so long waits: longer than any deadline and any retry."""


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


SILENT = structlog.wrap_logger(structlog.ReturnLogger(), processors=[_drop])
"""What agents log has the time of day in it, and nobody reads it here."""


class World:
    """Runs one seed. The same seed gives the same transcript in every process."""

    def __init__(
        self,
        seed: int,
        *,
        store: Store | None = None,
        plant: "Callable[[World], None] | None" = None,
    ) -> None:
        self.seed, self.random = seed, Random(seed)
        self.now_s, self.events, self.attempts = 0.0, 0, 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.transcript: list[str] = []
        dice = self.random
        self.faults = Faults(dice, until_s=dice.choice([60.0, 150.0, 300.0]))
        self.hostile = dice.random() < 0.4
        self.network = Network(self)
        self.desk = Desk(self)
        self.coordinator = Coordinator(self, store or MemoryStore())
        self.nodes = {name: Node(self, name) for name in "abcdef"[: dice.randint(3, 6)]}
        self.public_keys = {
            name: node.key.public_key().public_bytes_raw() for name, node in self.nodes.items()
        }
        self.checker = Checker(self)
        self.jobs: list[str] = []
        self.specs: dict[str, Job] = {}
        self._look_at_s = 0.0
        self._to_resume = 0
        self._plant = plant
        self._swapped = contextlib.ExitStack()
        self._schedule()

    # Time

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something after so many seconds."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._count, work))

    def note(self, text: str) -> None:
        """A line of the transcript."""
        self.transcript.append(f"{self.now_s:9.3f} {text}")

    def swap(self, owner: Any, name: str, new: Any) -> Any:
        """Put something in the place of a name of the product until the seed is over; gives what
        stood there."""
        before = getattr(owner, name)
        setattr(owner, name, new)
        self._swapped.callback(setattr, owner, name, before)
        return before

    def run(self) -> list[str]:
        """Play to the end; how each job ended.

        Raises:
            Broken: an invariant does not hold.
        """
        with self._swapped:
            coordinator = self.coordinator
            for seams in (coordinator.store.seams(), coordinator.seams(), self.desk.seams()):
                for owner, name, new in seams:
                    self.swap(owner, name, new)
            for module in (greeting, publication, coordinator_greeting):
                self.swap(module, "log", SILENT)
            if self._plant is not None:
                self._plant(self)
            return self._play()

    def _play(self) -> list[str]:
        try:
            while self._queue and self.now_s < ENDS_AT_S:
                self.now_s, _, work = heapq.heappop(self._queue)
                work()
                self.events += 1
                self.checker.after_event()
                if self.now_s >= self._look_at_s and self._is_over():
                    break
            self.checker.at_end()
            return self.checker.endings()
        finally:
            for node in self.nodes.values():
                node.disk_.close()

    def _is_over(self) -> bool:
        """Whether nothing will happen any more; looked at now and then."""
        self._look_at_s = self.now_s + 10.0
        self.checker.now_and_then()
        under_way = self._submitted < len(self.jobs) or self._to_resume > 0 or self.desk.busy
        if self.now_s < self.faults.until_s or under_way:
            return False
        still_s = self.now_s - max(self.faults.until_s, self.checker.moved_at_s)
        if all(record.status != RUNNING for record in self.coordinator.store.jobs()):
            nodes = self.nodes.values()
            quiet = all(one.gone or (one.up and not one.agent.attempts) for one in nodes)
            return quiet and still_s > QUIET_S
        return still_s > STILL_S

    # What happens

    def _schedule(self) -> None:
        dice, until_s = self.random, self.faults.until_s
        self._submitted = 0
        self.later(0.0, self.coordinator.start)
        for node in self.nodes.values():
            joins_late = dice.random() < 0.2
            self.later(dice.uniform(5.0, until_s) if joins_late else 0.0, node.start)
            if dice.random() < 0.1:
                self.later(dice.uniform(0.0, until_s), lambda node=node: self._leave(node))
        for number in range(dice.choice([1, 1, 2, 3, 3])):
            self._plan_job(number)
        for kind, allowed in self.faults.timed.items():
            for _ in range(dice.randint(1, 4) if allowed else 0):
                self.later(dice.uniform(1.0, until_s), lambda kind=kind: self._happen(kind))
        self.later(until_s, self._heal)

    def _plan_job(self, number: int) -> None:
        dice = self.random
        is_null, has_target = dice.random() < 0.1, dice.random() < 0.2
        quorum = dice.randint(2, min(4, len(self.nodes)))
        job = Job(
            name=f"job {number}",
            project="p",
            task=NULL if is_null else TASK,
            task_config={},
            dataset=dice.choice(["d", "d", "e"]),
            aggregation_method="fedprox",
            proximal_mu=0.0,
            min_participants=quorum,
            rounds_planned=dice.randint(1, 4),
            max_rounds=100,
            local_steps=5,
            convergence_threshold=0.001,
            deadline_s=dice.choice([40, 60, 120]),
            mechanism="no_data" if is_null else "dp",
            target_epsilon=2.0 if has_target and not is_null else None,
            noise_multiplier=None if has_target or is_null else dice.choice([4.0, 8.0, 16.0]),
            delta=DELTA,
            max_grad_norm=1.0,
            batch_size=10,
            convergence_patience=2,
            poisson_from_n=1000,
            participants=dice.choice([0, 0, quorum, quorum + 1]),
            over_selection=dice.choice([0.0, 0.5]),
            grace_factor=dice.choice([0.0, 0.0, 1.5, 3.0]),
            update_dtype=dice.choice(["float32", "bfloat16", "int8"]),
            priority=dice.choice([0, 0, 0, 1]),
        )
        initial = Model("initial" if dice.random() < 0.5 else f"initial {number}", ())
        after_s = dice.uniform(0.5, 20.0) + number * dice.uniform(0.0, 60.0)
        job_id = self._plan(job, initial, after_s)
        if dice.random() < 0.1:
            self.later(after_s + dice.uniform(1.0, 200.0), lambda: self._cancel(job_id))

    def _plan(self, job: Job, initial: Model, after_s: float) -> str:
        number = len(self.jobs)
        job_id = f"j{number}"
        self.jobs.append(job_id)
        self.specs[job_id] = job
        self.coordinator.blobs.models[initial.digest] = initial
        record = JobRecord(
            job_id, "p", job.name, "user", digest_of(job_id.encode()), b"", job_to_json(job),
            NULL_HASH if job.task == NULL else TASK_HASH, RUNNING, float(number),
        )  # fmt: skip
        self.later(after_s, lambda: self._submit(record, job, initial.digest))
        return job_id

    def _submit(self, record: JobRecord, job: Job, model: str) -> None:
        """A person submits until the job is known."""
        if any(one.job_id == record.job_id for one in self.coordinator.store.jobs()):
            self._submitted += 1
            return
        if self.coordinator.serving:
            self.coordinator.submit(record, job, model)
        self.later(40.0, lambda: self._submit(record, job, model))

    def _cancel(self, job_id: str) -> None:
        live = self.coordinator.live.get(job_id)
        if not self.coordinator.serving or live is None:
            return
        self.coordinator.take(
            live,
            lambda _, now: None if now.has_ended else e.CancelRequested("somebody"),
        )

    def job_failed(self, job_id: str) -> None:
        """People take most failed jobs up again."""
        if self.random.random() < 0.8:
            self._to_resume += 1
            self.later(self.random.uniform(1.0, 90.0), lambda: self._resume(job_id))

    def _resume(self, job_id: str) -> None:
        if not self.coordinator.serving:
            self.later(10.0, lambda: self._resume(job_id))
            return
        self._to_resume -= 1
        self.faults.note("job_resumed")
        self.coordinator.resume_job(job_id)

    def limit_raised(self, account: str) -> None:
        """Where a limit is raised, people submit anew what its budget had ended."""
        spent = [
            job_id
            for job_id, phase in self.checker.shadows.items()
            if isinstance(phase, Ended) and phase.status == "budget_exhausted"
        ]
        if spent and len(self.jobs) < JOBS_MAX and self.random.random() < 0.7:
            before = self.random.choice(spent)
            after_s = self.random.uniform(0.5, 20.0)
            job_id = self._plan(self.specs[before], Model(f"initial of {before}", ()), after_s)
            self.faults.note("job_after_raise")
            self.note(f"{account} was raised: {job_id} is to do what {before} could not")

    def _leave(self, node: Node) -> None:
        self.note(f"{node.name} leaves for good")
        self.faults.note("node_left")
        node.gone = True
        node.crash("it leaves")

    def _happen(self, kind: str) -> None:
        dice = self.random
        node = dice.choice(list(self.nodes.values()))
        self.faults.note(kind)
        match kind:
            case "crash":
                dice.choice([self.coordinator, node]).crash("out of the blue")
            case "partition":
                self.network.block(node.name, (TO_COORDINATOR, TO_NODE), dice.uniform(2.0, 120.0))
            case "one_way_partition":
                way = dice.choice([TO_COORDINATOR, TO_NODE])
                self.network.block(node.name, (way,), dice.uniform(2.0, 120.0))
            case "policy_changed":
                what = dice.choice([node.steward.forbid, node.steward.lower])
                what()
                self.note(f"{node.name} policy: {what.__name__}")
                if dice.random() < 0.7:
                    self.later(dice.uniform(1.0, 90.0), node.steward.allow)
            case "limit_raised":
                self.desk.begin(node)
            case "stop":
                node.stop()
            case "clock_jump":
                self.coordinator.clock_offset_s += dice.uniform(-60.0, 60.0)

    def _heal(self) -> None:
        """No further faults; what a network has swallowed breaks its streams in the end."""
        self.note("no further faults")
        if self.hostile:
            for stream in self.network.streams:
                stream.cut()

    def restart_later(self, process: Process) -> None:
        """A supervisor starts what has crashed, unless it left for good."""
        if isinstance(process, Node):
            if process.gone:
                return
            if self.now_s < self.faults.until_s and self.random.random() < 0.1:
                self.faults.note("spool_lost")
                self.note(f"{process.name} loses its spool")
                process.disk_.lose_spool()
            if self.now_s < self.faults.until_s:
                process.clock_offset_s += self.random.uniform(-20.0, 20.0)

        def restart() -> None:
            if not process.up and not (isinstance(process, Node) and process.gone):
                process.start()

        self.later(self.random.choice([1.0, 5.0, 20.0, 90.0]), restart)
