"""For whoever has to show that the records are complete."""

from typing import Final

from charts.dashboards.panels import NONE_IS_GOOD, ONE, Page, Panel, Query, Row, figure, lines

DAY_S: Final = 86_400
ENTRIES: Final = f"max(feddp_ledger_chain_entries{{{ONE}}})"
SIGNED: Final = f"max(feddp_ledger_countersigned_entries{{{ONE}}})"

PAGE: Final = Page(
    "feddp-compliance",
    "feddp / Compliance",
    "Whether the ledger is whole and signed, kept, and looked at. It proves nothing by itself: "
    "`feddp budget verify` does.",
    (
        Row(
            "Now",
            (
                figure(
                    "Entries in the ledger",
                    ENTRIES,
                    "Of all accounts; none is ever removed. A lower number than before is a "
                    "database that went back.",
                ),
                figure(
                    "Signed by the nodes",
                    f"{SIGNED} / {ENTRIES}",
                    "Share of the entries up to which each node has signed its chain. A node that "
                    "is off signs when it is back.",
                    "percentunit",
                    ((None, "red"), (0.5, "yellow"), (0.95, "green")),
                    1,
                ),
                figure(
                    "Disagreements",
                    "sum(max by (node, reason) (feddp_ledger_refused_accounts"
                    f'{{{ONE},reason=~"disputed|rolled_back"}}))',
                    "Accounts on which a hospital's ledger and this one differ.",
                    steps=NONE_IS_GOOD,
                ),
                figure(
                    "Damaged accounts",
                    f"max(feddp_ledger_damaged_accounts{{{ONE}}})",
                    "Accounts whose chain was cut or changed in the database.",
                    steps=NONE_IS_GOOD,
                ),
                figure(
                    "Accounts without a guarantee",
                    f'max(feddp_ledger_accounts{{{ONE},guarantee="no"}})',
                    "Patients of whom something was released without noise, as their hospital's "
                    "policy allowed.",
                    steps=((None, "green"), (1, "yellow")),
                ),
                figure(
                    "Last backup",
                    f"time() - max(feddp_backup_last_success_timestamp_seconds{{{ONE}}})",
                    "Time since it was made. See BackupOld.",
                    "s",
                    ((None, "green"), (DAY_S, "yellow"), (26 * 3600, "red")),
                    0,
                ),
            ),
        ),
        Row(
            "Records",
            (
                Panel(
                    "Entries and signatures",
                    "Both only ever rise. The gap is what nodes have not signed yet.",
                    (Query(ENTRIES, "entries"), Query(SIGNED, "signed by their node")),
                ),
                lines(
                    "Entries in a day by kind",
                    f"sum by (kind) (increase(feddp_ledger_entries_total{{{ONE}}}[1d]))",
                    "{{kind}}",
                    "reserve before each order, then post or void; limit when two stewards have "
                    "raised a limit.",
                ),
                lines(
                    "Looks at the ledger in a day",
                    "sum by (method) (increase(request_duration_seconds_count"
                    f'{{{ONE},method=~"Budgets/.*",code="OK"}}[1d]))',
                    "{{method}}",
                    "Accounts and entries that people have read, as reviews and exports do.",
                ),
                lines(
                    "Refused for want of rights, in a day",
                    "sum by (code) (increase(request_duration_seconds_count"
                    f'{{{ONE},code=~"UNAUTHENTICATED|PERMISSION_DENIED"}}[1d]))',
                    "{{code}}",
                    "Calls by somebody without that right. Access control at work, and a figure "
                    "for the access review.",
                ),
            ),
        ),
        Row(
            "Who takes part",
            (
                lines(
                    "Nodes by status",
                    f"max by (status) (feddp_nodes{{{ONE}}})",
                    "{{status}}",
                    "`feddp node list` names them, for the record of processing.",
                ),
                lines(
                    "People and programs",
                    f"max(feddp_users{{{ONE}}})",
                    "joined",
                    "Only their number; `feddp user list` is for the access review.",
                ),
            ),
        ),
    ),
)
