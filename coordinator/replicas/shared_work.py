"""Work on bytes that replicas do for the one that leads: they look through updates, and average.

A replica that takes an update whole has it at hand, and says what it found. Averages of large
models (a round's updates, the rounds that make a job's answer) are offered to all; whoever takes
the job's lease makes them, and names the model. Whoever leads decides: it takes an answer only to
exactly the inputs that it named, and does the work itself where nobody takes it up, or whoever did
is gone. The model is the same whoever averages.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from coordinator.blobs import BlobStore
from coordinator.replicas.followed_rounds import FollowedRounds
from coordinator.rounds import averaging
from coordinator.rounds.events import AnswerWritten, UpdatesFolded
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Aggregating, Attempt, Closing, Publishing
from coordinator.store import leases, shared_work
from coordinator.store.database import Database
from coordinator.store.engines import now_s
from coordinator.store.leases import Lease
from coordinator.store.shared_work import Checked, Made
from protos.content import INLINE_BYTES, digest_of
from protos.errors import FeddpError, Malformed

log = structlog.get_logger(__name__)

TAKEN_UP_S: Final = 2.0
"""An offer that nobody has taken up by then is withdrawn."""

ALONE_S: Final = 60.0
"""Nothing is offered for so long after that, where no replica was at work: there may be none."""

MADE_S: Final = 600.0
"""No answer is waited for longer, also from a replica that renews its lease and gets nowhere: its
disk hangs, say."""

LOOK_S: Final = (0.05, 0.5)
"""Between looks at an offer: at first, and at most."""

RENEW_S: Final = leases.LEASE_S / 3

SCRATCH: Final = "shared"
"""Apart from what this process writes when it leads: it may begin to while the other goes on."""


@dataclass(slots=True)
class SharedWork:
    """Whoever leads, and offers work."""

    database: Database
    _alone_until_s: float = 0.0

    async def average(self, live: LiveJob, phase: Aggregating) -> UpdatesFolded | None:
        """What another replica made of a round; None if none did.

        Raises:
            Unavailable: LEASE_LOST, another replica leads.
        """
        if not any(one.update_bytes > INLINE_BYTES for one in phase.round.received):
            return None
        made = await self._made(live.job_id, work_of(live, phase))
        return made if isinstance(made, UpdatesFolded) else None

    async def answer(self, live: LiveJob, digests: Sequence[str]) -> str | None:
        """Digest of the answer that another replica made; None if none did. Raises as `average`."""
        large = any(one.model_bytes > INLINE_BYTES for one in live.rounds())
        if not large or len(averaging.tail_of(digests)) < 2:
            return None
        made = await self._made(live.job_id, answer_of(live, digests))
        return made.digest if isinstance(made, AnswerWritten) else None

    async def _made(self, job_id: str, work: str) -> Made | None:
        if time.monotonic() < self._alone_until_s:
            return None
        await self.database.write(lambda inside: shared_work.offer(inside, job_id, work))
        began_s, taken_up = time.monotonic(), False
        pause_s, pause_s_max = LOOK_S

        def look(connection: Connection) -> tuple[Made | None, bool]:
            held = shared_work.is_held(connection, job_id)
            return shared_work.made(connection, job_id, work), held

        while True:
            made, held = await self.database.read(look)
            if made is not None:
                return made
            waited_s = time.monotonic() - began_s
            if waited_s > MADE_S or (not held and (taken_up or waited_s > TAKEN_UP_S)):
                break
            taken_up = taken_up or held
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s_max, 1.5 * pause_s)
        log.info("average_not_shared", job_id=job_id, begun=taken_up)
        await self.database.write(lambda inside: shared_work.withdraw(inside, job_id))
        if not taken_up and not await self.database.read(shared_work.is_anybody_at_work):
            self._alone_until_s = time.monotonic() + ALONE_S
        return None


@dataclass(slots=True)
class WorkTaker:
    """A replica that does not lead, and has bytes at hand.

    Args:
        holder: names this process in leases.
        told: set when something may be offered.
    """

    database: Database
    blobs: BlobStore
    followed: FollowedRounds
    holder: str
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def check(self, live: LiveJob, attempt: Attempt, digest: str) -> None:
        """Look through an update that this replica has taken whole, and tell the leader.

        What cannot be looked through or told here is left to the leader.
        """
        with _left_to_the_leader("check", live.job_id):
            found = await asyncio.to_thread(self._checked, live, attempt, digest)
            await self.database.write(lambda inside: shared_work.note_checked(inside, found))

    def _checked(self, live: LiveJob, attempt: Attempt, digest: str) -> Checked:
        path = self.blobs.update(attempt.attempt_id, digest)
        found = Checked(attempt.attempt_id, digest, live.job_id, path.stat().st_size)
        try:
            averaging.check_update(live, attempt, path, self.blobs)
        except Malformed as error:
            if error.reason != "UPDATE_INVALID":
                raise
            return Checked(attempt.attempt_id, digest, live.job_id, found.bytes, error.message)
        return found

    async def take(self) -> None:
        """Make what is offered and nobody else has begun, one average after the other."""
        self.told.clear()  # before it is read: what is offered meanwhile is looked at once more
        for job_id, work in (await self.database.read(shared_work.offers)).items():
            with _left_to_the_leader("average", job_id):
                await self.followed.catch_up()
                running = {one.job_id: one for one in self.followed.running()}
                live = running.get(job_id)
                making = None if live is None else self._making(live, work)
                if making is not None:
                    await self._make(job_id, work, making)

    def _making(self, live: LiveJob, work: str) -> Callable[[], Made] | None:
        """What makes the work, if the job stands where it is asked for."""
        phase = live.phase
        if isinstance(phase, Aggregating) and work_of(live, phase) == work:
            return partial(averaging.fold, live, phase, self.blobs, SCRATCH)
        if isinstance(phase, Publishing | Closing):
            under_way = [phase.round] if isinstance(phase, Publishing) else []
            models = [one.model for one in (*phase.course.done, *under_way)]
            if answer_of(live, models) == work:
                return partial(self._answer, live, models)
        return None

    def _answer(self, live: LiveJob, models: Sequence[str]) -> AnswerWritten:
        return AnswerWritten(averaging.write_answer(live, models, self.blobs, SCRATCH))

    async def _make(self, job_id: str, work: str, making: Callable[[], Made]) -> None:
        lease = await self.database.write(
            lambda inside: shared_work.take(inside, job_id, self.holder)
        )
        if lease is None:
            return
        renewing = asyncio.create_task(self._renew(lease))
        try:
            made = await asyncio.to_thread(making)
            await self.database.write(
                lambda inside: shared_work.hand_over(inside, lease, job_id, work, made)
            )
            log.info("average_made", job_id=job_id, model=made.digest)
        finally:
            renewing.cancel()
            with suppress(FeddpError, DBAPIError):
                await self.database.write(lambda inside: leases.release(inside, lease))

    async def _renew(self, lease: Lease) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(FeddpError, DBAPIError):
                await self.database.write(lambda inside: leases.renew(inside, lease, now_s(inside)))


def work_of(live: LiveJob, phase: Aggregating) -> str:
    """Digest of all that a round's average is made of."""
    course = phase.course
    models = [course.initial, *(one.model for one in course.done), course.model]
    updates = sorted(
        f"{one.node} {one.attempt_id} {one.digest} {one.offer.declared_n}"
        for one in phase.round.received
    )
    lines = [live.job_id, str(phase.round.number), *models, *updates]
    return digest_of("\n".join(lines).encode())


def answer_of(live: LiveJob, models: Sequence[str]) -> str:
    """Digest of all that a job's answer is made of."""
    return digest_of("\n".join(["answer", live.job_id, *models]).encode())


@contextmanager
def _left_to_the_leader(what: str, job_id: str) -> Iterator[None]:
    """Nothing that fails here harms a job: whoever leads does it."""
    try:
        yield
    except FeddpError as error:
        log.warning("work_not_shared", what=what, job_id=job_id, reason=error.reason)
    except Exception:
        log.exception("work_not_shared", what=what, job_id=job_id)
