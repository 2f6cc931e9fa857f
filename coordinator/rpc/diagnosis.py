"""Diagnosis: a bounded echo, by which a node measures the way here."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

from coordinator.identities import Identities
from coordinator.rpc.federation import IDENTITY_CHECK_S, PROTOCOL_VERSION
from coordinator.rpc.gate import Context, caller, peer
from protos.errors import Malformed, Unavailable
from protos.feddp.v1 import diagnosis_pb2 as pb
from protos.feddp.v1 import diagnosis_pb2_grpc as pb_grpc

MESSAGE_BYTES_MAX: Final = 1 << 20
STREAM_BYTES_MAX: Final = 32 << 20
STREAM_S_MAX: Final = 600.0
OPEN_PER_NODE_MAX: Final = 4
OPEN_MAX: Final = 32
RETRY_S: Final = 5.0


class DiagnosisService(pb_grpc.DiagnosisServicer):
    """Serves `feddp agent doctor`."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._open: Counter[str] = Counter()
        # Random, so that no box on the way can make a bandwidth of its own by compressing.
        self._filling = secrets.token_bytes(MESSAGE_BYTES_MAX)
        self._version = version("feddp")

    async def Probe(
        self, request_iterator: AsyncIterator[pb.ProbeRequest], context: Context
    ) -> AsyncIterator[pb.ProbeResponse]:
        """See diagnosis.proto."""
        seen = peer()
        with self._admitted(caller().node):
            await context.send_initial_metadata(())
            said: asyncio.Queue[pb.ProbeRequest | None] = asyncio.Queue(1)
            reader = asyncio.create_task(_read(request_iterator, said))
            received = sent = 0
            ends_s = time.monotonic() + STREAM_S_MAX
            try:
                while time.monotonic() < ends_s:
                    try:
                        message = await asyncio.wait_for(said.get(), IDENTITY_CHECK_S)
                    except TimeoutError:
                        # A stream outlives its certificate.
                        self._identities.caller(seen)
                        continue
                    if message is None:
                        return
                    self._identities.caller(seen)
                    received, sent = received + len(message.data), sent + message.answer_bytes
                    if max(received, sent) > STREAM_BYTES_MAX:
                        return
                    yield self._answer(message)
            finally:
                reader.cancel()

    def _answer(self, message: pb.ProbeRequest) -> pb.ProbeResponse:
        if max(len(message.data), message.answer_bytes) > MESSAGE_BYTES_MAX:
            raise Malformed("TOO_LARGE", f"a probe has {MESSAGE_BYTES_MAX} bytes each way at most")
        return pb.ProbeResponse(
            data=self._filling[: message.answer_bytes],
            server_time_s=time.time(),
            version=self._version,
            protocol_version=PROTOCOL_VERSION,
        )

    @contextmanager
    def _admitted(self, node: str) -> Iterator[None]:
        if self._open[node] >= OPEN_PER_NODE_MAX or self._open.total() >= OPEN_MAX:
            raise Unavailable(
                "PROBES_BUSY",
                "too many probes are under way; run `feddp agent doctor` again in a moment",
                retry_after_s=RETRY_S,
            )
        self._open[node] += 1
        try:
            yield
        finally:
            self._open[node] -= 1
            if not self._open[node]:
                del self._open[node]


async def _read(
    incoming: AsyncIterator[pb.ProbeRequest], said: asyncio.Queue[pb.ProbeRequest | None]
) -> None:
    """Hand on what comes, one at a time; apart, as a read that is given up cannot go on."""
    async for message in incoming:
        await said.put(message)
    await said.put(None)
