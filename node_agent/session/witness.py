"""Follows the coordinator's ledger: reads what is new of this node's accounts, checks it, signs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Final

import grpc
import structlog

from node_agent.ledger.disputes import Dispute
from node_agent.ledger.epochs_seen import Meeting
from node_agent.session.countersigning import countersign
from node_agent.session.handing_in import finish, hand_in
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.notes import LEFT_NOTE, RESTORED_NOTE
from node_agent.state.state import State
from privacy.filters import Filter
from privacy.heads import Checkpoint, Head
from privacy.ledger import Entry, Statement
from privacy.wire import (
    checkpoint_from_wire,
    entry_from_wire,
    epoch_from_wire,
    head_from_wire,
    head_to_wire,
)
from protos.errors import FeddpError
from protos.feddp.v1 import witness_pb2 as pb
from protos.feddp.v1 import witness_pb2_grpc as pb_grpc
from protos.status import from_rpc

log = structlog.get_logger(__name__)

AFTER_S: Final = 1.0
"""After a session's start or a job's end: what is urgent goes first, and several ends share a
look."""

CALL_TIMEOUT_S: Final = 20.0

HAND_IN_AGAIN_S: Final = 5.0
"""Until what could not be handed in is tried again: orders wait for it."""


class Witness:
    """Looks whenever it is asked to; a coordinator that cannot be asked is asked again later.

    Args:
        filter_of_account: how "NODE/NAME" counts by the steward's policy; None if it is not in it.
        clock: seconds.
        looked: what is done after each look.
        met: takes what the coordinator's restorations turned out to be.
        arrive: takes the key of a coordinator after another was left; whether it is another one.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        state: State,
        ledger: LedgerThread,
        filter_of_account: Callable[[str], Filter | None],
        clock: Callable[[], float],
        looked: Callable[[], Awaitable[None]] | None = None,
        met: Callable[[Meeting], Awaitable[None]] | None = None,
        arrive: Callable[[bytes], Awaitable[bool]] | None = None,
    ) -> None:
        self._stub = pb_grpc.WitnessStub(channel)
        self._filter_of_account = filter_of_account
        self._state = state
        self._ledger = ledger
        self._clock = clock
        self._looked = looked
        self._met = met
        self._arrived = arrive
        self._wanted = asyncio.Event()

    def use(self, channel: grpc.aio.Channel) -> None:
        """Make the next calls over this connection."""
        self._stub = pb_grpc.WitnessStub(channel)

    def soon(self) -> None:
        """Look once more."""
        self._wanted.set()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(AFTER_S)
            self._wanted.clear()
            try:
                await self.look()
                if self._looked is not None:
                    await self._looked()
            except grpc.RpcError as error:
                # The next session, or the next job, asks again.
                log.info("ledger_not_followed", reason=from_rpc(error).reason)
            except FeddpError as error:
                log.error("ledger_unreadable", reason=error.reason, detail=error.message)
            if await self._ledger.run(self._state.handing_in.waits):
                asyncio.get_running_loop().call_later(HAND_IN_AGAIN_S, self.soon)

    async def look(self) -> None:
        """Follow the coordinator's ledger to where it stands, and countersign what holds.

        Raises:
            grpc.RpcError: the coordinator does not answer.
            Malformed: what it answered is no ledger.
        """
        if await self._ledger.run(lambda: self._state.memory.is_rolled_back):
            return  # a newer copy takes its place first, and must hold all that is booked in it
        if await self._ledger.run(self._state.notes.read, LEFT_NOTE):
            await self._arrive()
        # Before anything is asked: what ends after that need not be in the answer.
        over = await self._ledger.run(self._state.witnessed.unseen)
        answer = await self._meet()
        if answer is None:
            return
        expected = over & await self._ledger.run(self._expected)
        before = await self._ledger.run(self._state.witnessed.heads)
        heads = await self._read(answer)
        if await self._ledger.run(self._state.notes.read, RESTORED_NOTE):
            await self._note_open(heads)
        taken, beyond = await hand_in(
            self._stub, self._state, self._ledger, self._filter_of_account, CALL_TIMEOUT_S
        )
        if taken:
            expected = await self._ledger.run(self._expected, taken)
            heads = await self._read(await self._ask())
        disputes = await self._ledger.run(self._state.compare, heads, expected, self._clock())
        self._report(disputes)
        for account, text in beyond:
            at = await self._ledger.run(self._state.witnessed.head, account)
            self._report([await self._ledger.run(self._state.deny, at, text, self._clock())])
        for head, text in await finish(
            self._stub, self._state, self._ledger, self._filter_of_account, taken, CALL_TIMEOUT_S
        ):
            self._report([await self._ledger.run(self._state.deny, head, text, self._clock())])
        await self._ledger.run(self._state.notes.keep, RESTORED_NOTE, "")
        # Those seen before as well: what lies below a head is not read again, and a chain that was
        # changed there and goes on from what we have seen shows in this alone.
        signed = await self._ledger.run(self._signed, before, heads)
        for head, text in await countersign(self._stub, signed, CALL_TIMEOUT_S):
            self._report([await self._ledger.run(self._state.deny, head, text, self._clock())])

    async def _ask(self) -> pb.ReadHeadsResponse:
        newest = await self._ledger.run(self._state.witnessed.newest_checkpoint)
        request = pb.ReadHeadsRequest(after_checkpoint=newest.number if newest else 0)
        answer: pb.ReadHeadsResponse = await self._stub.ReadHeads(request, timeout=CALL_TIMEOUT_S)
        return answer

    async def _meet(self) -> pb.ReadHeadsResponse | None:
        """Hold the coordinator's restorations against those seen; its answer, or None where it is
        refused.

        Accounts that it waits for are owed, and what it holds reserved on them is read.
        """
        answer = await self._ask()
        told = [epoch_from_wire(one) for one in answer.epochs]
        key = answer.coordinator_ledger_key
        meeting = await self._ledger.run(self._state.handing_in.meet, told, key, self._clock())
        if self._met is not None:
            await self._met(meeting)
        if meeting.refusal is not None:
            return None
        if meeting.kind == "later":  # what was seen of the history that ended was put aside
            answer = await self._ask()
        waited_for = list(answer.unreconciled) if told else []
        new = await self._ledger.run(self._state.handing_in.owe, waited_for)
        for account in new:
            seen = await self._ledger.run(self._state.witnessed.head, account)
            async for some in self._entries(account, 0, seen.seq):
                await self._ledger.run(self._state.handing_in.read_open, some)
        return answer

    async def _note_open(self, heads: Sequence[Head]) -> None:
        """This ledger is a copy: what was ordered before it and is not over may have come here."""
        found: set[str] = set()
        for head in heads:
            async for some in self._entries(head.account, 0, head.seq):
                for entry in some:
                    said = entry.statement
                    if isinstance(said, Statement) and said.kind == "reserve":
                        found.add(said.attempt_id)
                    elif isinstance(said, Statement):
                        found.discard(said.attempt_id)
        await self._ledger.run(self._state.memory.note_open, found)

    def _expected(self, taken: Collection[str] = ()) -> frozenset[str]:
        """Attempts that the chains must hold as posted: of an account that is yet to be handed in
        only once it was."""
        waiting = self._state.epochs.to_hand_in() - {*taken}
        return self._state.witnessed.unseen(waiting)

    async def _read(self, answer: pb.ReadHeadsResponse) -> list[Head]:
        """Follow everything to where it stands; the heads that were announced."""
        heads = await self._follow_checkpoints(answer)
        for head in heads:
            await self._follow(head)
        return heads

    async def _arrive(self) -> None:
        """The node left a coordinator: is this another one?"""
        answer = await self._stub.ReadHeads(pb.ReadHeadsRequest(), timeout=CALL_TIMEOUT_S)
        key = answer.coordinator_ledger_key
        if self._arrived is not None:
            is_other = await self._arrived(key)
        else:
            is_other = await self._ledger.run(self._state.arrive, key)
        if is_other:
            log.warning(
                "coordinator_changed",
                do="nothing: its ledger is followed from its beginning, and this node's own goes "
                "on to count what was spent before",
            )

    async def _follow_checkpoints(self, answer: pb.ReadHeadsResponse) -> list[Head]:
        """This node's heads, as announced with the newest checkpoint."""
        while True:
            heads = [head_from_wire(one) for one in answer.heads]
            new = [checkpoint_from_wire(one) for one in answer.checkpoints]
            disputes = await self._ledger.run(
                self._keep_checkpoints, answer.coordinator_ledger_key, new, answer.leaves, heads
            )
            self._report(disputes)
            if disputes or not new or answer.leaves:
                return heads
            answer = await self._ask()

    def _keep_checkpoints(
        self, key: bytes, new: Sequence[Checkpoint], leaves: Sequence[str], heads: Sequence[Head]
    ) -> list[Dispute]:
        return self._state.follow_checkpoints(key, new, leaves, heads, self._clock())

    async def _follow(self, head: Head) -> None:
        """Read an account's entries up to its head; after a dispute only for who paid by them."""
        seen = await self._ledger.run(self._state.witnessed.head, head.account)
        disputed = False
        async for some in self._entries(head.account, seen.seq, head.seq):
            if disputed:
                await self._ledger.run(self._state.note_signed, some)
            elif dispute := await self._ledger.run(self._take, head.account, some):
                self._report([dispute])
                disputed = True

    async def _entries(self, account: str, after: int, upto: int) -> AsyncIterator[list[Entry]]:
        """An account's entries after one, up to another, some at a time. Fewer where it announces
        more than it gives; `compare` says what that means."""
        while after < upto:
            request = pb.ReadEntriesRequest(account=account, after_seq=after)
            before = after
            async for answer in self._stub.ReadEntries(request, timeout=CALL_TIMEOUT_S):
                some = [entry_from_wire(one) for one in answer.entries if one.seq <= upto]
                after = max([after, *(one.seq for one in some)])
                yield some
            if after == before:
                return

    def _take(self, account: str, entries: Sequence[Entry]) -> Dispute | None:
        return self._state.follow(account, entries, self._filter_of_account(account), self._clock())

    def _signed(self, before: Sequence[Head], heads: Sequence[Head]) -> list[pb.LedgerHead]:
        """Heads that hold, those seen before among them, with the node's signature."""
        witnessed, disputes = self._state.witnessed, self._state.disputes
        hold = (one for one in heads if one.seq > 0 and witnessed.head(one.account) == one)
        return [
            head_to_wire(one, witnessed.sign(one))
            for one in dict.fromkeys([*before, *hold])
            if disputes.on(one.account) is None
        ]

    def _report(self, disputes: Sequence[Dispute]) -> None:
        for one in disputes:
            log.error(
                "ledger_disputed",
                account=one.account,
                seq=one.seq,
                detail=one.text,
                do=f"orders on this account are refused; {one.advice(self._state.folder)}",
            )
