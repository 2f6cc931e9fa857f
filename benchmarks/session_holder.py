"""A process that holds sessions as agents do; `many_sessions` starts it and asks it.

It answers each line of its input with one of JSON: `connected` with how many sessions are welcomed,
`echo SECONDS` with the seconds that answers took meanwhile.
"""

import asyncio
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Final

import grpc
import structlog

from benchmarks.gateway_site import NAMED
from certs.credentials import channel_credentials
from node_agent.connection.channels import OPTIONS
from node_agent.session import events as e
from node_agent.session.link import Link
from protos.feddp.v1 import diagnosis_pb2, diagnosis_pb2_grpc
from protos.feddp.v1 import federation_pb2 as pb

ECHO_EVERY_S: Final = 0.1
ECHOING: Final = 2
"""Sessions of a process beside which answers are timed; the coordinator has room for 32 in all."""


class Held:
    """One agent's session."""

    def __init__(self, identity: dict[str, str], address: str) -> None:
        credentials = channel_credentials(
            *(identity[one].encode() for one in ("bundle", "key", "chain"))
        )
        self.channel = grpc.aio.secure_channel(address, credentials, [*OPTIONS, *NAMED[:1]])
        self.welcomed = False
        self._instance = uuid.uuid4().hex
        self._link = Link(self.channel, address, self._take, time.monotonic)

    async def run(self) -> None:
        """Keep it open and speak on it, for ever."""
        await asyncio.gather(self._link.run(), self._beat())

    def _take(self, event: e.Event) -> None:
        if isinstance(event, e.Connected) and self._link.newest is not None:
            hello = pb.Hello(protocol_version=1, agent_version="bench", instance_id=self._instance)
            self._link.newest.put_nowait(pb.AgentMessage(hello=hello))
        elif isinstance(event, e.WelcomeReceived):
            self.welcomed = True
        elif isinstance(event, e.Disconnected):
            self.welcomed = False

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._link.heartbeat_s)
            if self.welcomed:
                self._link.send(pb.AgentMessage(heartbeat=pb.Heartbeat()))

    async def echoes(self, seconds: float) -> list[float]:
        """Seconds of each answer on a stream beside the session's: a heartbeat has none."""
        took_s, ends_s = [], time.monotonic() + seconds
        call: Any = diagnosis_pb2_grpc.DiagnosisStub(self.channel).Probe()
        while time.monotonic() < ends_s:
            began_s = time.perf_counter()
            await call.write(diagnosis_pb2.ProbeRequest())
            await call.read()
            took_s.append(time.perf_counter() - began_s)
            await asyncio.sleep(ECHO_EVERY_S)
        await call.done_writing()
        return took_s


def identities(folder: Path, first: int, step: int) -> list[dict[str, str]]:
    """Every `step`-th of the folder, from `first` on."""
    paths = sorted(folder.glob("*.json"), key=lambda path: int(path.stem))[first::step]
    return [json.loads(path.read_text()) for path in paths]


async def main(mine: list[dict[str, str]], address: str) -> None:
    """Hold a session of each identity, and answer questions."""
    held = [Held(one, address) for one in mine]
    running = [asyncio.create_task(one.run()) for one in held]
    while line := await asyncio.to_thread(sys.stdin.readline):
        question, _, seconds = line.strip().partition(" ")
        if question == "echo":
            found = await asyncio.gather(*(one.echoes(float(seconds)) for one in held[:ECHOING]))
            answer: object = [one for each in found for one in each]
        else:
            answer = sum(one.welcomed for one in held)
        print(json.dumps(answer), flush=True)
    for task in running:
        task.cancel()


if __name__ == "__main__":
    # Standard output is for answers.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    folder, address, first, step = sys.argv[1:]
    asyncio.run(main(identities(Path(folder), int(first), int(step)), address))
