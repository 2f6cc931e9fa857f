"""What an agent's driver works with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from node_agent.launchers.base import Limits, StartWorker
from node_agent.policy.admission import Admission
from node_agent.policy.steward import Steward
from node_agent.session.ledger_thread import LedgerThread
from node_agent.session.traces import AttemptTraces
from node_agent.state.spool import Spool
from node_agent.state.state import State
from node_agent.tasks.registry import TaskInfo


@dataclass(frozen=True, slots=True)
class Parts:
    """What a driver works with.

    Attributes:
        channel: to the coordinator at `address`, "host:port".
        tasks: the installed tasks.
        open_apart: see `Ways`.
        unavailable: data set -> why it cannot be used now, as the coordinator may know it.
        traces: the spans of this process.
    """

    channel: grpc.aio.Channel
    address: str
    state: State
    ledger: LedgerThread
    steward: Steward
    admission: Admission
    spool: Spool
    start_worker: StartWorker
    logs: Path
    limits: Limits
    tasks: Callable[[], Mapping[str, TaskInfo]]
    unavailable: Callable[[], Mapping[str, str]] = dict
    traces: AttemptTraces = field(default_factory=AttemptTraces)
    open_apart: Callable[[str], grpc.aio.Channel] | None = None
