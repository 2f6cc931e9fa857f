"""The process that trains beside the data: `python -m node_agent.worker`, one per job and node.

Requests and answers are JSON, one a line, on stdin and stdout; everything else goes to stderr,
which is a log file of the hospital. The process ends with its stdin. Once the data is open the
only answers are "trained" and "no_update", whatever happens; the remark of the one and the detail
of the other are for the hospital and hold no value from a record.
"""

import argparse
import ctypes
import json
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, Literal, NoReturn

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from node_agent.confinement import without_network, writing_only_beneath
from node_agent.data.datasets import DataSetSpec
from node_agent.launchers.mailbox import AGENT_SILENT_S, Mailbox, Refused, requests_of
from node_agent.tasks import registry
from node_agent.tasks.no_update import NoUpdate
from privacy.releases import TRAINED, UNNOISED, Mechanism, Release
from protos import tracing
from protos.errors import FeddpError
from protos.updates import UpdateDtype

if TYPE_CHECKING:
    from node_agent.tasks.files import Room
    from node_agent.tasks.program import Order, Program, Weights

log = structlog.get_logger(__name__)

PR_SET_PDEATHSIG: Final = 1

REHEARSAL_CHEAP_S: Final = 0.25
"""A rehearsal shorter than this is done again for each attempt: the machine may be busier now."""

Answer = dict[str, Any]


class Prepare(BaseModel):
    """Load what the job needs, except the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: Literal["prepare"]
    job_id: str
    task: str
    task_hash: str
    task_config: dict[str, Any]
    data_set: DataSetSpec
    declared_n: int


class ReleaseFields(BaseModel):
    """What will leave; `privacy.releases.Release` checks the combination."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mechanism: Mechanism
    noise_multiplier: float | None = None
    sample_rate: float
    steps: int


