"""The open session of each node, and who counts as lost."""

import asyncio
import time
from collections.abc import AsyncIterator

from protos.feddp.v1 import federation_pb2 as federation

QUEUE_MESSAGES_MAX = 1024


class NodeSession:
    """One open stream of one node: messages for it, and when it was heard last."""

    def __init__(self, node: str) -> None:
        self.node = node
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
        self._began_at_s = time.monotonic()

    def open(self, node: str) -> NodeSession:
        """Begin a session; an older one of the same node ends."""
        self.cut(node)
        session = self._open[node] = NodeSession(node)
        return session

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
