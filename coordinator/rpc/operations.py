"""Operations: the emergency stop, for operators."""

import asyncio
from dataclasses import dataclass

import structlog

from coordinator.pausing import Pausing
from coordinator.rounds.driver import Rounds
from coordinator.rpc.gate import Context, caller
from coordinator.store.pauses import Pause
from protos.feddp.v1 import operations_pb2 as pb
from protos.feddp.v1 import operations_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class OperationsService(pb_grpc.OperationsServicer):
    """Serves operators."""

    pausing: Pausing
    rounds: Rounds

    async def PauseAll(self, request: pb.PauseAllRequest, context: Context) -> pb.PauseAllResponse:
        """See operations.proto."""
        # What is kept and what is done by it change together, whether or not the caller waits.
        work = asyncio.ensure_future(self._pause(caller().name, request.reason))
        return pb.PauseAllResponse(pause=_view(await asyncio.shield(work)))

    async def _pause(self, by: str, reason: str) -> Pause:
        pause = await self.pausing.pause(by, reason)
        self.rounds.pause_changed()
        log.warning("all_work_paused", user=pause.by, reason=pause.reason)
        return pause

    async def ResumeAll(
        self, request: pb.ResumeAllRequest, context: Context
    ) -> pb.ResumeAllResponse:
        """See operations.proto."""
        work = asyncio.ensure_future(self._resume(caller().name))
        return pb.ResumeAllResponse(resumed=await asyncio.shield(work))

    async def _resume(self, by: str) -> bool:
        resumed = await self.pausing.resume(by)
        self.rounds.pause_changed()
        if resumed:
            log.warning("all_work_resumed", user=by)
        return resumed

    async def GetPause(self, request: pb.GetPauseRequest, context: Context) -> pb.GetPauseResponse:
        """See operations.proto."""
        pause = self.pausing.now
        return pb.GetPauseResponse(pause=_view(pause) if pause else None)


def _view(pause: Pause) -> pb.Pause:
    return pb.Pause(since=pause.since_s, by=pause.by, reason=pause.reason)