class Attempt(BaseModel):
    """What an attempt is ordered to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: Path
    base_model_digest: str
    out: Path
    release: ReleaseFields
    declared_n: int = Field(ge=1)
    max_grad_norm: float = Field(ge=0, allow_inf_nan=False)
    proximal_mu: float = Field(ge=0, allow_inf_nan=False)
    update_dtype: UpdateDtype = "float32"
    traceparent: str = ""


class Check(Attempt):
    """Look at the order, the source's header, the round's model, the room for its update, and how
    long it takes on made-up records, before the data is open, when a fault may still be told."""

    op: Literal["check"]


class Train(Attempt):
    """Carry it out, once."""

    op: Literal["train"]
    attempt_id: str
    round: int


_REQUEST: Final[TypeAdapter[Prepare | Check | Train]] = TypeAdapter(
    Annotated[Prepare | Check | Train, Field(discriminator="op")]
)


class Worker:
    """Answers requests; holds one job's program, and through it the job's data.

    Args:
        confine: takes from the process what the job's data set does not need; called once.
    """

    def __init__(self, confine: Callable[[DataSetSpec], None] = lambda _: None) -> None:
        self._confine = confine
        self._prepared: Prepare | None = None
        self._program: Program | None = None
        self._shapes: registry.Shapes = {}
        self._base: tuple[str, Weights] | None = None
        self._room: Room | None = None
        self._attempts: set[str] = set()
        self._rehearsed: dict[int, float] = {}

    def handle(self, line: bytes) -> Answer:
        """The answer to one request line."""
        try:
            request = _REQUEST.validate_json(line)
        except ValidationError:
            log.error("request_malformed")
            return _refused("REQUEST_MALFORMED", "The worker could not read the agent's request.")
        if isinstance(request, Prepare):
            return self._prepare(request)
        began_s = time.time()
        with tracing.within(tracing.parse(request.traceparent)):
            if isinstance(request, Check):
                name, answer = "worker.check", self._check(request)
            else:
                name, answer = "worker.train", self._trained(request)
        if request.traceparent:
            # A worker reaches no network: its agent tells of it, to its hospital.
            answer = {**answer, "times": [(name, began_s, time.time())]}
        return answer

    def _trained(self, request: Train) -> Answer:
        try:
            return self._train(request)
        except NoUpdate as problem:
            kind, detail = "TASK_FAILED", str(problem)
        # From here on every failure, foreseen or not, must look the same outside.
        except Exception as error:  # noqa: BLE001
            kind, detail = _class_of(error), _place(error)
        log.warning("no_update", attempt_id=request.attempt_id, round=request.round, detail=detail)
        answer = {"op": "no_update", "attempt_id": request.attempt_id}
        return {**answer, "class": kind, "detail": detail}

    def _prepare(self, request: Prepare) -> Answer:
        if self._prepared is not None:
            if self._prepared == request:
                return {"op": "prepared"}
            return _refused("WORKER_TAKEN", "This worker is prepared for another job.")
        try:
            config = registry.parse_config(request.task, request.task_config, request.data_set)
            if registry.installed()[request.task].content_hash != request.task_hash:
                return _refused(
                    "TASK_HASH",
                    f"Task {request.task!r} is installed here with another content hash than the"
                    " order names; compare the versions of agent and job.",
                )
            if request.declared_n != request.data_set.declared_n:
                return _refused("DECLARED_N", "The order and the data set declare other sizes.")
            self._confine(request.data_set)
            program = _program(request.task, config, request.data_set)
        except FeddpError as error:
            return _refused(error.reason, error.message)
        # The data is not open yet, so that this may be told; the text of the error stays here.
        except Exception as error:  # noqa: BLE001
            log.error("prepare_failed", job_id=request.job_id, place=_place(error))
            return _refused("TASK_UNAVAILABLE", "The task cannot start on this node; see its log.")
        self._prepared, self._program = request, program
        self._shapes = registry.model_shapes(request.task, config)
        return {"op": "prepared"}

    def _check(self, request: Check) -> Answer:
        from node_agent.tasks.files import reserve_room

        prepared, program = self._prepared, self._program
        if prepared is None or program is None:
            return _refused("NOT_PREPARED", "The worker was not prepared.")
        if registry.installed()[prepared.task].reads_data:
            wrong = _wrong_header(prepared.data_set)
            if wrong is not None:
                return wrong
        try:
            self._order(prepared, program, request)
        except NoUpdate as problem:
            return _refused("TRAINING_INVALID", f"This order cannot be carried out: {problem}.")
        except FeddpError as error:
            return _refused(error.reason, error.message)
        try:
            self._base = request.base_model_digest, self._take_base(request)
        except NoUpdate as problem:
            return _refused("MODEL_INVALID", f"The round's model cannot be trained: {problem}.")
        if not reserve_room(request.out, self._shapes, request.update_dtype):
            return _refused("SPOOL_FULL", "The node's disk has no room for an update.")
        try:
            steps = request.release.steps
            if self._rehearsed.get(steps, 0.0) < REHEARSAL_CHEAP_S:
                self._rehearsed[steps] = program.rehearsal_s(prepared.declared_n, steps)
        except Exception as error:  # noqa: BLE001 - made-up data: nothing of a record is in it
            log.error("rehearsal_failed", place=_place(error))
            return _refused("TASK_UNAVAILABLE", "The task cannot train on this node; see its log.")
        return {"op": "checked", "rehearsal_s": self._rehearsed[steps]}

    def _train(self, request: Train) -> Answer:
        from node_agent.tasks.files import spool_update

        prepared, program = self._prepared, self._program
        if prepared is None or program is None:
            raise NoUpdate("the worker was not prepared")
        if request.attempt_id in self._attempts:
            raise NoUpdate("the attempt was run before; a second run would be a second release")
        self._attempts.add(request.attempt_id)
        order = self._order(prepared, program, request)
        base = self._take_base(request)
        delta = program.update(base, order)
        del base
        digest, size = spool_update(request.out, delta, self._shapes, request.update_dtype)
        log.info("trained", attempt_id=request.attempt_id, round=request.round)
        return {
            "op": "trained",
            "attempt_id": request.attempt_id,
            "digest": digest,
            "bytes": size,
            "remark": program.remark,
        }

    @staticmethod
    def _order(prepared: Prepare, program: "Program", request: Attempt) -> "Order":
        """What the program is asked for.

        Raises:
            NoUpdate, Malformed: the task cannot be asked for it.
        """
        from node_agent.tasks.program import Order

        release = Release(**request.release.model_dump())
        reads_data = registry.installed()[prepared.task].reads_data
        if reads_data == (release.mechanism == "no_data"):
            raise NoUpdate(f"task {prepared.task} cannot release by {release.mechanism}")
        if release.mechanism not in UNNOISED | TRAINED:
            raise NoUpdate(f"nothing here releases by {release.mechanism}")
        if reads_data and request.max_grad_norm == 0:
            raise NoUpdate("max_grad_norm must be above 0")
        if request.declared_n != prepared.declared_n:
            raise NoUpdate("the declared size differs from the one the worker was prepared with")
        order = Order(release, request.declared_n, request.max_grad_norm, request.proximal_mu)
        program.check(order)
        return order

    def _take_base(self, request: Attempt) -> "Weights":
        """The round's model; what a check left is given away, so that it is read once a round."""
        from node_agent.tasks.files import Room, read_base

        kept, self._base = self._base, None
        if kept is not None and kept[0] == request.base_model_digest:
            return kept[1]
        self._room = self._room or Room()
        path, digest = request.base_model, request.base_model_digest
        return read_base(path, digest, self._shapes, self._room)


def _program(task: str, config: BaseModel, data_set: DataSetSpec) -> "Program":
    """Import and build a task's program; seconds for the one that needs torch."""
    from node_agent.tasks.evaluation_config import EvaluationConfig
    from node_agent.tasks.null_config import NullConfig
    from node_agent.tasks.tabular_config import TabularConfig

    if isinstance(config, TabularConfig):
        from node_agent.tasks.tabular import TabularProgram

        return TabularProgram(config, data_set)
    if isinstance(config, EvaluationConfig):
        from node_agent.tasks.evaluation import EvaluationProgram

        return EvaluationProgram(config, data_set)
    if isinstance(config, NullConfig):
        from node_agent.tasks.null import NullProgram

        return NullProgram(config)
    raise TypeError(task)


