"""An S3-compatible server of one's own, SeaweedFS: on free ports of loopback, gone at the end."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from feddp.demo.ports import free_ports

BINARY: Final = Path(sys.executable).parent / "weed"
READY_S_MAX: Final = 60.0
VOLUMES: Final = 100_000
"""Of 64 MiB at most. A bucket takes six or seven, however little is in it."""

PORTS: Final = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"),
)


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server. It makes a bucket when something is first put into it.

    Attributes:
        credentials: the environment of who may do everything.
        reader: the environment of who may only read.
    """

    endpoint: str
    credentials: dict[str, str]
    reader: dict[str, str]
    pid: int

    def pause(self) -> None:
        """SIGSTOP: it takes connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def new_bucket(self) -> str:
        """An empty bucket; its URL for storage.blob_url."""
        return f"s3://feddp-{secrets.token_hex(6)}"

    def names(self, url: str) -> list[str]:
        """Of everything in a bucket."""
        import obstore
        from obstore.store import S3Store

        store = S3Store(
            url.removeprefix("s3://"),
            config={
                "endpoint": self.endpoint,
                "access_key_id": self.credentials["AWS_ACCESS_KEY_ID"],
                "secret_access_key": self.credentials["AWS_SECRET_ACCESS_KEY"],
                "region": self.credentials["AWS_REGION"],
            },
            client_options={"allow_http": True},
        )
        return sorted(str(one["path"]) for batch in obstore.list(store) for one in batch)


@contextmanager
def s3_server(volumes: int = VOLUMES) -> Iterator[S3Server]:
    """Start a server, and stop it at the end.

    Args:
        volumes: at most; with too few of them it is full.

    Raises:
        RuntimeError: it did not start; the end of its log says why.
    """
    folder = Path(tempfile.mkdtemp(prefix="feddp-s3-"))
    try:
        people = [_person("all", ["Admin", "Read", "Write", "List"]), _person("reader", ["Read"])]
        (folder / "s3.json").write_text(json.dumps({"identities": people}))
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(str(BINARY), f"-logdir={folder}", "server", f"-dir={folder}"),
                    *("-filer", "-s3", f"-s3.config={folder / 's3.json'}"),
                    *(f"-filer.localSocket={folder}/f", f"-s3.localSocket={folder}/s"),
                    *("-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
                    *("-master.volumeSizeLimitMB=64", f"-volume.max={volumes}"),
                    *(f"-{name}={port}" for name, port in ports.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            keys = [_environment(person) for person in people]
            server = S3Server(endpoint, keys[0], keys[1], process.pid)
            _until_ready(server, process, folder / "log")
            yield server
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            for port in ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - its own
                    left.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _person(name: str, actions: list[str]) -> dict[str, Any]:
    keys = {"accessKey": secrets.token_hex(8), "secretKey": secrets.token_hex(16)}
    return {"name": name, "credentials": [keys], "actions": actions}


def _environment(person: dict[str, Any]) -> dict[str, str]:
    (keys,) = person["credentials"]
    return {
        "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_REGION": "us-east-1",
    }


def _until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """It answers some seconds before it can keep anything."""
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    deadline_s = time.monotonic() + READY_S_MAX
    store = S3Store(
        "ready",
        config={
            "endpoint": server.endpoint,
            "access_key_id": server.credentials["AWS_ACCESS_KEY_ID"],
            "secret_access_key": server.credentials["AWS_SECRET_ACCESS_KEY"],
            "region": "us-east-1",
        },
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            obstore.put(store, "ready", b"")
        except BaseError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-2000:]}")
