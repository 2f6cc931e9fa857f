"""An HTTPS server in a process of its own, which keeps what is posted to it.

What it answers stands in a file that is read at each request: a status, and after a blank a URL
for the header Location, or `silence`. Run as `python -m tests.https_receiver FOLDER`.
"""

import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from certs.authority import Authority
from certs.enrolment import private_pem
from coordinator.server_certificate import issue

STARTED = "port"


class Receiver:
    """Its folder, as a test sees it.

    Attributes:
        ca_file: whom to trust as this server.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca_file = folder / "ca.pem"
        self.answer("200")

    def answer(self, what: str) -> None:
        """What it answers from now on."""
        (self.folder / "answer").write_text(what)

    @property
    def url(self) -> str:
        """Where to post."""
        return f"https://localhost:{(self.folder / STARTED).read_text()}/hook?key=sesame"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Every request so far: method, path, headers, body."""
        kept = self.folder / "requests"
        return [json.loads(one) for one in kept.read_text().splitlines()] if kept.exists() else []

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Of the requests that were answered 200."""
        return [json.loads(one["body"]) for one in self.requests if one["answer"] == "200"]


@contextmanager
def https_receiver(folder: Path, host: str = "localhost") -> Iterator[Receiver]:
    """One that listens, with a certificate for `host` of an authority of its own."""
    folder.mkdir()
    authority = Authority.create(folder / "ca", "receiver.example")
    key, chain = issue(authority, [host], [], datetime.now(UTC))
    (folder / "server.pem").write_bytes(private_pem(key) + chain)
    made = Receiver(folder)
    made.ca_file.write_bytes(authority.trust_bundle)
    process = subprocess.Popen([sys.executable, "-m", "tests.https_receiver", str(folder)])
    try:
        deadline_s = time.monotonic() + 20
        while not (folder / STARTED).exists():
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.02)
        yield made
    finally:
        process.kill()
        process.wait()


def main(folder: Path) -> None:
    """Serve until killed."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = (folder / "answer").read_text()
            kept = {
                "method": self.command,
                "path": self.path,
                "headers": dict(self.headers),
                "body": body.decode(),
                "answer": answer,
            }
            with (folder / "requests").open("a") as file:
                file.write(json.dumps(kept) + "\n")
            if answer == "silence":
                time.sleep(3600)
            status, _, location = answer.partition(" ")
            self.send_response(int(status))
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - what a followed redirect would be

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    ready = folder / f"{STARTED}.new"
    ready.write_text(str(server.server_address[1]))
    ready.rename(folder / STARTED)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
