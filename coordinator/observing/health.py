"""Plain HTTP for probes and Prometheus: /health, /ready and /metrics, and nothing else."""

import errno
import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from protos.errors import Malformed, invariant

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger(__name__)

CLIENT_TIMEOUT_S = 10
"""A client that sends nothing for this long loses its connection and frees its thread."""

Ready = Callable[[], Mapping[str, bool]]


class HealthServer:
    """The three pages on a thread of their own, so that a busy event loop still answers.

    Args:
        host, port: where to listen; port 0 takes a free one, see `port`.
        ready: what must hold before work is sent here, by name; called from another thread.
        registry: what /metrics shows.
    """

    def __init__(self, host: str, port: int, ready: Ready, registry: CollectorRegistry) -> None:
        self._host = host
        self.port = port
        self._app = _application(ready, make_wsgi_app(registry))
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            Malformed: PORT_IN_USE, or ADDRESS_INVALID when `host` is none of this machine's.
        """
        invariant(self._server is None, "the health server is started once")
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            server = _Server((self._host, self.port), family)
        except OSError as error:
            raise _cannot_listen(self._host, self.port, error) from None
        server.set_app(self._app)
        self.port = server.server_address[1]
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and free the port; safe to call twice."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None


def _cannot_listen(host: str, port: int, error: OSError) -> Malformed:
    if error.errno == errno.EADDRINUSE:
        return Malformed(
            "PORT_IN_USE",
            f"port {port} on {host} is taken by another process; stop it or set another"
            " server.health_port",
        )
    return Malformed(
        "ADDRESS_INVALID",
        f"cannot listen on {host} port {port} ({error.strerror}); check server.health_host and"
        " server.health_port",
    )


def _application(ready: Ready, metrics: "WSGIApplication") -> "WSGIApplication":
    def app(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path not in ("/health", "/ready", "/metrics"):
            return _json(start, "404 Not Found", {"error": "try /health, /ready or /metrics"})
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _json(start, "405 Method Not Allowed", {"error": "GET and HEAD only"})
        if path == "/metrics":
            # The library answers GET only.
            as_get = environ | {"REQUEST_METHOD": "GET"}
            return _without_body_of_head(environ, metrics(as_get, start))
        if path == "/health":
            return _without_body_of_head(environ, _json(start, "200 OK", {"status": "alive"}))
        checks = _checked(ready)
        good = all(checks.values())
        status = "200 OK" if good else "503 Service Unavailable"
        body = _json(start, status, {"ready": good, "checks": checks})
        return _without_body_of_head(environ, body)

    return app


def _checked(ready: Ready) -> dict[str, bool]:
    try:
        return dict(ready())
    except Exception:  # a probe that cannot be answered is a "no", not a crash
        log.exception("readiness_check_failed")
        return {"readiness_check": False}


def _json(start: "StartResponse", status: str, body: object) -> list[bytes]:
    data = json.dumps(body, sort_keys=True).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
    if status.startswith("405"):
        headers.append(("Allow", "GET, HEAD"))
    start(status, [*headers, ("Cache-Control", "no-store")])
    return [data]


def _without_body_of_head(environ: "WSGIEnvironment", body: Iterable[bytes]) -> Iterable[bytes]:
    return [] if environ["REQUEST_METHOD"] == "HEAD" else body


class _QuietHandler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S
    server_version = "feddp"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        """A probe every few seconds is no news."""

    def get_stderr(self) -> Any:
        """Errors of the application are ours to log; see `_checked`."""
        return _Discard()


class _Discard:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily) -> None:
        self.address_family = family
        super().__init__(address, _QuietHandler)

    def server_bind(self) -> None:
        """Bind without the library's reverse name look-up, which may take seconds."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
