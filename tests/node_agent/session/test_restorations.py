"""What a session does with what a Welcome says of the past."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from node_agent.ledger.rollback import Signed
from node_agent.session import events as e
from node_agent.session.attempts import Attempt, Phase
from node_agent.session.ledger_thread import LedgerThread
from node_agent.session.restorations import Restorations
from node_agent.state.state import State
from privacy.entries import append, sign
from privacy.epochs import Epoch, sign_epoch
from privacy.filters import make_filter
from protos.errors import FeddpError
from tests.node_agent.samples import LEDGER_KEY, NODE, order

COORDINATOR_KEY = Ed25519PrivateKey.generate()


def restorations_of(
    state: State,
    ledger: LedgerThread,
    suspended: Callable[[], None] = lambda: None,
    turn_away: Callable[[FeddpError], None] = lambda _: None,
    attempts: Sequence[Attempt] = (),
    dispatch: Callable[[e.Event], None] = lambda _: None,
) -> Restorations:
    """Of a node of which nobody hears but what a test listens to."""
    return Restorations(
        state,
        ledger,
        NODE,
        clock=lambda: 2000.0,
        attempts=lambda: attempts,
        dispatch=dispatch,
        turn_away=turn_away,
        suspended=suspended,
    )


@pytest.mark.parametrize("is_known", [True, False])
def test_a_welcome_that_tells_of_a_release_that_the_ledger_lacks_suspends_it(
    tmp_path: Path, is_known: bool
) -> None:
    """The node has signed it: an older disk was put back, and the coordinator is to hear that
    orders are refused before it sends one."""
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    told: list[str] = []
    post = order().statement(NODE, "post")
    if is_known:
        state.reserve(order(), make_filter("gdp", 0, 10.0, 1.0e-5))
        state.open("a1", 1.0, 0.5)
        state.lose("a1")

    async def scene() -> None:
        ledger = LedgerThread()
        restorations = restorations_of(state, ledger, lambda: told.append("suspended"))
        await restorations.welcomed(
            [], (Signed(None, (append(post, None, sign(LEDGER_KEY, post)),)),)
        )
        ledger.close()

    asyncio.run(scene())
    assert state.memory.is_rolled_back is not is_known
    assert told == ([] if is_known else ["suspended"])
    state.close()


def test_an_order_right_behind_a_welcome_is_judged_by_what_that_says(tmp_path: Path) -> None:
    """The coordinator was restored: the node owes it what it has released, and no order is judged
    before the ledger knows that."""
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    state.reserve(order(), make_filter("gdp", 0, 10.0, 1.0e-5))
    state.witnessed.keep_coordinator_key(COORDINATOR_KEY.public_key().public_bytes_raw())
    restored = sign_epoch(COORDINATOR_KEY, None, None, (), restored_at_s=1000, backup_made_at_s=900)

    async def scene() -> None:
        ledger = LedgerThread()
        restorations = restorations_of(state, ledger)
        await restorations.recall()
        welcomed = asyncio.create_task(restorations.welcomed([restored], ()))
        await asyncio.sleep(0)  # as far as it comes before the next message is read
        assert await ledger.run(state.epochs.to_hand_in) == {f"{NODE}/patients"}
        await welcomed
        ledger.close()

    asyncio.run(scene())
    state.close()


def restored_at(second: int, key: Ed25519PrivateKey = COORDINATOR_KEY) -> Epoch:
    """A coordinator's first restoration."""
    return sign_epoch(key, None, None, (), restored_at_s=second, backup_made_at_s=900)


def test_a_restoration_is_told_once_and_a_false_one_with_what_ends_it(tmp_path: Path) -> None:
    """The hospital looks into one that is not the coordinator's own history; the same one again, at
    the next session, is no news."""
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    state.witnessed.keep_coordinator_key(COORDINATOR_KEY.public_key().public_bytes_raw())
    told: list[FeddpError] = []

    async def scene() -> list[list[str]]:
        ledger = LedgerThread()
        restorations = restorations_of(state, ledger, turn_away=told.append)
        await restorations.recall()
        found = []
        first = restored_at(1000)
        for epochs in ([], [first], [first], [restored_at(1001, Ed25519PrivateKey.generate())]):
            with capture_logs() as logs:
                await restorations.welcomed(epochs, ())
            found.append([one["event"] for one in logs])
        ledger.close()
        return found

    assert asyncio.run(scene()) == [[], ["coordinator_restored"], [], ["coordinator_epoch_false"]]
    assert told == []
    state.close()


