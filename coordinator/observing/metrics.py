"""What the coordinator shows to Prometheus. Every label has few, known values."""

from collections.abc import Mapping
from typing import Final, Literal, get_args

from google.protobuf.descriptor import FileDescriptor
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

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
Holder = Literal["server", "issuing", "root", "gateway"]
NodeStatus = Literal["invited", "enrolled", "disabled"]
Refusal = Literal["disputed", "rolled_back", "catching_up"]

JOB_STATUSES: Final = (
    "running",
    "completed",
    "converged",
    "budget_exhausted",
    "failed",
    "cancelled",
)
OTHER: Final = "other"
NODE_STATUSES: Final[tuple[NodeStatus, ...]] = get_args(NodeStatus)
REFUSALS: Final[tuple[Refusal, ...]] = get_args(Refusal)
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
        self._epoch = Gauge(
            "feddp_epoch",
            "How often this coordinator was restored from a backup, and one more.",
            registry=self.registry,
        )
        self._backup = Gauge(
            "feddp_backup_last_success_timestamp_seconds",
            "When what the newest backup holds was read, in seconds since 1970; 0 for none.",
            registry=self.registry,
        )
        self._disk_free = self._gauge(
            "feddp_disk_free_bytes",
            "Room left on the disk of the folder of models, which with SQLite has the tables, too.",
        )
        self._disk_size = self._gauge("feddp_disk_size_bytes", "Size of that disk.")
        self._store = Gauge(
            "feddp_store_reachable",
            "1 while the shared store of models and updates answers, and where there is none.",
            registry=self.registry,
        )
        self._store.set(1)
        self._jobs = Gauge(
            "feddp_jobs",
            "Jobs by status; a job that waits counts as running.",
            ("status",),
            registry=self.registry,
        )
        self._jobs_waiting = self._gauge(
            "feddp_jobs_waiting", "Running jobs that wait for nodes, budgets or their stewards."
        )
        self._job_waiting = self._gauge(
            "feddp_job_waiting_seconds",
            "How long the job that waits longest has waited; 0 while none does.",
        )
        self._limit = self._gauge(
            "feddp_budget_limit_epsilon",
            "The limit in force of the account that pays for a data set, at the account's delta.",
            ("node", "dataset"),
        )
        self._accounts = self._gauge(
            "feddp_ledger_accounts",
            "Accounts of enrolled nodes by whether they still have a guarantee: yes or no.",
            ("guarantee",),
        )
        self._reservations = self._gauge(
            "feddp_ledger_open_reservations",
            "Charges that are reserved and neither posted nor voided.",
        )
        self._chains = self._gauge(
            "feddp_ledger_chain_entries", "Entries in the chains of all accounts."
        )
        self._countersigned = self._gauge(
            "feddp_ledger_countersigned_entries",
            "Entries up to which each account's node has signed its chain, over all accounts.",
        )
        self._refused = self._gauge(
            "feddp_ledger_refused_accounts",
            "Accounts on which the node refuses every order: its ledger and the coordinator's"
            " disagree (disputed), its own went back in time (rolled_back), or it is reading what"
            " it lacks (catching_up).",
            ("node", "reason"),
        )
        self._unreconciled = self._gauge(
            "feddp_ledger_unreconciled_accounts",
            "Accounts of an enrolled node that wait, after a restore, for the node to hand in what"
            " it released after the backup; nothing is reserved on them.",
            ("node",),
        )
        self._nodes = self._gauge("feddp_nodes", "Nodes by status.", ("status",))
        self._quarantined = self._gauge(
            "feddp_nodes_quarantined",
            "Nodes that are shut out since an old certificate of theirs was shown.",
        )
        self._sessions = self._gauge("feddp_sessions", "Open sessions of nodes.")
        self._left_out = self._gauge(
            "feddp_node_left_out_rounds",
            "Rounds in a row that a job published without the node's update; the most of the jobs"
            " that run or ended within the last hour.",
            ("node",),
        )
        self._users = self._gauge(
            "feddp_users", "People and programs that have joined; never one by one."
        )
        self._node_expiry = self._gauge(
            "feddp_node_certificate_expiry_timestamp_seconds",
            "When the newest certificate of an enrolled node ends, in seconds since the epoch.",
            ("node",),
        )
        self._node_life = self._gauge(
            "feddp_node_certificate_life_seconds",
            "How long a node's certificate is valid when it is issued.",
        )
        self._expiry = self._gauge(
            "feddp_certificate_expiry_timestamp_seconds",
            "When the certificate of the server, of the issuing authority, of the root or of a"
            " gateway ends, in seconds since the epoch.",
            ("holder",),
        )
        ProcessCollector(registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

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
        self._limit.labels(node, dataset).set(epsilon_limit)

    def node_health(self, node: str, healthy: bool) -> None:
        """Show whether an enrolled node is heard."""
        self._health.labels(node).set(1 if healthy else 0)

    def forget_node(self, node: str) -> None:
        """Drop a node that is disabled, so that no alert fires for it for ever."""
        for gauge in (
            self._health,
            self._budget,
            self._limit,
            self._refused,
            self._unreconciled,
            self._left_out,
            self._node_expiry,
        ):
            gauge.remove_by_labels({"node": node})

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

    def jobs(self, numbers: Mapping[str, int]) -> None:
        """Show how many jobs there are by status; those of a status that is missing are none."""
        for status in JOB_STATUSES:
            self._jobs.labels(status).set(numbers.get(status, 0))

    def jobs_waiting(self, number: int, longest_s: float) -> None:
        """Show how many jobs wait, and how long the first of them has."""
        self._jobs_waiting.set(number)
        self._job_waiting.set(longest_s)

    def accounts(self, guaranteed: int, without: int, reservations: int) -> None:
        """Show how many accounts have a guarantee or have lost it, and what is reserved."""
        self._accounts.labels("yes").set(guaranteed)
        self._accounts.labels("no").set(without)
        self._reservations.set(reservations)

    def chains(self, entries: int, countersigned: int) -> None:
        """Show how long all chains are, and how far their nodes have signed them."""
        self._chains.set(entries)
        self._countersigned.set(countersigned)

    def refused_accounts(self, node: str, numbers: Mapping[Refusal, int]) -> None:
        """Show on how many accounts a node refuses every order; what is missing counts as 0."""
        for reason in REFUSALS:
            self._refused.labels(node, reason).set(numbers.get(reason, 0))

    def unreconciled_accounts(self, node: str, number: int) -> None:
        """Show how many of a node's accounts are not handed in since the coordinator's restore."""
        self._unreconciled.labels(node).set(number)

    def nodes(self, numbers: Mapping[NodeStatus, int], quarantined: int, sessions: int) -> None:
        """Show how many nodes there are by status, are shut out, and are connected."""
        for status in NODE_STATUSES:
            self._nodes.labels(status).set(numbers.get(status, 0))
        self._quarantined.set(quarantined)
        self._sessions.set(sessions)

    def left_out(self, node: str, rounds: int) -> None:
        """Show of how many rounds in a row a node was left out."""
        self._left_out.labels(node).set(rounds)

    def users(self, number: int) -> None:
        """Show how many people have joined."""
        self._users.set(number)

    def node_certificate(self, node: str, ends_at_s: float) -> None:
        """Show when a node's newest certificate ends."""
        self._node_expiry.labels(node).set(ends_at_s)

    def node_certificate_life(self, life_s: float) -> None:
        """Show for how long nodes' certificates are issued."""
        self._node_life.set(life_s)

    def certificate(self, holder: Holder, ends_at_s: float) -> None:
        """Show when one of the installation's own certificates ends."""
        self._expiry.labels(holder).set(ends_at_s)

    def disk(self, free_bytes: int, size_bytes: int) -> None:
        """Show how much room models and updates have."""
        self._disk_free.set(free_bytes)
        self._disk_size.set(size_bytes)

    def store(self, *, is_reachable: bool) -> None:
        """Show whether this replica's last attempt at the shared store was answered."""
        self._store.set(is_reachable)

    def operations(self, *, paused: bool, backup_at_s: float, epoch: int) -> None:
        """Show whether work is paused, when the newest backup was made, and the epoch."""
        self._epoch.set(epoch)
        self._paused.set(paused)
        self._backup.set(backup_at_s)
