"""For each alert, series with which it fires and series with which it does not.

Series are promtool's notation, a sample a minute: `0x30` is 0 for half an hour, `_x5` no sample.
The time begins at 0, so that an end in seconds since the epoch is an end in seconds from the start.
"""

from dataclasses import dataclass, field
from typing import Final

JOB: Final = 'job="feddp-coordinator"'
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Case:
    """What is scraped, and what fires then.

    Attributes:
        series: samples by series, without the job's label.
        at: promtool's time at which it is looked.
        fires: (labels besides severity and, but for NO_JOB, job, description) of each that fires.
    """

    alert: str
    series: dict[str, str]
    at: str
    fires: list[tuple[dict[str, str], str]] = field(default_factory=list)


def _calls(method: str, fast: int, all_: int) -> dict[str, str]:
    """Calls a minute of one method: `fast` of them within a second, all within 2.5."""
    name = "request_duration_seconds_bucket"
    return {
        f'{name}{{method="{method}",code="OK",le="1.0"}}': f"0+{fast}x30",
        f'{name}{{method="{method}",code="OK",le="2.5"}}': f"0+{all_}x30",
        f'{name}{{method="{method}",code="OK",le="+Inf"}}': f"0+{all_}x30",
    }


BUDGET = 'privacy_budget_remaining{node="alpha",dataset="cohort"}'
HEALTH = 'federated_node_health{node="alpha"}'
REFUSED = "feddp_ledger_refused_accounts"
UNRECONCILED = 'feddp_ledger_unreconciled_accounts{node="alpha"}'
EXPIRY = "feddp_certificate_expiry_timestamp_seconds"
NODE_EXPIRY = 'feddp_node_certificate_expiry_timestamp_seconds{node="alpha"}'
LIFE = {"feddp_node_certificate_life_seconds": f"{7 * DAY_S}x900"}
LEFT_OUT = 'feddp_node_left_out_rounds{node="alpha"}'
FREE, SIZE = "feddp_disk_free_bytes", "feddp_disk_size_bytes"
STORE = "feddp_store_reachable"
BACKUP = "feddp_backup_last_success_timestamp_seconds"
NODE = {"node": "alpha"}
NO_JOB = {"job": ""}
"""Of what is absent Prometheus knows no labels."""

