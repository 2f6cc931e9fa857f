"""For whoever answers for who gets in."""

from typing import Final

from charts.dashboards.panels import NONE_IS_GOOD, ONE, Page, Row, Steps, figure, lines

DAY_S: Final = 86_400
EXPIRY: Final = f"feddp_certificate_expiry_timestamp_seconds{{{ONE}}}"
NODE_EXPIRY: Final = f"feddp_node_certificate_expiry_timestamp_seconds{{{ONE}}}"
REFUSED: Final = f'{ONE},code=~"UNAUTHENTICATED|PERMISSION_DENIED"'
OWN: Final[Steps] = ((None, "red"), (14 * DAY_S, "yellow"), (30 * DAY_S, "green"))

PAGE: Final = Page(
    "feddp-security",
    "feddp / Security",
    "Certificates, joins, and calls that were refused.",
    (
        Row(
            "Now",
            (
                figure(
                    "Nodes shut out",
                    f"max(feddp_nodes_quarantined{{{ONE}}})",
                    "An old certificate of theirs was shown: a copy of the folder, or a thief. See "
                    "NodeQuarantined.",
                    steps=NONE_IS_GOOD,
                ),
                figure(
                    "Nodes that have not joined",
                    f'max(feddp_nodes{{{ONE},status="invited"}})',
                    "They have, or had, a token that nobody has joined with.",
                ),
                figure(
                    "Disabled nodes",
                    f'max(feddp_nodes{{{ONE},status="disabled"}})',
                    "Every call of theirs is refused until `feddp node enable`.",
                ),
                figure(
                    "Server's certificate ends in",
                    f'min({EXPIRY[:-1]},holder="server"}}) - time()',
                    "Renewed by itself unless server.ssl_cert names a file. See "
                    "CertificateExpiring.",
                    "s",
                    OWN,
                    0,
                ),
                figure(
                    "Authority ends in",
                    f'min({EXPIRY[:-1]},holder=~"issuing|root"}}) - time()',
                    "The root or the issuing certificate, whichever ends first. See "
                    "AuthorityExpiring.",
                    "s",
                    ((None, "red"), (90 * DAY_S, "yellow"), (180 * DAY_S, "green")),
                    0,
                ),
                figure(
                    "First node's certificate ends in",
                    f"min({NODE_EXPIRY}) - time()",
                    "Agents renew when a third of the life remains, 56 hours of a week. Below 0 a "
                    "node was off too long; it can still replace it for "
                    "security.recovery_days.",
                    "s",
                    ((None, "red"), (0, "yellow"), (DAY_S, "green")),
                    0,
                ),
            ),
        ),
        Row(
            "Who is refused",
            (
                lines(
                    "Refused calls a minute by reason",
                    f"sum by (code) (rate(request_duration_seconds_count{{{REFUSED}}}"
                    "[$__rate_interval])) * 60",
                    "{{code}}",
                    "UNAUTHENTICATED: no certificate or token that holds. PERMISSION_DENIED: a "
                    "known caller without that right. A few are people's mistakes; many are "
                    "somebody who tries.",
                ),
                lines(
                    "Refused calls a minute by method",
                    f"sum by (method) (rate(request_duration_seconds_count{{{REFUSED}}}"
                    "[$__rate_interval])) * 60",
                    "{{method}}",
                    "What was tried; other is a path that does not exist.",
                ),
            ),
        ),
        Row(
            "Certificates",
            (
                lines(
                    "Joins and renewals in an hour",
                    "sum by (method, code) (increase(request_duration_seconds_count"
                    f'{{{ONE},method=~"(Enrollment|Renewal)/.*"}}[1h]))',
                    "{{method}} {{code}}",
                    "A node renews about twice a week; joins are rare, and somebody made a token "
                    "for each.",
                ),
                lines(
                    "Time left of nodes' certificates",
                    f"min by (node) ({NODE_EXPIRY}) - time()",
                    "{{node}}",
                    "A saw-tooth: down to a third of the life, then up. One that goes on down has "
                    "an agent that is off or cannot renew.",
                    "s",
                    min_=None,
                ),
                lines(
                    "Time left of the coordinator's certificates",
                    f"min by (holder) ({EXPIRY}) - time()",
                    "{{holder}}",
                    "server, issuing authority, root, and a gateway's where there is one.",
                    "s",
                    min_=None,
                ),
                lines(
                    "Nodes by status",
                    f"max by (status) (feddp_nodes{{{ONE}}})",
                    "{{status}}",
                    "A change without a ticket is worth a question; the log says who did it.",
                ),
            ),
        ),
    ),
)
