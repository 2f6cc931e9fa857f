"""What the agent does with its attempts when the steward's files have changed."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from node_agent.policy.judgement import Refusal
from node_agent.session.attempts import Agent, Attempt, Phase
from node_agent.session.driver import Driver
from tests.node_agent.samples import order


@pytest.mark.parametrize("stays", [True, False])
def test_an_attempt_that_ends_while_the_rules_are_looked_at_is_let_go(stays: bool) -> None:
    """Its end came first, and the agent goes on; the others that may not go on are stopped."""
    attempts = tuple(Attempt(order(one, job_id=one), Phase.TRAINING) for one in ("a1", "a2"))
    left = Agent(attempts=attempts)
    stopped: list[str] = []

    async def judged(work: Callable[..., Any], orders: list[Any]) -> Any:
        if not stays:  # the coordinator closes it meanwhile
            fake._agent = left.without("a1")
        return work(orders)

    fake = SimpleNamespace(
        _agent=left,
        _applied=(),
        _parts=SimpleNamespace(
            ledger=SimpleNamespace(run=judged),
            admission=SimpleNamespace(
                withdrawn=lambda orders: [(one, Refusal("NOT_ALLOWED", "-")) for one in orders]
            ),
            steward=SimpleNamespace(fault="", slip=""),
        ),
        _training=SimpleNamespace(stop=stopped.append),
    )
    asyncio.run(Driver._apply_rules(cast(Driver, fake), ("files",)))
    assert stopped == (["a1", "a2"] if stays else ["a2"])
    assert fake._applied == ("files",)
