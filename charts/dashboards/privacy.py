"""For the privacy officer: what may still be learned from whom."""

from typing import Final

from charts.dashboards.panels import NONE_IS_GOOD, ONE, Page, Row, figure, lines

SHARE: Final = f"privacy_budget_remaining{{{ONE}}} / feddp_budget_limit_epsilon{{{ONE}}}"

PAGE: Final = Page(
    "feddp-privacy",
    "feddp / Privacy",
    "Budgets by hospital and data set. `feddp budget show` and `feddp budget verify` prove them.",
    (
        Row(
            "Now",
            (
                figure(
                    "Least budget left",
                    f"min({SHARE})",
                    "Share of its limit that the account has left which has least. A limit is "
                    "raised by two stewards of the hospital, never here.",
                    "percentunit",
                    ((None, "red"), (0.1, "yellow"), (0.25, "green")),
                    1,
                ),
                figure(
                    "Accounts with a guarantee",
                    f'max(feddp_ledger_accounts{{{ONE},guarantee="yes"}})',
                    "Of enrolled nodes: all that was released is accounted for.",
                ),
                figure(
                    "Accounts without one",
                    f'max(feddp_ledger_accounts{{{ONE},guarantee="no"}})',
                    "Released once without noise, which the hospital's policy allowed. It cannot "
                    "be undone.",
                    steps=((None, "green"), (1, "yellow")),
                ),
                figure(
                    "Charges under way",
                    f"max(feddp_ledger_open_reservations{{{ONE}}})",
                    "Reserved for attempts that have not ended; each is posted or voided.",
                ),
                figure(
                    "Disagreements",
                    "sum(max by (node, reason) (feddp_ledger_refused_accounts"
                    f'{{{ONE},reason=~"disputed|rolled_back"}}))',
                    "Accounts on which a node refuses everything because its ledger and the "
                    "coordinator's differ. See LedgerDisagreement.",
                    steps=NONE_IS_GOOD,
                ),
                figure(
                    "Damaged accounts",
                    f"max(feddp_ledger_damaged_accounts{{{ONE}}})",
                    "Their chain does not end where it should; nothing is booked on them. See "
                    "LedgerDamaged.",
                    steps=NONE_IS_GOOD,
                ),
            ),
        ),
        Row(
            "Budgets",
            (
                lines(
                    "Epsilon left",
                    f"max by (node, dataset) (privacy_budget_remaining{{{ONE}}})",
                    "{{node}} {{dataset}}",
                    "Of the account that pays for the data set: its limit minus what was posted, "
                    "at the account's own delta. Data sets of one account share it: do not add "
                    "them up. Below 0.1 PrivacyBudgetExhausted fires.",
                ),
                lines(
                    "Share of the limit that is left",
                    f"max by (node, dataset) ({SHARE})",
                    "{{node}} {{dataset}}",
                    "Hospitals hold different patients: each counts for itself, and the federation "
                    "as a whole is as far as the one that has least.",
                    "percentunit",
                    max_=1,
                ),
                lines(
                    "Limit in force",
                    f"max by (node, dataset) (feddp_budget_limit_epsilon{{{ONE}}})",
                    "{{node}} {{dataset}}",
                    "A step up is a raised limit: two stewards of the hospital signed it, and it "
                    "is an entry of the ledger.",
                ),
                lines(
                    "Charges under way",
                    f"max(feddp_ledger_open_reservations{{{ONE}}})",
                    "reserved",
                    "Back to none between rounds. One that stays belongs to an attempt whose end "
                    "nobody has seen; it counts as spent until it is posted.",
                ),
            ),
        ),
        Row(
            "Ledger",
            (
                lines(
                    "Entries in an hour by kind",
                    f"sum by (kind) (increase(feddp_ledger_entries_total{{{ONE}}}[1h]))",
                    "{{kind}}",
                    "Each release is reserved, then posted; void is what provably never opened "
                    "the data, limit a limit that was raised.",
                ),
                lines(
                    "Accounts on which nodes refuse",
                    "sum by (reason) (max by (node, reason) "
                    f"(feddp_ledger_refused_accounts{{{ONE}}}))",
                    "{{reason}}",
                    "disputed: the ledgers differ. rolled_back: the node's own went back in time. "
                    "catching_up: it reads what it lacks, and ends by itself.",
                    steps=NONE_IS_GOOD,
                ),
            ),
        ),
    ),
)
