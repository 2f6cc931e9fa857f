"""What a node's ledger knows besides its entries, taken over into a copy that takes its place.

A copy holds every entry of the ledger that it replaces, and may be older all the same: what a
steward has refused since, or a dispute that is not settled, is in no entry. Only what keeps orders
out, or proves something about the coordinator, is taken over: that a project was let in since is
forgotten, and it is asked about again. SQLite is used by the caller's thread.
"""

from node_agent.ledger.disputes import EVERY_ACCOUNT
from node_agent.state.state import State


def take_over(copied: State, present: State) -> None:
    """Let a copy know what the ledger in its place knows.

    Disputes are taken over where the copy holds no further entry: one that does was made later, and
    may have been settled.
    """
    raises = present.ledger.raise_counts()
    for kept in present.ledger.accounts():
        # What the policy has lowered since.
        copied.ledger.lower(kept.account, kept.epsilon_limit, raises.get(kept.account, 0))
        name, highest = kept.account.partition("/")[2], present.coordinator_limits
        copied.coordinator_limits.keep({}, {name: highest.highest_of(kept.account)})
    # A copy that caught up from the coordinator's chain does not know the sources.
    for paid in present.payers.payments():
        copied.payers.note(paid)
    copied.approvals.take_refusals(present.approvals)
    copied.mandates.take_over(present.mandates)
    for row in present.attempts.all():
        if row.state == "refused" and copied.attempts.find(row.order.attempt_id) is None:
            said = {"outcome": row.outcome, "reason": row.reason, "message": row.message}
            copied.attempts.add(row.order, "refused", 0, **said)
    copied.witnessed.take_checkpoints(present.witnessed)
    if len(copied.ledger.entries()) == len(present.ledger.entries()):
        open_there = {one.account for one in copied.disputes.all()}
        for dispute in present.disputes.all():
            if not open_there & {dispute.account, EVERY_ACCOUNT}:
                copied.disputes.add(dispute)
