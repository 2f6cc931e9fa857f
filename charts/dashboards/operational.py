"""For whoever keeps the coordinator running."""

from typing import Final

from charts.dashboards.panels import NONE_IS_GOOD, ONE, Page, Panel, Query, Row, figure, lines

STREAMS: Final = (
    "Federation/Session|Transfer/(Upload|Download)|Jobs/WatchJob|Budgets/ListEntries"
    "|Witness/ReadEntries|Diagnosis/Probe"
)
SHORT: Final = f'{ONE},method!~"{STREAMS}"'
BUCKETS: Final = f"sum by (le) (rate(request_duration_seconds_bucket{{{SHORT}}}[$__rate_interval]))"
CALLS: Final = f"rate(request_duration_seconds_count{{{ONE}}}[$__rate_interval])"

PAGE: Final = Page(
    "feddp-operational",
    "feddp / Operational",
    "Whether the coordinator answers, how fast, and what its jobs wait for.",
    (
        Row(
            "Now",
            (
                figure(
                    "Coordinators that answer",
                    f"sum(up{{{ONE}}})",
                    "Replicas whose /metrics Prometheus reads. None: see the alert "
                    "CoordinatorDown.",
                    steps=((None, "red"), (1, "green")),
                ),
                figure(
                    "Leaders",
                    f"sum(feddp_leading{{{ONE}}})",
                    "One replica leads, the others pass connections on to it. None: no job goes "
                    "on.",
                    steps=((None, "red"), (1, "green")),
                ),
                figure(
                    "Open sessions",
                    f"max(feddp_sessions{{{ONE}}})",
                    "Streams that nodes' agents hold open; one for each node that is on.",
                ),
                figure(
                    "Nodes without a session",
                    f"sum(1 - max by (node) (federated_node_health{{{ONE}}}))",
                    "Enrolled nodes that are not heard. After two minutes NodeUnhealthy names "
                    "them.",
                    steps=NONE_IS_GOOD,
                ),
                figure(
                    "Jobs that wait",
                    f"max(feddp_jobs_waiting{{{ONE}}})",
                    "Running jobs that cannot go on by themselves; `feddp job show` says for whom "
                    "each waits.",
                    steps=((None, "green"), (1, "yellow")),
                ),
                figure(
                    "Longest wait",
                    f"max(feddp_job_waiting_seconds{{{ONE}}})",
                    "Of the job that waits longest. JobWaiting fires after half an hour.",
                    "s",
                    ((None, "green"), (600, "yellow"), (1800, "red")),
                    0,
                ),
            ),
        ),
        Row(
            "Alerts and nodes",
            (
                Panel(
                    "Alerts that fire",
                    "Each has a page in docs/runbooks. Empty is good.",
                    (
                        Query(
                            "count by (alertname, severity, node, dataset, holder) "
                            '(ALERTS{alertstate="firing",job=~"$job|",namespace=~"$namespace"})',
                            "{{alertname}}",
                        ),
                    ),
                    kind="table",
                ),
                lines(
                    "Rounds in a row without a hospital",
                    f"max by (node) (feddp_node_left_out_rounds{{{ONE}}})",
                    "{{node}}",
                    "How often in a row a job went on without the node. From three on the model "
                    "drifts away from its patients (NodeLeftOut).",
                    steps=((None, "green"), (3, "red")),
                ),
            ),
        ),
        Row(
            "Calls",
            (
                Panel(
                    "Time of short calls",
                    "How long calls take but for streams, which last as long as a session or a "
                    "transfer. Above 1 s at 95 % for five minutes HighLatency fires.",
                    (
                        Query(f"histogram_quantile(0.5, {BUCKETS})", "half of them"),
                        Query(f"histogram_quantile(0.95, {BUCKETS})", "95 %"),
                    ),
                    "s",
                    ((None, "green"), (1, "red")),
                ),
                lines(
                    "Calls by how they ended",
                    f"sum by (code) ({CALLS})",
                    "{{code}}",
                    "OK but for refusals. INTERNAL is a fault of ours: the log has its incident.",
                    "reqps",
                ),
                lines(
                    "Calls by method",
                    f"sum by (method) ({CALLS})",
                    "{{method}}",
                    "Who asks for what; an open stream counts when it ends.",
                    "reqps",
                ),
                lines(
                    "Model and update bytes",
                    f"sum by (direction) (rate(feddp_transfer_bytes_total{{{ONE}}}"
                    "[$__rate_interval]))",
                    "{{direction}}",
                    "As the coordinator received and sent them; a round sends each node a model "
                    "and receives an update.",
                    "Bps",
                ),
            ),
        ),
        Row(
            "Rounds",
            (
                lines(
                    "Rounds published in an hour",
                    f'sum(increase(feddp_rounds_total{{{ONE},outcome="published"}}[1h]))',
                    "rounds",
                    "Over the last hour, all jobs together.",
                ),
                lines(
                    "Time in each phase of a round",
                    f"sum by (phase) (rate(feddp_round_duration_seconds_sum{{{ONE}}}[1h])) / "
                    f"sum by (phase) (rate(feddp_round_duration_seconds_count{{{ONE}}}[1h]))",
                    "{{phase}}",
                    "Mean over the last hour. Training is the hospitals' time; the others are "
                    "this coordinator's database and disk. Empty while no round ends.",
                    "s",
                ),
            ),
        ),
        Row(
            "The processes",
            (
                lines(
                    "CPU",
                    f"sum by (instance) (rate(process_cpu_seconds_total{{{ONE}}}"
                    "[$__rate_interval]))",
                    "{{instance}}",
                    "Processors in use. At coordinator.resources.limits.cpu it is slowed down.",
                ),
                lines(
                    "Memory",
                    f"sum by (instance) (process_resident_memory_bytes{{{ONE}}})",
                    "{{instance}}",
                    "One model and some hundred MiB, whatever the number of nodes.",
                    "bytes",
                ),
                lines(
                    "Open files of those allowed",
                    f"max by (instance) (process_open_fds{{{ONE}}} / process_max_fds{{{ONE}}})",
                    "{{instance}}",
                    "Each session takes one.",
                    "percentunit",
                    ((None, "green"), (0.8, "red")),
                    1,
                ),
            ),
        ),
    ),
)
