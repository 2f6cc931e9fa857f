"""What stands before the transfer ports: passes connections on to replicas that a test chooses."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

PIECE_BYTES: Final = 64 << 10


class Relay:
    """Counts what it passes, and may do something once so many bytes have gone one way.

    Attributes:
        targets: ports, each new connection to the first that answers; none for refusing all.
        sent: bytes that clients have sent so far.
        answered: bytes that they were sent.
    """

    def __init__(self) -> None:
        self.targets: list[int] = []
        self.sent = self.answered = 0
        self._after: list[tuple[str, int, Callable[[], None]]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """On which it listens."""
        return int(self._listener.getsockname()[1])

    def once(self, way: str, more_bytes: int, do: Callable[[], None]) -> None:
        """Do something once so many more bytes were "sent" or "answered", of which the last wait
        for it."""
        with self._lock:
            self._after.append((way, getattr(self, way) + more_bytes, do))

    def cut(self) -> None:
        """End every connection; new ones are taken."""
        with self._lock:
            gone, self._open = self._open, []
        for one in gone:
            _shut(one)

    def close(self) -> None:
        """End everything."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._dialled()
            if server is None:
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            for source, target, way in ((client, server, "sent"), (server, client, "answered")):
                threading.Thread(target=self._pass, args=(source, target, way), daemon=True).start()

    def _dialled(self) -> socket.socket | None:
        for port in list(self.targets):
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", port), 3)
        return None

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                self._count(way, len(data))
                target.sendall(data)
        _shut(source)
        _shut(target)

    def _count(self, way: str, bytes_: int) -> None:
        with self._lock:
            now = getattr(self, way) + bytes_
            setattr(self, way, now)
            due = [one for one in self._after if one[0] == way and one[1] <= now]
            self._after = [one for one in self._after if one not in due]
        for _, _, do in due:
            do()


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
