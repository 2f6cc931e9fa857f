"""What capacity planning reckons with: numbers, each with the case of `make bench`."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Constant:
    """One measured number, rounded up, of a machine with two cores that others shared.

    Attributes:
        what: what it is, for a reader.
        value: in `unit`.
        case, metric: whose result it follows from.
        per: what that result is divided by: nodes of a round, gigabytes moved, entries.
    """

    what: str
    value: float
    unit: str
    case: str
    metric: str
    per: float = 1.0


CONTROL: Final = Constant(
    "coordinator's CPU for one node's part in a round, whatever the model",
    *(4.7, "ms", "fleet-1000", "coordinator_cpu_per_node"),
)
BYTES: Final = Constant(
    "coordinator's CPU for a gigabyte that is moved, checked and averaged",
    *(1.8, "s", "null-16x100MB", "coordinator_cpu"),
    per=3.2,
)
IDLE_CPU: Final = Constant(
    "coordinator's CPU for a node that is connected and has nothing to do",
    *(0.011, "% of a core", "fleet-1000", "coordinator_idle_cpu"),
    per=1000,
)
MEMORY: Final = Constant(
    "coordinator's memory without work",
    *(121, "MiB", "null-64x40KB", "coordinator_idle_memory"),
)
SESSION: Final = Constant(
    "coordinator's memory for a connected node",
    *(120, "KiB", "fleet-1000", "memory_per_session"),
)
WORK_MEMORY: Final = Constant(
    "coordinator's memory at work, beside that, for a model of any size",
    *(32, "MiB", "null-16x100MB", "coordinator_peak_over_idle"),
)
REPLICAS: Final = Constant(
    "CPU of a leader that shares PostgreSQL and S3 with others, beside one alone",
    *(1.8, "times", "replicas-4x100MB", "leader_cpu"),
)
ROUND_SQLITE: Final = Constant(
    "tables, SQLite, for one node's part in a round",
    *(2.1, "KiB", "growth-4x40KB", "database_per_round"),
    per=4,
)
ROUND_POSTGRESQL: Final = Constant(
    "tables, PostgreSQL, for one node's part in a round",
    *(2.5, "KiB", "growth-4x40KB-postgresql", "database_per_round"),
    per=4,
)
NODE_STATE: Final = Constant(
    "a node's `state.db`, for each of its rounds",
    *(2.4, "KiB", "growth-4x40KB", "node_state_per_round"),
)
START: Final = Constant(
    "a command of `feddp` that has next to nothing to do",
    *(0.9, "s", "growth-4x40KB", "sealed_backup_time"),
)
ENTRY: Final = Constant(
    "`feddp budget verify FILE`, an entry, on two cores",
    *(34, "us", "ledger-verify-100k", "command_time"),
    per=0.1,
)
BACKUP: Final = Constant(
    "`feddp coordinator backup`, a gigabyte",
    *(11, "s", "growth-4x100MB", "backup_time"),
)
BACKUP_VERIFY: Final = Constant(
    "`feddp coordinator backup --verify`, a gigabyte, sealed or not",
    *(2.7, "s", "growth-4x100MB", "sealed_backup_verify_time"),
)
RESERVATION: Final = Constant(
    "a reservation in PostgreSQL, four writers",
    *(1.0, "ms", "ledger-4-writers-postgresql", "time_per_reservation"),
)
AGENT_MEMORY: Final = Constant(
    "an agent's memory at work, its worker apart",
    *(78, "MiB", "null-16x100MB", "agent_peak_memory"),
)
AGENT_CPU: Final = Constant(
    "an idle agent's CPU",
    *(0.1, "% of a core", "idle-4", "agent_idle_cpu"),
)

CONSTANTS: Final = (
    *(CONTROL, BYTES, IDLE_CPU, REPLICAS, MEMORY, SESSION, WORK_MEMORY),
    *(ROUND_SQLITE, ROUND_POSTGRESQL, RESERVATION, START, ENTRY, BACKUP, BACKUP_VERIFY),
    *(NODE_STATE, AGENT_MEMORY, AGENT_CPU),
)
