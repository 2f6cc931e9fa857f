"""One attempt at a time in the job's worker: prepare, open, train, spool."""

import asyncio
import math
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import structlog

from node_agent.failures import Failures
from node_agent.launchers.base import Limits, StartWorker, Worker, WorkerDied
from node_agent.outcome_time import (
    DEADLINE_SHARE,
    OFFERED_SHARE,
    TRAINING_SHARE,
    outcome_after_s,
    steps_that_fit,
)
from node_agent.policy.admission import Admission, Terms
from node_agent.policy.judgement import Refusal
from node_agent.policy.orders import Order
from node_agent.session import events as e
from node_agent.session.ledger_thread import LedgerThread
from node_agent.session.traces import AttemptTraces
from node_agent.state.notes import ROWS_LEFT_OUT_NOTE
from node_agent.state.spool import Spool
from node_agent.state.state import State
from protos import tracing
from protos.failures import told

log = structlog.get_logger(__name__)

STARTS_MAX: Final = 2
"""A worker that dies before the data is open has told nothing, so that it may be tried again."""

REHEARSED_S_MIN: Final = 600.0
REHEARSED_DEADLINES: Final = 10
"""A rehearsal of so many of its round's deadlines, or of ten minutes where that is longer, is no
slow one: its worker hangs. It would keep the node from every job."""

TERMS_RECENT_S: Final = 1.0
"""An attempt that begins later than so long after its admission asks for its terms anew. Either
way they are asked for once more with the opening."""

_NONE: Final = ("", "")
"""Class and detail of an attempt that did not fail."""


