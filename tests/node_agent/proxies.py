"""Proxies and middleboxes for tests: real sockets and real TLS, each with one habit."""

import base64
import contextlib
import math
import select
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

BUFFER: Final = 1 << 16
HEAD_MAX: Final = 1 << 14


class _Listener:
    """Serves each connection on a thread of its own until the block ends."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_server((host, 0))
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection now."""
        with self._lock:
            open_, self._open = self._open, set()
        for one in open_:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def keep(self, connection: socket.socket) -> None:
        """Break it with the others."""
        with self._lock:
            self._open.add(connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.keep(connection)
            threading.Thread(target=self._served, args=(connection,), daemon=True).start()

    def _served(self, connection: socket.socket) -> None:
        # ValueError: `cut` has closed a socket that is being waited for.
        with contextlib.suppress(OSError, ssl.SSLError, ValueError), connection:
            self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """One connection."""
        raise NotImplementedError


class ConnectProxy(_Listener):
    """An HTTP proxy that knows CONNECT.

    Args:
        credentials: "user:password" that it asks for; none if empty.
        status: answer everybody with this status line instead, such as "403 Forbidden".
        hosts: where the names that it knows are; others it looks up.
        headers: lines of every answer, such as "Date: ...".
        idle_s: a tunnel through which nothing went for so long is closed.
        life_s: a tunnel is closed after so long.
        bytes_max: what comes from the client beyond it is swallowed, as a broken tunnel does.
        host: where it listens.

    Attributes:
        asked: "host:port" of each CONNECT that it took.
        heard: each request's head.
    """

    def __init__(
        self,
        credentials: str = "",
        status: str = "",
        hosts: Mapping[str, tuple[str, int]] | None = None,
        headers: str = "",
        idle_s: float | None = None,
        life_s: float | None = None,
        bytes_max: float = math.inf,
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__(host)
        self._credentials = credentials
        self._status = status
        self._hosts = hosts or {}
        self._headers = headers
        self._idle_s = idle_s
        self._life_s = life_s
        self._bytes_max = bytes_max
        self.asked: list[str] = []
        self.heard: list[str] = []

    def url(self, credentials: str = "") -> str:
        """As https_proxy has it."""
        return f"http://{credentials}{'@' if credentials else ''}{self.host}:{self.port}"

    def serve(self, connection: socket.socket) -> None:
        """Read a CONNECT, answer it, and carry bytes."""
        head, rest = _head(connection)
        self.heard.append(head)
        status = self._status or self._refusal(head)
        if status:
            self._answer(connection, status)
            return
        target = head.split(" ")[1]
        host, _, port = target.rpartition(":")
        try:
            address = self._hosts.get(host.strip("[]"), (host.strip("[]"), int(port)))
            upstream = socket.create_connection(address, timeout=5)
        except OSError:
            self._answer(connection, "502 Bad Gateway")
            return
        upstream.settimeout(None)
        self.keep(upstream)
        if self._life_s is not None:
            end = threading.Timer(self._life_s, _shut, (connection, upstream))
            end.daemon = True
            end.start()
        self.asked.append(target)
        self._answer(connection, "200 Connection established")
        with upstream:
            upstream.sendall(rest)
            _carry(connection, upstream, self._idle_s, self._bytes_max)

    def _refusal(self, head: str) -> str:
        if not self._credentials:
            return ""
        wanted = f"basic {base64.b64encode(self._credentials.encode()).decode()}"
        for line in head.splitlines()[1:]:
            name, _, value = line.partition(":")
            if name.lower() == "proxy-authorization":
                scheme, _, text = value.strip().partition(" ")
                if f"{scheme.lower()} {text}" == wanted:
                    return ""
        return "407 Proxy Authentication Required"

    def _answer(self, connection: socket.socket, status: str) -> None:
        more = 'Proxy-Authenticate: Basic realm="hospital"\r\n' if status[:3] == "407" else ""
        connection.sendall(f"HTTP/1.1 {status}\r\n{more}{self._headers}\r\n".encode())


class Middlebox(_Listener):
    """Ends TLS, as an inspection does; whoever looks only at what it shows need not be let through.

    Args:
        certificate, key: PEM files of what it shows.
        alpn: protocols that it offers; empty for a box that knows no ALPN.
        version: of TLS, the highest that it knows.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        alpn: tuple[str, ...] = ("h2",),
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        super().__init__()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.maximum_version = version
        if alpn:
            self._context.set_alpn_protocols(list(alpn))

    def serve(self, connection: socket.socket) -> None:
        """Shake hands, and keep what is said."""
        with self._context.wrap_socket(connection, server_side=True) as inside:
            while inside.recv(BUFFER):
                pass


class Mute(_Listener):
    """Takes connections and never says anything."""

    def serve(self, connection: socket.socket) -> None:
        """Read until the other side has enough."""
        while connection.recv(BUFFER):
            pass


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _head(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(BUFFER)
        if not more or len(data) > HEAD_MAX:
            raise OSError("no request")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def _carry(
    one: socket.socket, other: socket.socket, idle_s: float | None, bytes_max: float
) -> None:
    """Carry bytes both ways until an end closes, or nothing went either way for too long."""
    ends = {one: other, other: one}
    carried = 0
    while True:
        ready, _, _ = select.select(list(ends), [], [], idle_s)
        if not ready:
            return _shut(one, other)
        for source in ready:
            try:
                data = source.recv(BUFFER)
                carried += len(data) if source is one else 0
                if source is other or carried <= bytes_max:
                    ends[source].sendall(data)
            except OSError:
                return _shut(one, other)
            if not data:
                return _shut(one, other)


def _shut(*ends: socket.socket) -> None:
    for one in ends:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
