"""A real Prometheus for tests: its two programs, and a server that scrapes one address."""

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from feddp.demo.ports import free_ports

ROOT: Final = Path(__file__).resolve().parents[2]
RULES: Final = ROOT / "charts/feddp/rules/feddp.yaml"
JOB: Final = "feddp-coordinator"
UNPACKED: Final = ROOT / "build/prometheus"
"""Where Debian's package is unpacked on a machine that does not have it installed."""

START_S_MAX: Final = 30.0


def program(name: str) -> str:
    """Path of `prometheus` or `promtool`: the machine's, else from Debian's package by apt."""
    installed = shutil.which(name)
    if installed:
        return installed
    unpacked = UNPACKED / "usr/bin" / name
    if not unpacked.exists():
        _unpack()
    if not unpacked.exists():
        pytest.skip(f"no {name} here, and apt cannot fetch Debian's package prometheus")
    return str(unpacked)


def _unpack() -> None:
    """Without installing: nothing is started, and no rights are needed."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return
    UNPACKED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=UNPACKED.parent) as work:
        words = ["apt-get", "download", "-qq", "prometheus"]
        fetched = subprocess.run(words, cwd=work, check=False, capture_output=True, timeout=200)
        archives = list(Path(work).glob("prometheus_*.deb"))
        if fetched.returncode or not archives:
            return
        whole = Path(work) / "whole"
        subprocess.run(["dpkg-deb", "-x", archives[0], whole], check=True, timeout=100)
        # Another process of the tests may have been faster.
        with contextlib.suppress(OSError):
            whole.rename(UNPACKED)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server."""

    address: str

    def get(self, path: str, **query: str) -> Any:
        """`data` of an answer of its API."""
        asked = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(asked, timeout=20) as answer:  # noqa: S310 - loopback
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        assert said["status"] == "success", said
        return said["data"]

    def values(self, expression: str) -> list[float]:
        """What an expression gives now."""
        found = self.get("query", query=expression)
        if found["resultType"] == "scalar":
            return [float(found["result"][1])]
        return [float(one["value"][1]) for one in found["result"]]


@contextlib.contextmanager
def running(folder: Path, targets: Sequence[str], interval: str = "1s") -> Iterator[Prometheus]:
    """A server that scrapes `targets` (HOST:PORT) as one job and evaluates the project's alerts."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    settings = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": JOB,
                "honor_labels": True,
                "static_configs": [{"targets": list(targets)}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    words = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        deadline_s = time.monotonic() + START_S_MAX
        while not _ready(server):
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline_s, (folder / "prometheus.log").read_text()
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def _ready(server: Prometheus) -> bool:
    """It listens some time before it answers questions."""
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"{server.address}/-/ready", timeout=20) as answer,  # noqa: S310
    ):
        return answer.status == 200
    return False