class Impossible(Exception):
    """The data was not opened. May be told to the coordinator."""

    def __init__(self, reason: str, message: str, steps_possible: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.steps_possible = steps_possible


class Training:
    """Runs attempts, each in its job's worker, which is kept for the job's next round.

    Args:
        dispatch: takes the events that answer `OpenAndTrain`.
        wanted: whether an attempt is still to be worked at.
        clock: seconds; goes on across restarts.
        traces: the spans of this process.
    """

    def __init__(
        self,
        *,
        failures: Failures,
        state: State,
        ledger: LedgerThread,
        admission: Admission,
        spool: Spool,
        start_worker: StartWorker,
        logs: Path,
        limits: Limits,
        dispatch: Callable[[e.Event], None],
        wanted: Callable[[str], bool],
        clock: Callable[[], float],
        traces: AttemptTraces,
    ) -> None:
        self._failures = failures
        self._state = state
        self._ledger = ledger
        self._admission = admission
        self._spool = spool
        self._start_worker = start_worker
        self._logs = logs
        self._limits = limits
        self._dispatch = dispatch
        self._wanted = wanted
        self._clock = clock
        self._traces = traces
        self._turn = asyncio.Lock()
        self._admitted: tuple[str, Terms, float] | None = None
        self._remarks: dict[str, str] = {}
        self._workers: dict[str, tuple[Worker, dict[str, Any]]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._asked_of: set[asyncio.Task[dict[str, Any]]] = set()

    def admitted(self, attempt_id: str, terms: Terms | None) -> None:
        """Take the terms that an order was just reserved on: if its work begins at once they need
        not be asked for again before the worker is ready."""
        self._admitted = None if terms is None else (attempt_id, terms, self._clock())

    async def run(self, order: Order, due_at_s: float) -> None:
        """Work at one attempt; ends in one of the events that `OpenAndTrain` names."""
        async with self._turn:
            if not self._wanted(order.attempt_id):
                return
            try:
                with self._traces.span("prepare", order.attempt_id):
                    worker, terms, rehearsal_s = await self._made_ready(order, due_at_s)
                outcome_s = outcome_after_s(terms.tick_s, rehearsal_s)
                # From here on to the outcome's moment nothing that is told of begins or ends.
                at_s = self._clock()
                opened = await self._ledger.run(self._open, order, terms, at_s, outcome_s)
                if isinstance(opened, Refusal):
                    raise Impossible(opened.reason, opened.message)
            except Impossible as error:
                if not self._wanted(order.attempt_id):
                    # What has ended the attempt found no worker where that was just starting.
                    self.stop(order.job_id)
                await asyncio.to_thread(self._spool.drop_out, order.attempt_id)
                self._dispatch(
                    e.WorkImpossible(
                        order.attempt_id,
                        error.reason,
                        told(error.reason, error.message),
                        error.steps_possible,
                    )
                )
                return
            if not opened:
                self.stop(order.job_id)
                await asyncio.to_thread(self._spool.drop_out, order.attempt_id)
                return
            self._dispatch(e.DataOpened(order.attempt_id, at_s, outcome_s))
            with self._traces.work("work", order.attempt_id):
                digest, size, failure = await self._train(worker, order, at_s, outcome_s)
            with self._traces.work("spool", order.attempt_id):
                share = terms.share_failure_class
                if not await self._end(order, digest, size, failure, shares=share):
                    # However it failed: one that is kept would begin the next attempt sooner than
                    # one that died, and tell outside which it was.
                    self._stop_this(order.job_id, worker)

    async def _made_ready(self, order: Order, due_at_s: float) -> tuple[Worker, Terms, float]:
        """The worker, what the policy says now, and seconds that a rehearsal took."""
        terms = self._recent_terms(order.attempt_id)
        if terms is None:
            found = await self._ledger.run(self._admission.terms, order)
            if isinstance(found, Refusal):
                raise Impossible(found.reason, found.message)
            terms = found
        worker, rehearsal_s = await self._rehearsed(order, terms)
        self._check_time(order, terms.tick_s, rehearsal_s, due_at_s - self._clock())
        return worker, terms, rehearsal_s

    def _recent_terms(self, attempt_id: str) -> Terms | None:
        kept, self._admitted = self._admitted, None
        if kept is None or kept[0] != attempt_id or self._clock() - kept[2] > TERMS_RECENT_S:
            return None
        return kept[1]

    def _open(self, order: Order, terms: Terms, at_s: float, outcome_s: float) -> bool | Refusal:
        """Note that the data is about to be opened; a refusal, and nothing is noted, if the terms
        are others by now: getting ready took a while. False if the attempt is not reserved."""
        newer = self._admission.terms(order)
        if isinstance(newer, Refusal):
            return newer
        if newer != terms:
            return Refusal(
                "POLICY_CHANGED",
                "The node's policy changed while the order was prepared; order again.",
            )
        return self._state.open(order.attempt_id, at_s, outcome_s)

    def stop(self, job_id: str, attempt_id: str = "") -> None:
        """End a job's worker, whatever it does; the job's next attempt gets a new one.

        Args:
            attempt_id: what it may write for this one until it is gone is removed.
        """
        if job_id in self._workers:
            worker, _ = self._workers.pop(job_id)
            task = asyncio.get_running_loop().create_task(self._end_worker(worker, attempt_id))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def stop_all(self) -> None:
        """End every worker."""
        for job_id in list(self._workers):
            self.stop(job_id)

    async def ended(self) -> None:
        """Wait until every stopped worker is gone."""
        await asyncio.gather(*self._ending)
        await asyncio.gather(*self._asked_of, return_exceptions=True)

    async def _end_worker(self, worker: Worker, attempt_id: str) -> None:
        await worker.stop()
        if attempt_id:
            await asyncio.to_thread(self._spool.drop_out, attempt_id)

    async def _ready_worker(self, order: Order, terms: Terms) -> Worker:
        limits = terms.work.within(self._limits)
        wanted = {
            "op": "prepare",
            "job_id": order.job_id,
            "task": order.task,
            "task_hash": order.task_hash,
            "task_config": order.task_config(),
            "data_set": terms.data_set.model_dump(mode="json"),
            "declared_n": order.declared_n,
        }
        kept_with = {**wanted, "limits": asdict(limits)}
        worker, prepared = self._workers.get(order.job_id, (None, {}))
        if worker is not None and prepared == kept_with:
            return worker
        self.stop(order.job_id)
        why = ""
        for _ in range(STARTS_MAX):
            if not self._wanted(order.attempt_id):
                break
            try:
                log_path = self._logs / f"worker-{order.job_id}.log"
                worker = await self._start_worker(order.job_id, log_path, limits)
                self._workers[order.job_id] = (worker, kept_with)
                answer = await worker.request(wanted)
            except (WorkerDied, OSError) as error:
                self.stop(order.job_id)
                if not self._wanted(order.attempt_id):
                    break  # it was ended because its attempt is over
                why = str(error)
                log.error("worker_failed", job_id=order.job_id, detail=why)
                continue
            if answer.get("op") == "prepared":
                return worker
            self.stop(order.job_id)
            raise Impossible(
                str(answer.get("reason", "WORKER_FAILED")),
                str(answer.get("message", "The worker gave no reason.")),
            )
        if why:
            self._failures.note_why(order.attempt_id, why)
        raise Impossible("WORKER_FAILED", "The node could not start a worker; its log says why.")

    async def _rehearsed(self, order: Order, terms: Terms) -> tuple[Worker, float]:
        """The worker, and seconds that a rehearsal took there. One that was kept from the round
        before may be gone by now, or be about to go; a new one takes its place, once."""
        may_be_gone = order.job_id in self._workers
        while True:
            worker = await self._ready_worker(order, terms)
            try:
                return worker, await self._check_model(worker, order)
            except (WorkerDied, OSError) as error:
                self.stop(order.job_id)
                wanted = self._wanted(order.attempt_id)
                if wanted and may_be_gone:
                    may_be_gone = False
                    log.warning("worker_replaced", job_id=order.job_id, detail=str(error))
                    continue
                if wanted:
                    log.error("worker_failed", job_id=order.job_id, detail=str(error))
                    self._failures.note_why(order.attempt_id, str(error))
                raise Impossible(
                    "WORKER_FAILED", "The node's worker ended before it began; its log says why."
                ) from None

    async def _check_model(self, worker: Worker, order: Order) -> float:
        """Seconds that the attempt takes on made-up records of the declared size.

        A model that does not fit is found out here, before the data is open, and costs nothing.
        """
        limit_s = max(REHEARSED_S_MIN, REHEARSED_DEADLINES * order.deadline_s)
        try:
            async with asyncio.timeout(limit_s):
                answer = await worker.request({"op": "check", **self._asked(order)})
        except TimeoutError:
            raise WorkerDied(f"it hung: it had not answered after {limit_s:.0f} s") from None
        self._traces.worked(tracing.here(), answer, order.attempt_id)
        if answer.get("op") != "checked":
            raise Impossible(
                str(answer.get("reason", "WORKER_FAILED")),
                str(answer.get("message", "The worker gave no reason.")),
            )
        return _number(answer, "rehearsal_s")

    def _asked(self, order: Order) -> dict[str, Any]:
        """What a worker is told of an attempt."""
        release = order.release
        return {
            "base_model": str(self._spool.model(order.base_model_digest)),
            "base_model_digest": order.base_model_digest,
            "out": str(self._spool.out(order.attempt_id)),
            "release": {
                "mechanism": release.mechanism,
                "noise_multiplier": release.noise_multiplier,
                "sample_rate": release.sample_rate,
                "steps": release.steps,
            },
            "declared_n": order.declared_n,
            "max_grad_norm": order.max_grad_norm,
            "proximal_mu": order.proximal_mu,
            "update_dtype": order.update_dtype,
            "traceparent": _traceparent(tracing.here()),
        }

    async def _train(
        self, worker: Worker, order: Order, at_s: float, outcome_s: float
    ) -> tuple[str, int, tuple[str, str]]:
        """(digest, bytes) of what the worker wrote, ("", 0) for no update, whatever the cause; and
        class and detail of that, for the hospital.

        What is not done shortly before the outcome is due is not done at all: a later outcome
        would tell how long the data took. That counts from `at_s`, as the outcome does: booking the
        opening may have taken a while.
        """
        attempt = {"attempt_id": order.attempt_id, "round": order.round}
        request = {"op": "train", **attempt, **self._asked(order)}
        fields = {"job_id": order.job_id, **attempt}
        limit_s = None
        if outcome_s > 0:
            limit_s = max(0.0, at_s + outcome_s * TRAINING_SHARE - self._clock())
        asked = asyncio.create_task(self._answer_of(worker, request))
        self._asked_of.add(asked)
        asked.add_done_callback(self._answered)
        try:
            # Not by cancelling: that waits until the worker is gone, a cluster's for seconds.
            await asyncio.wait({asked}, timeout=limit_s)
            if not asked.done():
                limit_s = outcome_s * TRAINING_SHARE
                log.error("training_too_long", limit_s=limit_s, **fields)
                self._stop_this(order.job_id, worker, order.attempt_id)
                return "", 0, ("TOO_LONG", f"limit {limit_s:.0f} s")
            answer = asked.result()
            self._traces.worked(tracing.here(), answer, order.attempt_id)
            if answer.get("op") != "trained":
                detail = str(answer.get("detail", ""))
                log.warning("no_update", detail=detail, **fields)
                return "", 0, (str(answer.get("class", "")), detail)
            # Only who has read the records can say that all of them read as declared.
            if order.release.mechanism != "no_data":
                await self._remarked(order, str(answer.get("remark", "")))
            return str(answer.get("digest")), int(_number(answer, "bytes")), _NONE
        except (WorkerDied, OSError) as error:
            if not self._wanted(order.attempt_id):
                log.info("work_given_up", **fields)
                return "", 0, _NONE
            log.error("worker_failed", detail=str(error), **fields)
            killed = isinstance(error, WorkerDied) and error.exit_code == -signal.SIGKILL
            return "", 0, ("OUT_OF_MEMORY" if killed else "WORKER_DIED", str(error))
        except asyncio.CancelledError:
            asked.cancel()
            raise

    async def _answer_of(self, worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
        return await worker.request(request)

    def _answered(self, asked: "asyncio.Task[dict[str, Any]]") -> None:
        """Nobody may wait for it any more: its error was told, or is one of a worker that was
        stopped."""
        self._asked_of.discard(asked)
        if not asked.cancelled():
            asked.exception()

    async def _remarked(self, order: Order, remark: str) -> None:
        """Keep what a worker says of the records, for the hospital."""
        if self._remarks.get(order.data_set) == remark:
            return
        self._remarks[order.data_set] = remark
        if remark:
            log.warning("rows_left_out", data_set=order.data_set, do="`feddp agent logs JOB`")
        note = ROWS_LEFT_OUT_NOTE + order.data_set
        await self._ledger.run(self._state.notes.keep, note, remark)

    def _stop_this(self, job_id: str, worker: Worker, attempt_id: str = "") -> None:
        """End a worker, unless another one has taken its place."""
        if self._workers.get(job_id, (None,))[0] is worker:
            self.stop(job_id, attempt_id)

    def _check_time(
        self, order: Order, tick_s: float, rehearsal_s: float, until_due_s: float
    ) -> None:
        steps = order.release.steps
        if steps_that_fit(tick_s, rehearsal_s, steps, until_due_s * DEADLINE_SHARE) >= steps:
            return
        # A second order comes with the whole deadline, and finds the worker up and rehearsed.
        whole_s = order.deadline_s * OFFERED_SHARE
        possible = steps_that_fit(tick_s, rehearsal_s, steps, whole_s)
        if possible == 0:
            raise Impossible(
                "TOO_SLOW", "Not one local step fits into the round's deadline on this node."
            )
        if possible == steps:
            raise Impossible(
                "STARTED_LATE",
                "Getting ready took this node too much of the round's deadline; it is ready now.",
                possible,
            )
        raise Impossible(
            "STEPS_TOO_MANY",
            f"{possible} of {steps} local steps fit into the round's deadline on this node, as "
            "measured on made-up records of the declared size.",
            possible,
        )

    async def _end(
        self, order: Order, digest: str, size: int, failure: tuple[str, str], *, shares: bool
    ) -> bool:
        """Book what came of an attempt, and say so; whether it gave an update."""
        kept, signature = await self._ledger.run(self._book, order.attempt_id, digest, size)
        if kept != digest:
            log.error("update_unreadable", job_id=order.job_id, attempt_id=order.attempt_id)
            failure = ("UPDATE_UNREADABLE", "")
        # One that the coordinator has closed did not fail: its worker was ended for that.
        if not kept and self._wanted(order.attempt_id):
            self._failures.after_opening(order, *failure)
        if signature is not None:
            said = failure[0] if shares and not kept else ""
            self._dispatch(e.TrainingEnded(order.attempt_id, kept, signature, said))
        return bool(kept)

    def _book(self, attempt_id: str, digest: str, size: int) -> tuple[str, bytes | None]:
        """(the digest, if its bytes are in the spool; the signature over the post statement, if
        the attempt was not closed meanwhile). The bytes are durable before they are booked."""
        if self._spool.keep_update(attempt_id, digest, size):
            signature = self._state.spool(attempt_id, digest)
            if signature is None and not self._state.attempts.others_have(digest, attempt_id):
                self._spool.drop_update(digest)
            return digest, signature
        return "", self._state.lose(attempt_id)


def _number(answer: dict[str, Any], name: str) -> float:
    """A number >= 0 that a worker tells; 0 for none.

    Raises:
        WorkerDied: it is none; as with any nonsense, the worker ends, and not the agent.
    """
    found = answer.get(name, 0)
    if not isinstance(found, int | float) or not 0 <= found < math.inf:
        raise WorkerDied(f"the worker answered nonsense for {name}")
    return found


def _traceparent(place: tracing.Place | None) -> str:
    """For the worker, whose log lines say the same span; empty for none."""
    return place.traceparent if place is not None else ""
