"""For whoever asks what the federation is used for."""

from typing import Final

from charts.dashboards.panels import ONE, Page, Row, figure, lines

HEALTH: Final = f"max by (node) (federated_node_health{{{ONE}}})"
ENDED_WELL: Final = f'max by (status) (feddp_jobs{{{ONE},status=~"completed|converged"}})'
PUBLISHED: Final = f'feddp_rounds_total{{{ONE},outcome="published"}}'

PAGE: Final = Page(
    "feddp-business",
    "feddp / Business",
    "Who takes part, what is trained, and for how long the budgets last. Nothing here is computed "
    "from patients' records.",
    (
        Row(
            "Now",
            (
                figure(
                    "Hospitals",
                    f'max(feddp_nodes{{{ONE},status="enrolled"}})',
                    "Nodes that have joined and are not disabled.",
                ),
                figure(
                    "Of them connected",
                    f"avg({HEALTH})",
                    "Only a hospital that is connected can take part in a round.",
                    "percentunit",
                    ((None, "red"), (0.5, "yellow"), (0.9, "green")),
                    0,
                ),
                figure(
                    "People and programs",
                    f"max(feddp_users{{{ONE}}})",
                    "Who may submit or watch jobs; only their number.",
                ),
                figure(
                    "Jobs under way",
                    f'max(feddp_jobs{{{ONE},status="running"}})',
                    "Those that wait are among them.",
                ),
                figure(
                    "Models trained",
                    f"sum({ENDED_WELL})",
                    "Jobs that ended with the rounds that were planned, or had converged.",
                ),
                figure(
                    "Least budget left",
                    f"min(privacy_budget_remaining{{{ONE}}} / feddp_budget_limit_epsilon{{{ONE}}})",
                    "When it is used up that hospital takes part no more.",
                    "percentunit",
                    ((None, "red"), (0.1, "yellow"), (0.25, "green")),
                    0,
                ),
            ),
        ),
        Row(
            "Work",
            (
                lines(
                    "Jobs by status",
                    f"max by (status) (feddp_jobs{{{ONE}}})",
                    "{{status}}",
                    "All that were ever submitted. budget_exhausted: too few hospitals could "
                    "still pay for a round.",
                ),
                lines(
                    "Rounds published in a day",
                    f"sum(increase({PUBLISHED}[1d]))",
                    "rounds",
                    "The federation's output, all jobs together.",
                ),
                lines(
                    "Time from one round to the next model",
                    f"sum(rate(feddp_round_duration_seconds_sum{{{ONE}}}[1d])) / "
                    f'sum(rate(feddp_round_duration_seconds_count{{{ONE},phase="publishing"}}[1d]))',
                    "mean",
                    "Mean of a day's rounds, from reserving to publishing.",
                    "s",
                ),
                lines(
                    "Model data moved in a day",
                    f"sum by (direction) (increase(feddp_transfer_bytes_total{{{ONE}}}[1d]))",
                    "{{direction}}",
                    "What the network is paid for; no patient's record is in it.",
                    "bytes",
                ),
            ),
        ),
        Row(
            "Taking part",
            (
                lines(
                    "Hospitals connected",
                    f"sum({HEALTH})",
                    "connected",
                    "Fewer than a job's min_participants, and it waits.",
                ),
                lines(
                    "Budget left by data set",
                    f"min by (dataset) (privacy_budget_remaining{{{ONE}}} / "
                    f"feddp_budget_limit_epsilon{{{ONE}}})",
                    "{{dataset}}",
                    "Of the hospital that has least: how far a model on it can still be trained "
                    "with everybody.",
                    "percentunit",
                    ((None, "red"), (0.1, "green")),
                    1,
                ),
            ),
        ),
    ),
)