_WRONG_HEADER: Final = {
    "SOURCE_MISSING": "is not where the node declares it",
    "SCHEMA_MISMATCH": "does not have the columns that the node declares",
    "OPT_OUT_UNREADABLE": "may not be read, as its list of patients who opted out cannot be",
}


def _wrong_header(data_set: DataSetSpec) -> Answer | None:
    """Refuse a source that lacks a declared column; which one stays in the hospital's log."""
    from node_agent.data.headers import WrongHeader, check_header

    try:
        check_header(data_set)
    except WrongHeader as error:
        log.error("source_wrong", data_set=data_set.name, reason=error.reason, detail=str(error))
        said = _WRONG_HEADER.get(error.reason, "cannot be read")
        return _refused(
            error.reason,
            f"The source of data set {data_set.name} {said}; its data steward sees with `feddp "
            "agent status` what is wrong.",
        )
    return None


def _refused(reason: str, message: str) -> Answer:
    return {"op": "refused", "reason": reason, "message": message}


def _class_of(error: Exception) -> str:
    """One of `protos.failures.AFTER_OPENING`; torch says that memory is short in its own class."""
    if type(error).__name__ == "DataProblem":
        return "DATA_PROBLEM"
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return "OUT_OF_MEMORY"
    return "TASK_FAILED"


def _place(error: Exception) -> str:
    """Class and place of an error, for the hospital; its text may quote a record and stays out.

    A `DataProblem` is written by us and holds no value.
    """
    if type(error).__name__ == "DataProblem" or isinstance(error, FeddpError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-4:]]
    return f"{type(error).__name__} at {' > '.join(places)}"


def take_stdout() -> BinaryIO:
    """The answer pipe; from now on whatever libraries print to stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def end_with_parent() -> None:
    """Ask Linux to end this process with its agent, also while it trains; elsewhere EOF does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def confine(data_set: DataSetSpec) -> None:
    """Leave no network to what trains, unless the data set is asked over it."""
    if data_set.database is not None and data_set.database.is_reached_by_network:
        log.warning("worker_network", open=True, why="the data set is asked over it")
    elif without_network():
        log.info("worker_network", open=False)
    else:
        log.warning("worker_network", open=True, why="this kernel or container forbids the filter")


def make_read_only(writable: list[Path]) -> None:
    """Leave nothing to write but the folders that the launcher names, if it names any."""
    folders = [*writable, Path(tempfile.gettempdir())]
    if not writable:
        log.warning("worker_files", read_only=False, why="the launcher asked for no limits")
    elif writing_only_beneath(folders):
        log.info("worker_files", read_only=True, but=[str(one) for one in folders])
    else:
        log.warning("worker_files", read_only=False, why="this kernel has no Landlock")


def end_with_stdin() -> None:
    """Let a thread end the process at stdin's end, even in mid-training; requests do not wake it.

    Ending at once is safe: an update appears by rename, whole or not at all.
    """
    watched = select.poll()
    watched.register(0, getattr(select, "POLLRDHUP", 0))

    def watch() -> None:
        watched.poll()
        os._exit(0)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def main() -> None:
    """Serve one job until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nice", type=int, default=0, help="added to the process's niceness")
    parser.add_argument("--memory-bytes-max", type=int, default=0, help="0: no limit")
    parser.add_argument("--writable", type=Path, action="append", default=[])
    parser.add_argument("--mailbox", type=Path, help="speak by files instead of stdin and stdout")
    parser.add_argument("--silent-s", type=float, default=AGENT_SILENT_S)
    parser.add_argument("--log", type=Path, help="instead of stderr")
    options = parser.parse_args()
    if options.log is not None:
        descriptor = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 2)
    answers = take_stdout()
    if options.mailbox is None:
        end_with_parent()
    os.nice(options.nice)
    # A core file would be a copy of patients' records.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if options.memory_bytes_max:
        limit = options.memory_bytes_max
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            tracing.log_ids,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # Torch says so of every model whose input is data, in the log that a hospital reads.
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    # Before there is a second thread, which would keep what it may.
    make_read_only(options.writable)
    worker = Worker(confine)
    if options.mailbox is not None:
        serve_mailbox(worker, Mailbox(options.mailbox), options.silent_s)
    end_with_stdin()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(worker.handle(line)).encode() + b"\n")
        answers.flush()


def serve_mailbox(worker: Worker, box: Mailbox, silent_s: float) -> NoReturn:
    """Serve one job until the folder goes, or its agent is silent."""
    try:
        box.take()
    except Refused as refused:
        log.error("mailbox_refused", detail=str(refused))
        sys.exit(1)
    requests = requests_of(box, silent_s)
    while True:
        number, line = requests.get()
        try:
            box.post("answer", number, worker.handle(line))
        except OSError:
            log.error("answer_not_written", number=number)
            sys.exit(1)


if __name__ == "__main__":
    main()
