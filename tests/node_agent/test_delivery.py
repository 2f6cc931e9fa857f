"""What becomes of a spooled update when its attempt is closed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from node_agent.session.delivery import Delivery
from node_agent.state.spool import Spool
from node_agent.state.state import State
from privacy.filters import make_filter
from protos.content import digest_of
from tests.node_agent.samples import LEDGER_KEY, NODE, order

FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
UPDATE = b"without noise two updates may be the same"
DIGEST = digest_of(UPDATE)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    yield made
    made.close()


def spool_update(state: State, spool: Spool, attempt_id: str, job_id: str) -> None:
    """An attempt that has trained, and whose update waits to go out."""
    state.reserve(order(attempt_id, job_id=job_id), FILTER)
    state.open(attempt_id, 100.0, 0.5)
    spool.out(attempt_id).write_bytes(UPDATE)
    assert spool.keep_update(attempt_id, DIGEST, len(UPDATE))
    assert state.spool(attempt_id, DIGEST)


def test_an_update_stays_until_the_last_attempt_that_has_it_is_closed(
    state: State, tmp_path: Path
) -> None:
    """Two jobs got the same bytes, which are in the spool once: the end of one costs the other
    nothing."""
    spool = Spool(tmp_path / "spool")
    unused = cast(Any, None)
    delivery = Delivery(
        unused, state, unused, unused, spool, dispatch=lambda _: None, find=lambda _: None
    )
    spool_update(state, spool, "a1", "job-1")
    spool_update(state, spool, "a2", "job-2")
    delivery._close_now("a1", "post")
    assert spool.update(DIGEST).read_bytes() == UPDATE
    delivery._close_now("a1", "post")  # the coordinator says it again
    assert spool.update(DIGEST).read_bytes() == UPDATE
    delivery._close_now("a2", "post")
    assert not spool.update(DIGEST).exists()
