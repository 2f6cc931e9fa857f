"""The coordinator in the simulation: its life, the sessions of nodes, their calls, and the time.

What the rpc handlers do is done here in virtual time.
"""

from typing import Any

from coordinator.jobspec import Job
from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds import machine, participation
from coordinator.rounds.effects import reserve_statement
from coordinator.rounds.live import LiveJob, job_from_json, plan_of, replay
from coordinator.rounds.phases import Attempt, AttemptState, RoundRecord, Selecting, Training
from coordinator.store.jobs import RUNNING, JobRecord
from privacy.ledger import signature_ok
from protos.errors import (
    Conflict,
    FeddpError,
    Malformed,
    NotAllowed,
    NotFound,
    TooLate,
    Unavailable,
)
from protos.feddp.v1 import federation_pb2 as pb
from tests.simulation.coordinator_sessions import Greeter, ends
from tests.simulation.network import Reply, Stream

TICK_S = 2.0
SURVEY_AGAIN_S = 5.0


class Coordinator(Greeter):
    """One process; what it must not forget is in `store` and `blobs`."""

    def start(self) -> None:
        """Take up every job where its journal stands."""
        super().start()
        self.began_at_s = self.world.now_s
        for record in self.store.jobs():
            if record.status == RUNNING:
                self.live[record.job_id] = self.reload(record)
        for live in self.live.values():
            self._take_up(live)
        self.commit(lambda: None, lambda _: self._serve())
        self.later(TICK_S, self._tick)

    def _take_up(self, live: LiveJob) -> None:
        def then(fault: Exception | None) -> None:
            if fault is None:
                self.carry_out(live, machine.resume(live.phase))
            else:
                self.crash("it cannot write at its start")

        self.take(live, e.CoordinatorRestarted(), then)

    def _serve(self) -> None:
        self.serving = True

    def submit(self, record: JobRecord, job: Job, model: str) -> None:
        """Begin a job; its record and first step commit together."""
        event, now_s = e.JobSubmitted(model), self.clock()
        phase, asked = machine.start(plan_of(job), event, now_s)

        def work() -> None:
            with self.store.transaction():
                self.store.add_job(record)
                self.store.append_all(record.job_id, 0, now_s, [event])
            self.world.note(f"submitted {record.job_id} of {job.dataset}")

        def then(_: None) -> None:
            live = self.live[record.job_id] = LiveJob(record, job, phase, 1)
            self.carry_out(live, asked)

        self.commit(work, then)

    # Sessions

    def hear(self, stream: Stream, message: pb.AgentMessage) -> None:
        """Take what a node says."""
        if not self.up or not self.serving or stream.server_life != self.life:
            return
        node = stream.node.name
        if message.WhichOneof("message") == "hello":
            self.commit(
                lambda: self.greet(stream, message.hello), lambda x: self.welcome(stream, x)
            )
            return
        session = self.sessions.get(node)
        if session is None or session.stream is not stream:
            return
        session.heard_at_s = self.world.now_s
        try:
            self.hear_of(stream, message)
        except FeddpError as error:
            self.world.note(f"coordinator refuses a message of {node}: {error.reason}")

    def hear_of(self, stream: Stream, message: pb.AgentMessage) -> None:
        """One message of a session."""
        node, attempt_id = stream.node.name, ""

        def tell(fault: Exception | None) -> None:
            ends(stream)(fault)
            if fault is None:
                self.tell_closed(node, attempt_id, live)

        match message.WhichOneof("message"):
            case "order_accepted":
                accepted = message.order_accepted
                live, record, attempt = self.find(accepted.attempt_id, node)
                self.check(live, record, attempt, "reserve", accepted.reserve_signature)
                event: e.Event = e.OrderWasAccepted(accepted.attempt_id, accepted.reserve_signature)
                self.note(live, event)
            case "order_refused":
                refused = message.order_refused
                attempt_id, signature = refused.attempt_id, refused.void_signature
                live, record, attempt = self.find(attempt_id, node)
                event = e.NoUpdateReceived(attempt_id, b"", refused.reason, refused.message)
                if signature:
                    self.check(live, record, attempt, "void", signature)
                    event = e.OrderWasRefused(
                        attempt_id,
                        refused.reason,
                        refused.message,
                        signature,
                        refused.steps_possible,
                    )
                self.take(live, event, tell)
            case "no_update":
                empty = message.no_update
                attempt_id, signature = empty.attempt_id, empty.post_signature
                accepted_too = empty.reserve_signature
                live, record, attempt = self.find(attempt_id, node)
                self.check(live, record, attempt, "post", signature)
                if accepted_too:
                    self.check(live, record, attempt, "reserve", accepted_too)
                event = e.NoUpdateReceived(attempt_id, signature, accepted=accepted_too)
                self.take(live, event, tell)

    def tell_closed(self, node: str, attempt_id: str, live: LiveJob) -> None:
        """Tell the node how the attempt is booked, so that it can let go of it."""
        found = live.attempt(attempt_id)
        if found is not None and not found[1].is_open:
            outcome = "void" if found[1].state is AttemptState.REFUSED else "post"
            closed = pb.AttemptClosed(attempt_id=attempt_id, outcome=outcome)
            self.send(node, pb.CoordinatorMessage(attempt_closed=closed))

    def find(self, attempt_id: str, node: str) -> tuple[LiveJob, RoundRecord, Attempt]:
        """An attempt of this node; NotFound for another's."""
        live = self.job(self.store.reserved(attempt_id).job_id)
        found = live.attempt(attempt_id)
        if found is None or found[1].node != node:
            raise NotFound("ATTEMPT_UNKNOWN", f"node {node} has no attempt {attempt_id}")
        return live, *found

    def job(self, job_id: str) -> LiveJob:
        """A job, read from its journal if it had ended before this life."""
        if job_id not in self.live:
            record = next(one for one in self.store.jobs() if one.job_id == job_id)
            return self.reload(record)
        return self.live[job_id]

    def reload(self, record: JobRecord) -> LiveJob:
        """A job as its journal has it."""
        job = job_from_json(record.resolved)
        return LiveJob(record, job, *replay(plan_of(job), self.store.history(record.job_id)))

    def resume_job(self, job_id: str) -> None:
        """A person takes a failed job up again."""
        live = self.live.setdefault(job_id, self.job(job_id))
        self.take(live, e.ResumeRequested("somebody"))

    def check(
        self, live: LiveJob, record: RoundRecord, attempt: Attempt, kind: Any, signature: bytes
    ) -> None:
        """Refuse a signature that is not the node's over exactly this statement."""
        grant = e.Grant(attempt.attempt_id, attempt.offer)
        statement = reserve_statement(live, record.number, grant).resolved(kind)
        if not signature_ok(self.world.public_keys[attempt.node], statement, signature):
            raise Malformed("SIGNATURE_INVALID", "it is not the node's")

    # Calls

    def download(self, node: str, digest: str, reply: Reply) -> None:
        """A model for a node that has an order which starts from it."""
        for live in self.running():
            phase = live.phase
            starts_here = isinstance(phase, Training) and phase.course.model == digest
            if starts_here and any(a.node == node for a in phase.round.attempts):  # type: ignore[union-attr]
                reply(digest)
                return
        raise NotAllowed("NOT_ALLOWED", "no order starts from it")

    def upload(self, node: str, attempt_id: str, digest: str, reply: Reply) -> None:
        """Stage an update's bytes, durably."""
        _, _, attempt = self.find(attempt_id, node)
        if not attempt.is_open and attempt.digest != digest:
            raise TooLate("ATTEMPT_CLOSED", "it is booked")
        self.blobs.updates.setdefault(attempt_id, set()).add(digest)
        reply(digest)

    def submit_update(
        self,
        node: str,
        attempt_id: str,
        digest: str,
        signature: bytes,
        reply: Reply,
        accepted: bytes = b"",
    ) -> None:
        """The reply means that the update is journalled and posted, both on disk."""
        live, record, attempt = self.find(attempt_id, node)
        if attempt.state is AttemptState.RECEIVED:
            if attempt.digest != digest:
                raise Conflict("UPDATE_CONFLICT", "there is another update already")
            self.acknowledge(attempt_id, digest, reply)
            return
        if not attempt.is_open:
            raise TooLate("ATTEMPT_CLOSED", "it is booked")
        if digest not in self.blobs.updates.get(attempt_id, ()):
            raise Unavailable("BLOB_MISSING", "upload it first")
        self.check(live, record, attempt, "post", signature)
        if accepted:
            self.check(live, record, attempt, "reserve", accepted)
        if not self.is_sound(digest):
            refusal = Malformed("UPDATE_INVALID", "a value is not finite")
            event = e.NoUpdateReceived(attempt_id, signature, refusal.reason, refusal.message)
            self.take(live, event, lambda fault: reply(fault or refusal))
            return

        def then(fault: Exception | None) -> None:
            if fault is None:
                self.handed_in(live, attempt_id, digest, reply)
            else:
                reply(fault)

        self.take(live, e.UpdateReceived(attempt_id, digest, 40, signature, accepted), then)

    def is_sound(self, digest: str) -> bool:
        """Whether an update's values pass."""
        return not self.world.checker.damaged(digest)

    def handed_in(self, live: LiveJob, attempt_id: str, digest: str, reply: Reply) -> None:
        """Answer after the commit."""
        found = live.attempt(attempt_id)
        if found is None or found[1].is_open or found[1].digest != digest:
            reply(TooLate("ATTEMPT_CLOSED", "it is booked"))
        else:
            self.acknowledge(attempt_id, digest, reply)

    def acknowledge(self, attempt_id: str, digest: str, reply: Reply) -> None:
        """Say that the update is ours for ever."""
        self.world.checker.acknowledged(attempt_id, digest)
        reply("received")

    # Time

    def _tick(self) -> None:
        for live in self.running():
            phase = live.phase
            looking = isinstance(phase, Selecting) or live.is_waiting()
            if looking and self.world.now_s - live.surveyed_at_s >= SURVEY_AGAIN_S:
                live.surveyed_at_s = self.world.now_s
                self.carry_out(live, [c.Survey()])
            if isinstance(phase, Training):
                for event in self.due(phase):
                    self.take(live, event)
        self.later(TICK_S, self._tick)

    def due(self, phase: Training) -> list[e.Event]:
        """What the passing of time has brought about in a round, as `Rounds` finds it."""
        due: list[e.Event] = []
        now_s, number = self.clock(), phase.round.number
        quorum = len(phase.round.received) >= phase.course.plan.min_participants
        for attempt in phase.round.opened:
            if not attempt.silent and self.lost(attempt.node):
                due.append(e.NodeWasLost(attempt.node))
            elif attempt.silent and self.connected(attempt.node):
                due.append(e.NodeReturned(attempt.node))
            elif self.given_up(phase, attempt, quorum):
                due.append(e.GracePassed(number, attempt.node))
        if now_s >= phase.deadline_at_s and not phase.deadline_passed:
            due.append(e.DeadlinePassed(number))
        return due

    def given_up(self, phase: Training, attempt: Attempt, quorum: bool) -> bool:
        """Whether a round waits no longer for a node that is there."""
        if attempt.overdue or not quorum:
            return False
        return self.clock() >= participation.gives_up_at_s(phase, attempt)
