"""The network: streams that break with all that is in flight, and calls whose replies get lost."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb
from tests.simulation.process import Resume, Wait

if TYPE_CHECKING:
    from tests.simulation.node_side import Node
    from tests.simulation.world import World

LOST = object()
"""What a caller learns when no reply came."""

CALL_TIMEOUT_S = 30.0
TO_COORDINATOR, TO_NODE = "to_coordinator", "to_node"

Reply = Callable[[Any], None]
Message = pb.AgentMessage | pb.CoordinatorMessage


class Stream:
    """One session of one node: two ends, each of which may think that the other is still there.

    Attributes:
        raises: how many each account had at the node when its Hello was made; only the checker
            looks at it.
    """

    def __init__(self, world: "World", node: "Node") -> None:
        self._world, self.node = world, node
        self.node_life, self.server_life = node.life, world.coordinator.life
        self.open = {TO_COORDINATOR: True, TO_NODE: True}
        self._last_at_s = {TO_COORDINATOR: 0.0, TO_NODE: 0.0}
        self._welcomed = False
        self.raises: dict[str, int] = {}

    def send(self, way: str, message: Message) -> None:
        """Deliver in order, unless the stream breaks; a hostile network keeps no order."""
        world = self._world
        if world.faults.strike("stream_broken", world.now_s):
            self.cut()
        sender = TO_NODE if way == TO_COORDINATOR else TO_COORDINATOR
        if not self.open[sender]:
            return
        at_s = max(world.now_s + world.random.uniform(0.005, 0.4), self._last_at_s[way])
        self._last_at_s[way] = at_s
        times = 1
        if message.WhichOneof("message") == "hello" and world.faults.strike(
            "hello_late", world.now_s
        ):
            at_s += world.random.uniform(0.5, 30.0)  # it lies in the buffers of a link that stalls
        if world.hostile and message.WhichOneof("message") not in ("hello", "welcome"):
            if world.faults.strike("message_lost", world.now_s):
                return
            times += world.faults.strike("message_twice", world.now_s)
            if world.faults.strike("message_reordered", world.now_s):
                at_s += world.random.uniform(0.5, 40.0)
        for _ in range(times):
            world.later(at_s - world.now_s, lambda: self._arrive(way, message))

    def _arrive(self, way: str, message: Message) -> None:
        if not self.open[way]:
            return
        welcome = message.WhichOneof("message") == "welcome"
        hasty = way == TO_NODE and not (self._welcomed or welcome)  # no network is as hostile
        if hasty or self._world.network.blocked(self.node.name, way):
            self._world.later(1.0, lambda: self._arrive(way, message))
        elif way == TO_COORDINATOR:
            self._world.coordinator.hear(self, message)  # type: ignore[arg-type]
        else:
            self._welcomed = True
            self.node.hear(self, message)  # type: ignore[arg-type]

    def cut(self) -> None:
        """The connection breaks; each end notices by itself."""
        for end in (TO_COORDINATOR, TO_NODE):
            self._world.later(self._world.random.uniform(0.0, 2.0), lambda end=end: self.end(end))

    def end(self, end: str) -> None:
        """The receiver of `end` notices that the stream is over, and tells the other if it can."""
        if not self.open[end]:
            return
        self.open[end] = False
        if end == TO_COORDINATOR:
            self._world.coordinator.stream_ended(self)
        else:
            self.node.stream_ended(self)
        other = TO_NODE if end == TO_COORDINATOR else TO_COORDINATOR
        delay_s = self._world.random.uniform(0.01, 0.5)
        if self._world.network.cut_off(self.node.name):
            delay_s = self._world.random.uniform(10.0, 35.0)
        self._world.later(delay_s, lambda: self.end(other))


class Network:
    """Who reaches whom."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._blocked: dict[tuple[str, str], float] = {}
        self.streams: list[Stream] = []

    def block(self, node: str, ways: tuple[str, ...], seconds: float) -> None:
        """Nothing passes these ways for so long; both ends notice by their keepalives."""
        world = self._world
        for way in ways:
            self._blocked[(node, way)] = world.now_s + seconds
        for stream in self.streams:
            if stream.node.name == node:
                for end in (TO_COORDINATOR, TO_NODE):
                    delay_s = world.random.uniform(5.0, 30.0)
                    world.later(delay_s, lambda s=stream, end=end: self._keepalive(s, end))
        world.note(f"partition {node} {'+'.join(ways)} for {seconds:.0f} s")

    def _keepalive(self, stream: Stream, end: str) -> None:
        if self.cut_off(stream.node.name):
            stream.end(end)

    def blocked(self, node: str, way: str) -> bool:
        """Whether nothing passes this way now."""
        return self._blocked.get((node, way), 0.0) > self._world.now_s

    def cut_off(self, node: str) -> bool:
        """Whether one of both ways is blocked."""
        return self.blocked(node, TO_COORDINATOR) or self.blocked(node, TO_NODE)

    def connect(self, node: "Node") -> Wait:
        """A stream, or LOST."""

        def wait(resume: Resume) -> None:
            world = self._world
            if self.cut_off(node.name) or not world.coordinator.serving:
                node.later(world.random.uniform(0.5, 3.0), lambda: resume(LOST))
                return
            stream = Stream(world, node)
            self.streams = [s for s in self.streams if any(s.open.values())] + [stream]
            node.later(world.random.uniform(0.01, 0.2), lambda: resume(stream))

        return wait

    def call(self, node: "Node", serve: Callable[[Reply], None]) -> Wait:
        """An rpc of a node: its answer or LOST, which tells nothing of whether it took effect."""

        def wait(resume: Resume) -> None:
            world, answered = self._world, []

            def once(value: Any) -> None:
                if not answered:
                    answered.append(value)
                    resume(value)

            def reply(value: Any) -> None:
                lost = self.blocked(node.name, TO_NODE)
                if not lost and not world.faults.strike("reply_lost", world.now_s):
                    node.later(world.random.uniform(0.005, 0.4), lambda: once(value))

            def arrive() -> None:
                if not world.coordinator.serving:
                    return
                try:
                    serve(reply)
                except FeddpError as error:
                    reply(error)

            node.later(CALL_TIMEOUT_S, lambda: once(LOST))
            if self.blocked(node.name, TO_COORDINATOR):
                return
            if world.faults.strike("call_lost", world.now_s):
                return
            late = world.faults.strike("call_late", world.now_s)
            world.later(world.random.uniform(0.005, 100.0 if late else 0.4), arrive)
            if world.faults.strike("call_twice", world.now_s):
                world.later(world.random.uniform(0.5, 120.0), arrive)

        return wait