def test_a_session_that_has_begun_with_an_older_copy_ends(tmp_path: Path) -> None:
    """Its Welcome was let in before this node knew of the restoration, or another session told."""
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    state.witnessed.keep_coordinator_key(COORDINATOR_KEY.public_key().public_bytes_raw())
    told: list[FeddpError] = []

    async def scene() -> None:
        ledger = LedgerThread()
        restorations = restorations_of(state, ledger, turn_away=told.append)
        await restorations.recall()
        await restorations.welcomed([restored_at(1000)], ())
        await restorations.welcomed([], ())
        ledger.close()

    asyncio.run(scene())
    assert [one.reason for one in told] == ["COORDINATOR_EPOCH_OLD"]
    state.close()


def test_orders_of_before_a_restoration_are_over_by_what_they_have_opened(tmp_path: Path) -> None:
    """Nobody waits for what comes of them. What has not opened the data is void: a post would be a
    charge for nothing. An account that is not owed goes on."""
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    state.reserve(order(), make_filter("gdp", 0, 10.0, 1.0e-5))
    state.witnessed.keep_coordinator_key(COORDINATOR_KEY.public_key().public_bytes_raw())
    attempts = [Attempt(order(phase.value), phase=phase) for phase in Phase]
    attempts.append(Attempt(order("elsewhere", account="others"), phase=Phase.TRAINING))
    heard: list[e.Event] = []

    async def scene() -> None:
        ledger = LedgerThread()
        restorations = restorations_of(state, ledger, attempts=attempts, dispatch=heard.append)
        await restorations.recall()
        await restorations.welcomed([restored_at(1000)], ())
        ledger.close()

    asyncio.run(scene())
    opened = {Phase.TRAINING, Phase.HOLDING, Phase.SUBMITTING, Phase.TELLING}
    assert heard == [
        e.AttemptClosedReceived(phase.value, "post" if phase in opened else "void")
        for phase in Phase
    ]
    state.close()


def test_an_older_copy_is_refused_by_who_knows_the_coordinator(tmp_path: Path) -> None:
    """Before anything is said in the session. Whoever does not know it learns it at its first look:
    an epoch of another coordinator is no sign of an older copy."""
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    state.witnessed.keep_coordinator_key(COORDINATOR_KEY.public_key().public_bytes_raw())

    async def scene() -> list[str]:
        ledger = LedgerThread()
        restorations = restorations_of(state, ledger)
        await restorations.recall()
        await restorations.welcomed([restored_at(1000)], ())
        found = [restorations.admits(told) for told in ([restored_at(1000)], [])]
        state.leave()
        await restorations.recall()
        found.append(restorations.admits([]))
        ledger.close()
        return ["" if one is None else one.reason for one in found]

    assert asyncio.run(scene()) == ["", "COORDINATOR_EPOCH_OLD", ""]
    state.close()


def test_a_ledger_that_turns_out_to_be_an_old_one_on_arrival_suspends_the_node(
    tmp_path: Path,
) -> None:
    """While nobody knows whose coordinator it is, what the Welcome tells cannot be held against the
    ledger; from then on it can."""
    state = State(tmp_path / "state.db", NODE, LEDGER_KEY)
    public_key = COORDINATOR_KEY.public_key().public_bytes_raw()
    state.witnessed.keep_coordinator_key(public_key)
    state.leave()
    told: list[str] = []
    post = order().statement(NODE, "post")

    async def scene() -> None:
        ledger = LedgerThread()
        restorations = restorations_of(state, ledger, lambda: told.append("suspended"))
        await restorations.recall()
        await restorations.welcomed(
            [], (Signed(None, (append(post, None, sign(LEDGER_KEY, post)),)),)
        )
        assert told == []
        assert not await restorations.arrive(public_key)
        ledger.close()

    asyncio.run(scene())
    assert told == ["suspended"]
    assert state.memory.is_rolled_back
    state.close()
