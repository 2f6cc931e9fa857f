"""Federation: the agents' sessions, and the updates that they hand in."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import structlog
from sqlalchemy import Connection

from certs.peer import Peer
from coordinator.blobs import BlobStore
from coordinator.identities import Identities
from coordinator.rounds import events
from coordinator.rounds.averaging import check_update
from coordinator.rounds.driver import Rounds
from coordinator.rounds.effects import reserve_statement
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Attempt, AttemptState, RoundRecord
from coordinator.rpc.gate import REPEAT_LOG_S, Context, caller, peer, traceparent
from coordinator.rpc.greeting import check_hello, greet
from coordinator.sessions import NodeSession, Sessions
from coordinator.store import certificates, ledger, people, shared_work
from coordinator.store.database import Database
from privacy.ledger import Statement
from protos.content import INLINE_BYTES
from protos.errors import (
    Conflict,
    FeddpError,
    Malformed,
    NotFound,
    TooLate,
    Unavailable,
    WrongPhase,
)
from protos.failures import AFTER_OPENING
from protos.feddp.v1 import federation_pb2 as pb
from protos.feddp.v1 import federation_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)

PROTOCOL_VERSION = 1
IDENTITY_CHECK_S = 2.0


@dataclass(slots=True)
class FederationService(pb_grpc.FederationServicer):
    """Serves node agents."""

    database: Database
    blobs: BlobStore
    sessions: Sessions
    rounds: Rounds
    identities: Identities
    heartbeat_interval_s: int
    transfer_address: str = ""
    draining: bool = False
    _ledger_keys: dict[str, bytes] = field(default_factory=dict)

    # Session

    async def Session(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Context
    ) -> AsyncIterator[pb.CoordinatorMessage]:
        """See federation.proto."""
        if self.draining:
            raise Unavailable(
                "DRAINING", "this coordinator is stopping; reconnect", retry_after_s=1
            )
        node, seen = caller().node, peer()
        await context.send_initial_metadata(())
        hello = await self._hello(request_iterator)
        self._check_alone(node, hello)
        welcome = await self._greet(seen, hello)
        session = self.sessions.open(node, hello.instance_id)
        log.info("session_opened", node=node, agent_version=hello.agent_version)
        reader = asyncio.create_task(self._read(request_iterator, session))
        reader.add_done_callback(lambda _: session.end())
        watch = asyncio.create_task(self._watch_identity(session, seen))
        try:
            yield pb.CoordinatorMessage(welcome=welcome)
            await self.rounds.node_arrived(node)
            async for message in session.messages():
                yield message
        finally:
            self.sessions.close(session)
            for task in (reader, watch):
                task.cancel()
            log.info("session_closed", node=node)
        self.identities.caller(seen)  # says why, if the node was cut for its identity
        if self.draining:
            raise Unavailable(
                "DRAINING", "this coordinator is stopping; reconnect", retry_after_s=1
            )

    def _check_alone(self, node: str, hello: pb.Hello) -> None:
        """Before anything that it says is kept.

        Raises:
            WrongPhase: SESSION_TAKEN.
        """
        before_s = self.sessions.second_at_s(node)
        try:
            self.sessions.check(node, hello.instance_id)
        except WrongPhase:
            if time.time() - before_s > REPEAT_LOG_S:  # it asks every five seconds
                log.warning(
                    "second_agent_refused",
                    node=node,
                    do="ask the hospital which of its machines is the right one, and to stop the "
                    "other",
                )
            raise

    async def _hello(self, incoming: AsyncIterator[pb.AgentMessage]) -> pb.Hello:
        first = await anext(aiter(incoming), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise Malformed("HELLO_EXPECTED", "a session begins with Hello")
        if first.hello.protocol_version != PROTOCOL_VERSION:
            raise WrongPhase(
                "PROTOCOL_VERSION",
                f"the agent speaks protocol {first.hello.protocol_version} and this coordinator "
                f"{PROTOCOL_VERSION}; upgrade the older one",
            )
        check_hello(first.hello)
        return first.hello

    async def _greet(self, seen: Peer, hello: pb.Hello) -> pb.Welcome:
        """See `greeting.greet`. From now on the certificate is in use, and no earlier one is.

        Raises:
            Unauthenticated: CERTIFICATE_SUPERSEDED, a later one is in use: its session is not cut.
        """
        node = seen.spiffe_id.name

        def work(connection: Connection) -> tuple[pb.Welcome, int, bool]:
            is_first = certificates.put_in_use(connection, seen.fingerprint, seen.spiffe_id)
            return *greet(connection, node, hello, time.time()), is_first

        welcome, raised, is_first = await self.database.write(work)
        if is_first:
            await self.identities.reload()
            log.info("certificate_in_use", node=node, generation=self.identities.generation(seen))
        self.rounds.count_entries("limit", raised)
        welcome.heartbeat_interval_s = self.heartbeat_interval_s
        welcome.transfer_address = self.transfer_address
        return welcome

    async def _read(self, incoming: AsyncIterator[pb.AgentMessage], session: NodeSession) -> None:
        async for message in incoming:
            session.heard()
            try:
                await self._take(session.node, message)
            except FeddpError as error:
                log.warning("message_refused", node=session.node, reason=error.reason)
            except Exception:
                log.exception("message_failed", node=session.node)
                return

    async def _take(self, node: str, message: pb.AgentMessage) -> None:
        match message.WhichOneof("message"):
            case "order_accepted":
                accepted = message.order_accepted
                live, record, attempt = await self.rounds.find(accepted.attempt_id, node)
                self._heard(live, record, accepted)
                statement = statement_of(live, record, attempt)
                await self._check(node, statement, accepted.reserve_signature)
                self.rounds.note(
                    live, events.OrderWasAccepted(accepted.attempt_id, accepted.reserve_signature)
                )
            case "order_refused":
                refused = message.order_refused
                reason, words = refused.reason[:64], refused.message[:500]
                live, record, attempt = await self.rounds.find(refused.attempt_id, node)
                self._heard(live, record, refused)
                if not refused.void_signature:
                    # Not proven unopened, so it is charged; that needs nobody's signature.
                    await self.rounds.apply(
                        live,
                        events.NoUpdateReceived(refused.attempt_id, b"", reason, words),
                    )
                    self._answer(node, refused.attempt_id, live)
                    return
                statement = statement_of(live, record, attempt).resolved("void")
                await self._check(node, statement, refused.void_signature)
                log.info("order_refused", job_id=live.job_id, node=node, reason=reason)
                await self.rounds.apply(
                    live,
                    events.OrderWasRefused(
                        refused.attempt_id,
                        reason,
                        words,
                        refused.void_signature,
                        refused.steps_possible,
                    ),
                )
                self._answer(node, refused.attempt_id, live)
            case "no_update":
                empty = message.no_update
                live, record, attempt = await self.rounds.find(empty.attempt_id, node)
                self._heard(live, record, empty)
                statement = statement_of(live, record, attempt).resolved("post")
                await self._check(node, statement, empty.post_signature)
                if empty.reserve_signature:
                    await self._check(
                        node, statement_of(live, record, attempt), empty.reserve_signature
                    )
                event = events.NoUpdateReceived(
                    empty.attempt_id, empty.post_signature, accepted=empty.reserve_signature
                )
                event = _with_class(event, empty.failure_class)
                await self.rounds.apply(live, event)
                self._answer(node, empty.attempt_id, live)
            case "heartbeat":
                pass
            case _:
                raise Malformed("MESSAGE_UNKNOWN", "an agent message of no known kind")

    def _heard(
        self,
        live: LiveJob,
        record: RoundRecord,
        said: pb.OrderAccepted | pb.OrderRefused | pb.NoUpdate,
    ) -> None:
        self.rounds.traces.heard(live, record.number, said.attempt_id, said.traceparent)

    def _answer(self, node: str, attempt_id: str, live: LiveJob) -> None:
        """Tell the node how the attempt is booked, so that it can let go of it."""
        found = live.attempt(attempt_id)
        if found is not None and not found[1].is_open:
            outcome = "void" if found[1].state is AttemptState.REFUSED else "post"
            closed = pb.AttemptClosed(attempt_id=attempt_id, outcome=outcome)
            self.sessions.send(node, pb.CoordinatorMessage(attempt_closed=closed))

    async def _check(self, node: str, statement: Statement, signature: bytes) -> None:
        public_key = self._ledger_keys.get(node, b"")
        if not public_key:
            record = await self.database.read(lambda connection: people.node(connection, node))
            # A node keeps its ledger key for ever: joining again asks for the same one.
            public_key = self._ledger_keys[node] = record.ledger_public_key
        ledger.check_signature(public_key, statement, signature)

    async def _watch_identity(self, session: NodeSession, seen: Peer) -> None:
        """A live stream outlives its certificate: look again, and cut."""
        while True:
            await asyncio.sleep(IDENTITY_CHECK_S)
            try:
                self.identities.caller(seen)
            except FeddpError:
                session.end()
                return

    # Updates

    async def SubmitUpdate(
        self, request: pb.SubmitUpdateRequest, context: Context
    ) -> pb.SubmitUpdateResponse:
        """See federation.proto."""
        node = caller().node
        live, record, attempt = await self.rounds.find(request.attempt_id, node)
        with self.rounds.traces.serving(
            "take", live, record.number, request.attempt_id, node, traceparent(context)
        ):
            return await self._submitted(live, record, attempt, request)

    async def _submitted(
        self, live: LiveJob, record: RoundRecord, attempt: Attempt, request: pb.SubmitUpdateRequest
    ) -> pb.SubmitUpdateResponse:
        node = attempt.node
        if not attempt.is_open:
            return _answered(attempt, request.digest)
        reserved = statement_of(live, record, attempt)
        await self._check(node, reserved.resolved("post"), request.post_signature)
        if request.reserve_signature:
            await self._check(node, reserved, request.reserve_signature)
        try:
            kept = await self._checked_elsewhere(attempt, request)
            if kept is None:
                kept = await asyncio.to_thread(self._keep_and_check, live, attempt, request)
        except NotFound:
            # Its round may have closed meanwhile, or this is a retry that met the call before it.
            found = live.attempt(attempt.attempt_id)
            if found is not None and not found[1].is_open:
                return _answered(found[1], request.digest)
            raise
        size, fault = kept
        if fault is not None:
            await self._refuse_update(live, attempt, request, fault)
            raise fault
        event = events.UpdateReceived(
            attempt.attempt_id,
            request.digest,
            size,
            request.post_signature,
            request.reserve_signature,
        )
        try:
            await self.rounds.hand_in(live, attempt, event)
        except TooLate:
            # Whoever closed the attempt has dropped what there was of it then; this came later.
            await asyncio.to_thread(self.blobs.drop_update, attempt.attempt_id, request.digest)
            raise
        return pb.SubmitUpdateResponse()

    async def _checked_elsewhere(
        self, attempt: Attempt, request: pb.SubmitUpdateRequest
    ) -> tuple[int, Malformed | None] | None:
        """As `_keep_and_check`, of an update that another replica has taken whole and looked
        through; None where none has."""
        if request.data or not self.blobs.is_shared:
            return None
        seen = await self.database.read(
            lambda inside: shared_work.checked(inside, attempt.attempt_id, request.digest)
        )
        if seen is None:
            return None
        kept = await asyncio.to_thread(self.blobs.shared_bytes, attempt.attempt_id, request.digest)
        if kept != seen.bytes:
            return None
        return seen.bytes, Malformed("UPDATE_INVALID", seen.fault) if seen.fault else None

    def _keep_and_check(
        self, live: LiveJob, attempt: Attempt, request: pb.SubmitUpdateRequest
    ) -> tuple[int, Malformed | None]:
        """(size of the update, which is durable; why it does not count, if it does not).

        Raises:
            NotFound: BLOB_MISSING; Malformed, Unavailable: as `BlobStore.keep_update`.
        """
        if len(request.data) > INLINE_BYTES:
            raise Malformed(
                "TOO_LARGE",
                f"an update of more than {INLINE_BYTES} bytes is uploaded before it is submitted",
            )
        if request.data:
            self.blobs.keep_update(attempt.attempt_id, request.digest, request.data)
        path = self.blobs.update(attempt.attempt_id, request.digest)
        try:
            check_update(live, attempt, path, self.blobs)
            return path.stat().st_size, None
        except Malformed as error:
            return 0, error
        except FileNotFoundError:
            raise NotFound("BLOB_MISSING", "the update was dropped as its round closed") from None

    async def _refuse_update(
        self, live: LiveJob, attempt: Attempt, request: pb.SubmitUpdateRequest, error: Malformed
    ) -> None:
        """It left the node, so it is posted; it does not count."""
        log.warning("update_refused", job_id=live.job_id, node=attempt.node, reason=error.reason)
        await self.rounds.apply(
            live,
            events.NoUpdateReceived(
                attempt.attempt_id,
                request.post_signature,
                error.reason,
                error.message,
                request.reserve_signature,
            ),
        )
        self.blobs.drop_update(attempt.attempt_id, request.digest)


def _answered(attempt: Attempt, digest: str) -> pb.SubmitUpdateResponse:
    """What is said of an update whose attempt is closed: yes, if it is the one that was taken.

    Raises:
        Conflict: UPDATE_CONFLICT.
        TooLate: ATTEMPT_CLOSED.
    """
    if attempt.state is not AttemptState.RECEIVED:
        raise TooLate("ATTEMPT_CLOSED", f"attempt {attempt.attempt_id} is closed; it is booked")
    if attempt.digest != digest:
        raise Conflict(
            "UPDATE_CONFLICT", f"attempt {attempt.attempt_id} has another update already"
        )
    return pb.SubmitUpdateResponse()


def _with_class(event: events.NoUpdateReceived, failure_class: str) -> events.NoUpdateReceived:
    """With reason and sentence, where the hospital shares the kind of the failure."""
    if failure_class not in AFTER_OPENING:
        return event
    sentence, remedy = AFTER_OPENING[failure_class]
    message = f"its data was opened and {sentence}; the hospital can: {remedy}"
    return replace(event, reason=failure_class, message=message)


def statement_of(live: LiveJob, record: RoundRecord, attempt: Attempt) -> Statement:
    """The reserve statement of an attempt."""
    return reserve_statement(live, record.number, events.Grant(attempt.attempt_id, attempt.offer))
