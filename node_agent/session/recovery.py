"""What an agent goes on with after a restart, by what its state and its spool have kept."""

import structlog

from node_agent.failures import Failures
from node_agent.session import events as e
from node_agent.state.kept_attempts import AttemptRow
from node_agent.state.spool import Spool
from node_agent.state.state import State

log = structlog.get_logger(__name__)


def recover(state: State, spool: Spool, failures: Failures) -> tuple[e.Resumed, ...]:
    """Book what was lost with the process before, empty the spool of what nothing needs, and tell
    the attempts that are left. Runs in the ledger's thread."""
    for attempt_id in state.recover():
        log.warning("attempt_lost", attempt_id=attempt_id)
        row = state.attempts.find(attempt_id)
        if row is not None:
            failures.after_opening(row.order, "AGENT_RESTARTED")
    rows = state.attempts.live()
    spool.keep_only(
        {row.order.base_model_digest for row in rows}, {row.update_digest for row in rows}
    )
    return tuple(resumed(row, state) for row in rows)


def resumed(row: AttemptRow, state: State) -> e.Resumed:
    """An attempt as the machine takes it up again, with the signatures that it may send."""
    reserved = row.state == "reserved"
    return e.Resumed(
        order=row.order,
        state="reserved" if reserved else "spooled" if row.update_digest else "no_update",
        opened_at_s=row.opened_at_s,
        tick_s=row.tick_s,
        digest=row.update_digest,
        accepted=state.signature(row.order, "reserve"),
        signature=b"" if reserved else state.signature(row.order, "post"),
    )