CASES: Final = (
    Case(
        "ReplicaDown",
        {'up{instance="a"}': "1x20", 'up{instance="b"}': "1x2 0x20"},
        "10m",
        [
            (
                {"instance": "b"},
                "b has given no /metrics for five minutes. Others may serve; one less can fail.",
            )
        ],
    ),
    # It was started again.
    Case("ReplicaDown", {'up{instance="a"}': "1x2 0x3 1x20"}, "10m"),
    Case(
        "DiskFilling",
        {f'{FREE}{{instance="a"}}': "9x20", f'{SIZE}{{instance="a"}}': "100x20"},
        "10m",
        [
            (
                {"instance": "a"},
                "Of the disk of models and updates 9% is left; when it is full no update is taken "
                "and no round published.",
            )
        ],
    ),
    Case("DiskFilling", {FREE: "10x20", SIZE: "100x20"}, "10m"),
    Case(
        "StoreUnreachable",
        # The one that leads cannot use it; the others do not try.
        {f'{STORE}{{instance="a"}}': "1x2 0x10", f'{STORE}{{instance="b"}}': "1x20"},
        "6m",
        [
            (
                {},
                "No update is taken and no job goes on until it answers; nothing is lost or "
                "trained again.",
            )
        ],
    ),
    # Away for a minute.
    Case("StoreUnreachable", {STORE: "1x2 0x1 1x10"}, "6m"),
    Case(
        "CoordinatorDown",
        {"up": "0x10"},
        "5m",
        [
            (
                NO_JOB,
                "No /metrics for two minutes. Jobs wait and go on by themselves once it is back.",
            )
        ],
    ),
    Case("CoordinatorDown", {"up": "1 0 1x10"}, "5m"),
    Case(
        "NoLeader",
        {'feddp_leading{instance="a"}': "0x10", 'feddp_leading{instance="b"}': "0x10"},
        "5m",
        [
            (
                {},
                "Replicas answer but none of them leads, so that no job goes on and nobody can "
                "connect.",
            )
        ],
    ),
    Case(
        "NoLeader",
        {'feddp_leading{instance="a"}': "0x10", 'feddp_leading{instance="b"}': "1x10"},
        "5m",
    ),
    Case(
        "HighLatency",
        _calls("Jobs/ListJobs", 90, 100),
        "20m",
        [({}, "5 % of short calls take 1.75s or longer.")],
    ),
    Case("HighLatency", _calls("Jobs/ListJobs", 96, 100), "20m"),
    # Sessions and transfers of more than a second, all of them, beside few short calls.
    Case(
        "HighLatency",
        _calls("Jobs/ListJobs", 10, 10)
        | _calls("Federation/Session", 0, 100)
        | _calls("Transfer/Upload", 0, 100)
        | _calls("Jobs/WatchJob", 0, 100),
        "20m",
    ),
    Case(
        "PrivacyBudgetExhausted",
        {BUDGET: "0.05x10"},
        "5m",
        [
            (
                NODE | {"dataset": "cohort"},
                "Epsilon 0.05 is left of the account that pays for cohort at alpha; jobs on it "
                "will be refused.",
            )
        ],
    ),
    Case("PrivacyBudgetExhausted", {BUDGET: "0.1x10"}, "5m"),
    Case(
        "NodeUnhealthy",
        {HEALTH: "1 0x10"},
        "5m",
        [(NODE, "Node alpha has had no session for two minutes.")],
    ),
    # It came back in time; and a replica that does not lead shows no node at all.
    Case("NodeUnhealthy", {HEALTH: "1 0 1x10"}, "5m"),
    # It was disabled.
    Case("NodeUnhealthy", {HEALTH: "0 _x10"}, "10m"),
    Case(
        "LedgerDisagreement",
        {
            f'{REFUSED}{{node="alpha",reason="disputed"}}': "2x10",
            f'{REFUSED}{{node="beta",reason="rolled_back"}}': "1x10",
        },
        "5m",
        [
            (
                NODE | {"reason": "disputed"},
                "Node alpha refuses every order on 2 of its accounts (disputed).",
            ),
            (
                {"node": "beta", "reason": "rolled_back"},
                "Node beta refuses every order on 1 of its accounts (rolled_back).",
            ),
        ],
    ),
    # Reading what a restored copy lacks ends by itself.
    Case(
        "LedgerDisagreement",
        {
            f'{REFUSED}{{node="alpha",reason="disputed"}}': "0x10",
            f'{REFUSED}{{node="alpha",reason="catching_up"}}': "1x10",
        },
        "5m",
    ),
    Case(
        "LedgerDamaged",
        {"feddp_ledger_damaged_accounts": "1x10"},
        "5m",
        [
            (
                {},
                "The chains of 1 accounts do not end where their rows say; nothing is booked on "
                "them.",
            )
        ],
    ),
    Case("LedgerDamaged", {"feddp_ledger_damaged_accounts": "0x10"}, "5m"),
    Case(
        "AccountsNotHandedIn",
        {UNRECONCILED: "2x80"},
        "62m",
        [
            (
                NODE,
                "Nothing is reserved on 2 accounts of node alpha until it has handed in what it "
                "released after the backup.",
            )
        ],
    ),
    # It came back within the hour; and it was disabled, so that it is not waited for.
    Case("AccountsNotHandedIn", {UNRECONCILED: "2x50 0x30"}, "62m"),
    Case("AccountsNotHandedIn", {UNRECONCILED: "2x50 _x30"}, "62m"),
    Case(
        "NodeQuarantined",
        {"feddp_nodes_quarantined": "0 1x10"},
        "1m",
        [
            (
                {},
                "An old certificate was shown for 1 nodes; they are shut out until a person has "
                "looked.",
            )
        ],
    ),
    Case("NodeQuarantined", {"feddp_nodes_quarantined": "1 0x10"}, "1m"),
    Case(
        "CertificateExpiring",
        {f'{EXPIRY}{{holder="server"}}': f"{13 * DAY_S}x60"},
        "0h20m",
        [
            (
                {"holder": "server"},
                "The certificate of the server ends in 12d 23h 40m 0s; then no node can connect.",
            )
        ],
    ),
    Case(
        "CertificateExpiring",
        {
            f'{EXPIRY}{{holder="server"}}': f"{15 * DAY_S}x60",
            f'{EXPIRY}{{holder="issuing"}}': f"{DAY_S}x60",
        },
        "0h20m",
    ),
    Case(
        "AuthorityExpiring",
        {f'{EXPIRY}{{holder="issuing"}}': f"{80 * DAY_S}x60"},
        "0h20m",
        [
            (
                {"holder": "issuing"},
                "The issuing certificate of the authority ends in 79d 23h 40m 0s.",
            )
        ],
    ),
    Case(
        "AuthorityExpiring",
        {
            f'{EXPIRY}{{holder="issuing"}}': f"{91 * DAY_S}x60",
            f'{EXPIRY}{{holder="root"}}': f"{1000 * DAY_S}x60",
            f'{EXPIRY}{{holder="server"}}': f"{DAY_S}x60",
        },
        "0h20m",
    ),
    Case(
        "NodeCertificateExpiring",
        LIFE | {NODE_EXPIRY: f"{DAY_S}x900"},
        "0h30m",
        [
            (
                NODE,
                "Node alpha has 13.99% of its certificate's life left and should have renewed it.",
            )
        ],
    ),
    # Renewal is due with 33 %, and an agent may be off for a while.
    Case("NodeCertificateExpiring", LIFE | {NODE_EXPIRY: f"{2 * DAY_S}x900"}, "0h30m"),
    Case(
        "NodeLeftOut",
        {LEFT_OUT: "0 1 2 3x10"},
        "3m",
        [
            (
                NODE,
                "Node alpha was left out of 3 rounds in a row; the model learns nothing from its "
                "patients.",
            )
        ],
    ),
    Case("NodeLeftOut", {LEFT_OUT: "0 1 2 0 1 2"}, "5m"),
    Case(
        "JobWaiting",
        {"feddp_job_waiting_seconds": "0+60x40"},
        "0h31m",
        [({}, "The job that waits longest has waited for 31m 0s.")],
    ),
    Case("JobWaiting", {"feddp_job_waiting_seconds": "0+60x29 0x20"}, "0h31m"),
    Case(
        "BackupOld",
        {BACKUP: "0x2000"},
        "28h",
        [({}, "What the ledger has booked since then would be lost with the database.")],
    ),
    # Every replica shows it, and one that does not lead may show 0.
    Case(
        "BackupOld",
        {f'{BACKUP}{{instance="a"}}': "0x2000", f'{BACKUP}{{instance="b"}}': "0x600 36000x1400"},
        "28h",
    ),
)
