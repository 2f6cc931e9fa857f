"""Every scenario, the cheap ones first: a point is killed in the first one that passes it."""

from typing import Final

from tests.chaos import acts, mishaps, papers

SCENARIOS: Final[dict[str, acts.Scenario]] = {
    one.__name__: one
    for one in (
        acts.office,
        acts.echo,
        acts.rolling,
        acts.plain,
        acts.followed,
        acts.bulk,
        acts.again,
        acts.restart,
        acts.cancel,
        acts.stopped,
        acts.enrolment,
        acts.renewal,
        papers.approval,
        papers.quarantine,
        papers.recovery,
        papers.person,
        papers.colleague,
        papers.authority,
        mishaps.refuse,
        mishaps.withdraw,
        mishaps.lost_update,
        mishaps.asked_again,
        mishaps.away,
        mishaps.hung,
        mishaps.overdue,
        mishaps.torn,
        mishaps.orderly,
        mishaps.broken,
        mishaps.mended,
        mishaps.spent,
    )
}
