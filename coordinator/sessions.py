"""The open session of each node, and who counts as lost."""

import asyncio
import time
from collections.abc import AsyncIterator

from protos.errors import WrongPhase
from protos.feddp.v1 import federation_pb2 as federation

QUEUE_MESSAGES_MAX = 1024

ALIVE_S = 15.0
"""An agent that was heard in this time is alive: it beats at least every 5 s. Another one with the
same identity waits until it is not."""

AGAIN_S = 5.0
"""After which that one may ask again."""


class NodeSession:
    """One open stream of one node: messages for it, and when it was heard last."""

    def __init__(self, node: str, instance: str = "") -> None:
        self.node = node
        self.instance = instance
        self.heard_at_s = time.monotonic()
        self._messages: asyncio.Queue[federation.CoordinatorMessage | None] = asyncio.Queue(
            QUEUE_MESSAGES_MAX
        )

    def heard(self) -> None:
        """Note that the node spoke."""
        self.heard_at_s = time.monotonic()

    def send(self, message: federation.CoordinatorMessage) -> None:
        """Queue a message; a node that reads nothing is cut, and gets its orders again later."""
        try:
            self._messages.put_nowait(message)
        except asyncio.QueueFull:
            self.end()

    def end(self) -> None:
        """End the stream after the messages that are queued, or now if the queue is full."""
        while self._messages.full():
            self._messages.get_nowait()
        self._messages.put_nowait(None)

    async def messages(self) -> AsyncIterator[federation.CoordinatorMessage]:
        """Messages for the node until the session ends."""
        while (message := await self._messages.get()) is not None:
            yield message


class Sessions:
    """Which nodes are connected.

    Args:
        silent_s: a node whose stream is open but that says nothing this long is lost.
        disconnected_s: a node whose stream broke this long ago is lost.
    """

    def __init__(self, silent_s: float, disconnected_s: float) -> None:
        self._silent_s = silent_s
        self._disconnected_s = disconnected_s
        self._open: dict[str, NodeSession] = {}
        self._left_at_s: dict[str, float] = {}
        self._second_at_s: dict[str, float] = {}
        self._began_at_s = time.monotonic()

    def begin(self) -> None:
        """Nodes can connect from now on: from now on they are missed."""
        self._began_at_s = time.monotonic()

    def check(self, node: str, instance: str) -> None:
        """Return if an agent may begin a session.

        Args:
            instance: drawn at the start of its process; empty from agents of 0.1.0.

        Raises:
            WrongPhase: SESSION_TAKEN, another agent with this identity is connected and alive.
        """
        held = self._open.get(node)
        if held is None or held.instance in ("", instance):
            return
        silent_s = time.monotonic() - held.heard_at_s
        if silent_s >= ALIVE_S:
            return
        self._second_at_s[node] = time.time()
        raise WrongPhase(
            "SESSION_TAKEN",
            f"another agent is connected as {node} and was heard {silent_s:.0f} s ago; an identity "
            "is for one machine: stop the other, or this one if its folder is a copy",
            retry_after_s=AGAIN_S,
        )

    def open(self, node: str, instance: str = "") -> NodeSession:
        """Begin a session; an older one of the same agent ends.

        Raises:
            WrongPhase: SESSION_TAKEN.
        """
        self.check(node, instance)
        self.cut(node)
        session = self._open[node] = NodeSession(node, instance)
        return session

    def second_at_s(self, node: str) -> float:
        """When a second agent with the node's identity was refused last; 0 for never."""
        return self._second_at_s.get(node, 0.0)

    def close(self, session: NodeSession) -> None:
        """The stream is gone."""
        if self._open.get(session.node) is session:
            del self._open[session.node]
            self._left_at_s[session.node] = time.monotonic()

    def cut(self, node: str) -> None:
        """End a node's session from this side."""
        session = self._open.pop(node, None)
        if session is not None:
            self._left_at_s[node] = time.monotonic()
            session.end()

    def send(self, node: str, message: federation.CoordinatorMessage) -> bool:
        """Queue a message; False when the node is not connected."""
        session = self._open.get(node)
        if session is None:
            return False
        session.send(message)
        return True

    def connected(self, node: str) -> bool:
        """Whether the node's stream is open and it spoke recently."""
        session = self._open.get(node)
        return session is not None and time.monotonic() - session.heard_at_s < self._silent_s

    def lost(self, node: str) -> bool:
        """Whether the node has been away so long that nobody waits for it."""
        if node in self._open:
            return not self.connected(node)
        left_at_s = self._left_at_s.get(node, self._began_at_s)
        return time.monotonic() - left_at_s >= self._disconnected_s

    def nodes(self) -> list[str]:
        """Nodes with an open stream."""
        return list(self._open)

    def drain(self) -> None:
        """Ask every node to reconnect, and end every stream."""
        for node in self.nodes():
            self.send(node, federation.CoordinatorMessage(drain=federation.Drain()))
            self.cut(node)
