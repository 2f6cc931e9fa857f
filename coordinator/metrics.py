"""What the coordinator shows to Prometheus. Every label has few, known values."""

from typing import Final, Literal

from google.protobuf.descriptor import FileDescriptor
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from protos.feddp.v1 import (
    budgets_pb2,
    diagnosis_pb2,
    enrollment_pb2,
    federation_pb2,
    jobs_pb2,
    models_pb2,
    nodes_pb2,
    operations_pb2,
    renewal_pb2,
    transfer_pb2,
    users_pb2,
    witness_pb2,
)

Phase = Literal["reserving", "training", "aggregating", "publishing"]
Outcome = Literal["published", "below_quorum", "cancelled", "failed"]
Direction = Literal["received", "sent"]
EntryKind = Literal["reserve", "post", "void", "limit"]

OTHER: Final = "other"
_FILES: Final[tuple[FileDescriptor, ...]] = (
    budgets_pb2.DESCRIPTOR,
    diagnosis_pb2.DESCRIPTOR,
    enrollment_pb2.DESCRIPTOR,
    federation_pb2.DESCRIPTOR,
    jobs_pb2.DESCRIPTOR,
    models_pb2.DESCRIPTOR,
    nodes_pb2.DESCRIPTOR,
    operations_pb2.DESCRIPTOR,
    renewal_pb2.DESCRIPTOR,
    transfer_pb2.DESCRIPTOR,
    users_pb2.DESCRIPTOR,
    witness_pb2.DESCRIPTOR,
)
METHODS: Final = frozenset(
    f"{service.name}/{method.name}"
    for file in _FILES
    for service in file.services_by_name.values()
    for method in service.methods
)
"""`Service/Method` of every rpc; a path that a stranger makes up counts as "other"."""

_ROUND_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


class Metrics:
    """One process's metrics, in a registry of their own so that two can live in one test."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "request_duration_seconds",
            "Time from the arrival of an rpc to its end; open streams count when they end.",
            ("method", "code"),
            registry=self.registry,
        )
        self._budget = Gauge(
            "privacy_budget_remaining",
            "Epsilon left of a data set's account: the limit in force minus the booked epsilon, the"
            " filter's figure of what was posted, both at the account's delta. 0 once the account"
            " has no guarantee.",
            ("node", "dataset"),
            registry=self.registry,
        )
        self._health = Gauge(
            "federated_node_health",
            "1 while the node has an open session and is heard in time, else 0.",
            ("node",),
            registry=self.registry,
        )
        self._round = Histogram(
            "feddp_round_duration_seconds",
            "Time that a round spent in a phase.",
            ("phase",),
            buckets=_ROUND_S,
            registry=self.registry,
        )
        self._rounds = Counter(
            "feddp_rounds_total", "Rounds by how they ended.", ("outcome",), registry=self.registry
        )
        self._transfer = Counter(
            "feddp_transfer_bytes_total",
            "Model and update bytes, as the coordinator received and sent them.",
            ("direction",),
            registry=self.registry,
        )
        self._entries = Counter(
            "feddp_ledger_entries_total",
            "Ledger entries written since the start.",
            ("kind",),
            registry=self.registry,
        )
        self._damaged = Gauge(
            "feddp_ledger_damaged_accounts",
            "Accounts whose row and chain do not belong together; nothing is booked on them, and"
            " the log names them.",
            registry=self.registry,
        )
        self._leading = Gauge(
            "feddp_leading",
            "1 while this coordinator is the one that leads, 0 while it passes connections on.",
            registry=self.registry,
        )
        self._paused = Gauge(
            "feddp_paused",
            "1 while all work is paused: no order goes out.",
            registry=self.registry,
        )
        self._backup = Gauge(
            "feddp_backup_last_success_timestamp_seconds",
            "When what the newest backup holds was read, in seconds since 1970; 0 for none.",
            registry=self.registry,
        )
        self._jobs = Gauge(
            "feddp_jobs",
            "Jobs by status; a job that waits counts as running.",
            ("status",),
            registry=self.registry,
        )

    def leads(self) -> None:
        """This replica leads from now on."""
        self._leading.set(1)

    def request(self, method: str, code: str, duration_s: float) -> None:
        """Count one rpc.

        Args:
            method: gRPC's path, `/feddp.v1.Service/Method`.
            code: name of the gRPC status, `OK` or another.
        """
        name = method.rpartition(".")[2]
        self._requests.labels(name if name in METHODS else OTHER, code).observe(duration_s)

    def budget(
        self, node: str, dataset: str, epsilon_limit: float, epsilon_booked: float | None
    ) -> None:
        """Show what is left; `epsilon_booked` None means that the account has no guarantee."""
        left = 0.0 if epsilon_booked is None else max(0.0, epsilon_limit - epsilon_booked)
        self._budget.labels(node, dataset).set(left)

    def node_health(self, node: str, healthy: bool) -> None:
        """Show whether an enrolled node is heard."""
        self._health.labels(node).set(1 if healthy else 0)

    def forget_node(self, node: str) -> None:
        """Drop a node that is disabled, so that no alert fires for it for ever."""
        self._health.remove_by_labels({"node": node})
        self._budget.remove_by_labels({"node": node})

    def round_phase(self, phase: Phase, duration_s: float) -> None:
        """Count the time that a round spent in `phase`."""
        self._round.labels(phase).observe(duration_s)

    def round_ended(self, outcome: Outcome) -> None:
        """Count a round."""
        self._rounds.labels(outcome).inc()

    def transferred(self, direction: Direction, bytes_: int) -> None:
        """Count model or update bytes."""
        self._transfer.labels(direction).inc(bytes_)

    def ledger_entries(self, kind: EntryKind, number: int) -> None:
        """Count entries that are in the ledger."""
        self._entries.labels(kind).inc(number)

    def damaged_accounts(self, number: int) -> None:
        """Show how many accounts are damaged."""
        self._damaged.set(number)

    def operations(self, *, paused: bool, backup_at_s: float) -> None:
        """Show whether work is paused, and when the newest backup was made."""
        self._paused.set(paused)
        self._backup.set(backup_at_s)

    def jobs(self, status: str, count: int) -> None:
        """Show how many jobs have `status`."""
        self._jobs.labels(status).set(count)
