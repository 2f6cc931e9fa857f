"""What a session does where a ledger went back in time: the coordinator's, which says so by a
signed epoch, or this node's own, which the coordinator's memory of its signatures shows."""

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from node_agent.ledger import rollback
from node_agent.ledger.epochs_seen import Meeting, meet
from node_agent.session import events as e
from node_agent.session.attempts import Attempt, Phase
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.notes import LEFT_NOTE
from node_agent.state.state import State
from privacy.epochs import Epoch
from protos.errors import FeddpError

log = structlog.get_logger(__name__)

_OPENED: Final = (Phase.TRAINING, Phase.HOLDING, Phase.SUBMITTING, Phase.TELLING)


class Restorations:
    """Knows what this node has seen, so that a session is refused before anything is said on it.

    Args:
        node: this node's name.
        clock: seconds since 1970.
        attempts: those that the agent works on.
        dispatch: takes events.
        turn_away: ends the session for a reason.
        suspended: told that orders are refused from now on, which the coordinator should hear
            before it sends one: what this ledger does not know is charged.
    """

    def __init__(
        self,
        state: State,
        ledger: LedgerThread,
        node: str,
        clock: Callable[[], float],
        attempts: Callable[[], Sequence[Attempt]],
        dispatch: Callable[[e.Event], None],
        turn_away: Callable[[FeddpError], None],
        suspended: Callable[[], None],
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._node = node
        self._clock = clock
        self._attempts = attempts
        self._dispatch = dispatch
        self._turn_away = turn_away
        self._suspended = suspended
        self._seen: tuple[Epoch, ...] = ()
        self._key = b""
        self._signed: tuple[rollback.Signed, ...] = ()

    async def recall(self) -> None:
        """Read what was seen."""
        self._seen, self._key = await self._ledger.run(self._read)

    def _read(self) -> tuple[tuple[Epoch, ...], bytes]:
        # Until the first look at its ledger nobody knows which coordinator it is.
        left = self._state.notes.read(LEFT_NOTE)
        key = b"" if left else self._state.witnessed.coordinator_key()
        return tuple(self._state.epochs.all()), key

    def admits(self, told: Sequence[Epoch]) -> FeddpError | None:
        """Why a coordinator that greets with these is refused; None where it is not."""
        if not self._key:
            return None
        return meet(self._seen, self._key, told, self._clock()).refusal

    async def welcomed(self, told: Sequence[Epoch], signed: tuple[rollback.Signed, ...]) -> None:
        """Take what a Welcome says of the past, before any order that follows it."""
        self._signed = signed
        known, now_s = bool(self._key), self._clock()

        def looked_back() -> tuple[str, Meeting | None]:
            # In one turn of the ledger's thread: no order is judged between the two. First whether
            # this ledger is an old one: then it can end nothing as void.
            text = self._lacks()
            return text, self._state.handing_in.meet(told, b"", now_s) if known else None

        text, meeting = await self._ledger.run(looked_back)
        self._say_rolled_back(text)
        if meeting is not None:
            await self.met(meeting)

    async def met(self, meeting: Meeting) -> None:
        """Go by what the coordinator's epochs turned out to be."""
        await self.recall()
        if meeting.refusal is not None:
            self._turn_away(meeting.refusal)
            return
        latest = self._seen[-1] if self._seen else None
        if meeting.kind == "later" and latest is not None:
            log.warning(
                "coordinator_restored",
                epoch=latest.number,
                restored=latest.restored,
                backup_made=latest.backup_made,
                do="nothing: this node hands in what the coordinator's ledger lacks of its own, "
                "and takes orders again after that",
            )
        if meeting.text:
            log.error(
                "coordinator_epoch_false",
                detail=meeting.text,
                do="orders are refused: `feddp agent status` says what ends that",
            )
        await self._end_what_was_ordered_before()

    async def _end_what_was_ordered_before(self) -> None:
        """Orders of before the restoration: nobody waits for what comes of them."""
        accounts = await self._ledger.run(self._state.epochs.to_hand_in)
        for attempt in list(self._attempts()):
            if f"{self._node}/{attempt.order.account}" in accounts:
                outcome: e.Outcome = "post" if attempt.phase in _OPENED else "void"
                log.warning("order_of_before", attempt_id=attempt.attempt_id, outcome=outcome)
                self._dispatch(e.AttemptClosedReceived(attempt.attempt_id, outcome))

    async def arrive(self, coordinator_key: bytes) -> bool:
        """After leaving a coordinator: whether this is another one. Only now can be told what this
        node knew of it, and so whether it has forgotten something.

        Args:
            coordinator_key: raw, that signs the checkpoints there.
        """

        def arrived() -> tuple[bool, str]:
            # In one turn of the ledger's thread: no order is judged between the two.
            return self._state.arrive(coordinator_key), self._lacks()

        is_other, text = await self._ledger.run(arrived)
        self._say_rolled_back(text)
        return is_other

    def _lacks(self) -> str:
        return rollback.look(
            self._state, self._node, self._state.witnessed.public_key, self._signed
        )

    def _say_rolled_back(self, text: str) -> None:
        if text:
            self._suspended()
            log.error(
                "ledger_rolled_back",
                detail=text,
                do="no order is accepted: a snapshot or an older disk was put back. Stop the agent "
                "and import the newest copy of the ledger, or its own if there is none: `feddp "
                "agent ledger import FILE`",
            )
