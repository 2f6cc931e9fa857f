"""A worker without network and with read-only files: tried by real processes of this machine."""

import asyncio
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from node_agent.confinement import landlock_version
from node_agent.launchers.base import Limits
from node_agent.launchers.local import LocalWorker
from node_agent.sources.database import Database
from node_agent.tasks import registry
from tests.node_agent.launchers.test_launcher import requests

needs_landlock = pytest.mark.skipif(
    landlock_version() == 0, reason="this machine's kernel has no Landlock"
)

SOCKETS = """
import ctypes, json, socket, subprocess, sys, threading
from node_agent.confinement import without_network
tries = {
    "tcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "tcp6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "unix": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "pair": socket.socketpair,
    "name": lambda: socket.create_connection(("localhost", 9), 1),
}
def outcome(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "made"
go, found = threading.Event(), {}
def beside():
    go.wait()
    found["thread"] = outcome(tries["tcp"])
thread = threading.Thread(target=beside)
thread.start()
libc = ctypes.CDLL(None, use_errno=True)
params = ctypes.create_string_buffer(120)
ring = lambda: (libc.syscall(425, 8, params), ctypes.get_errno())
before = {name: outcome(what) for name, what in tries.items() if name in ("tcp", "unix")}
taken = without_network()
go.set()
thread.join()
found |= {name: outcome(what) for name, what in tries.items()}
child = subprocess.run(
    [sys.executable, "-c", "import socket; socket.socket()"], capture_output=True
).returncode
print(json.dumps([taken, before, found, ring(), child]))
"""


def test_no_socket_leads_out_of_the_machine() -> None:
    """Of no family, thread, ring or child; what is within the machine still works."""
    done = subprocess.run(
        [sys.executable, "-c", SOCKETS], capture_output=True, text=True, check=True
    )
    taken, before, found, ring, child = json.loads(done.stdout)
    assert taken
    assert before == {"tcp": "made", "unix": "made"}
    refused = ("tcp", "tcp6", "udp", "packet", "vsock", "thread")
    assert {found[name] for name in refused} == {"PermissionError"}
    assert found["name"] != "made"
    assert (found["unix"], found["pair"]) == ("made", "made")
    assert ring == [-1, 13]
    assert child != 0


FILES = """
import json, os, sys, threading
from pathlib import Path
from node_agent.confinement import writing_only_beneath
data, out = Path(sys.argv[1]), Path(sys.argv[2])
assert writing_only_beneath([out])
tries = {
    "read": lambda: (data / "train.csv").read_text(),
    "append": lambda: (data / "train.csv").open("a"),
    "truncate": lambda: os.truncate(data / "train.csv", 0),
    "make": lambda: (data / "new").touch(),
    "folder": lambda: (data / "new").mkdir(),
    "remove": lambda: (data / "train.csv").unlink(),
    "rename": lambda: (data / "train.csv").rename(out / "stolen"),
    "link": lambda: os.symlink("/", data / "link"),
    "null": lambda: Path("/dev/null").write_text("x"),
    "out": lambda: (out / "update").write_text("x"),
    "replace": lambda: (out / "update").replace(out / "named"),
}
found = {}
def outcome(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"
def work():
    found.update({name: outcome(what) for name, what in tries.items()})
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps(found))
"""


@needs_landlock
def test_data_can_be_read_and_not_changed(tmp_path: Path) -> None:
    """Not even by root: no file outside the named folder is written, made, moved or removed."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    (data / "train.csv").write_text("kept")
    done = subprocess.run(
        [sys.executable, "-c", FILES, str(data), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    allowed = {"read", "null", "out", "replace"}
    found = json.loads(done.stdout)
    assert {name for name, what in found.items() if what == "done"} == allowed
    assert (data / "train.csv").read_text() == "kept"
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["data", "named", "out", "train.csv"]


def logged(path: Path, event: str) -> dict[str, object]:
    """The one line of that event in a worker's log."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if event in line]
    [found] = lines
    return dict(found)


@needs_landlock
def test_a_worker_trains_confined_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training needs neither a network nor more than its folder and a temporary one."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    out, log_path = tmp_path / "out", tmp_path / "worker.log"
    for folder in (out, tmp_path / "tmp"):
        folder.mkdir()

    async def scenario() -> None:
        prepare, train = requests(tmp_path)
        start = partial(LocalWorker.start, writable=(out,))
        worker = await start("j", log_path)
        assert await worker.request(prepare) == {"op": "prepared"}
        # The records' own folder is not among those that may be written.
        assert (await worker.request(train))["op"] == "no_update"
        named = {**train, "attempt_id": "a2", "out": str(out / "update.safetensors")}
        check = {k: v for k, v in named.items() if k not in ("attempt_id", "round")}
        answer = await worker.request({**check, "op": "check"})
        assert answer["op"] == "checked"
        assert (await worker.request(named))["op"] == "trained"
        await worker.stop()

    asyncio.run(scenario())
    assert logged(log_path, "worker_network")["open"] is False
    files = logged(log_path, "worker_files")
    assert files["read_only"] is True
    assert files["but"] == [str(out), str(tmp_path / "tmp")]
    # Nothing that the hospital can do anything about.
    assert "Warning" not in log_path.read_text()


@pytest.mark.parametrize(
    ("url", "is_reached"),
    [
        ("postgresql+psycopg://u@10.0.0.1/d", True),
        ("postgresql+psycopg:///d?host=10.0.0.1", True),
        ("postgresql+psycopg:///d?host=/run/postgresql", False),
        ("postgresql+psycopg:///d?host=/run/postgresql,db.example", True),
        ("postgresql+psycopg:///d?host=/run/postgresql&hostaddr=10.0.0.1", True),
        ("postgresql+psycopg:///?service=omop", True),
        ("postgresql+psycopg:///d", False),
        ("sqlite:////srv/d.db", False),
    ],
)
def test_which_databases_need_a_network(url: str, is_reached: bool) -> None:
    """Those with a host; a file or a socket's folder is within the machine."""
    assert Database(url=url).is_reached_by_network == is_reached


def test_a_database_over_the_network_keeps_it_and_the_log_says_so(tmp_path: Path) -> None:
    """The one case in which a worker has a network."""
    log_path = tmp_path / "worker.log"

    async def scenario() -> None:
        prepare, _ = requests(tmp_path)
        asked = {"source": "/q.sql", "database": {"url": "postgresql://u@10.0.0.1/d"}}
        null = registry.installed()[registry.NULL].content_hash
        task = {"task": registry.NULL, "task_hash": null, "task_config": {"parameters": 1}}
        worker = await LocalWorker.start("j", log_path)
        request = {**prepare, **task, "data_set": {**prepare["data_set"], **asked}}
        assert await worker.request(request) == {"op": "prepared"}
        await worker.stop()

    asyncio.run(scenario())
    assert logged(log_path, "worker_network")["open"] is True


def test_a_worker_has_its_own_session_and_the_limits_that_are_set(tmp_path: Path) -> None:
    """As the kernel says: no core file of records, no more data than allowed, its niceness."""
    most = 3 << 30

    async def scenario() -> None:
        prepare, _ = requests(tmp_path)
        null = registry.installed()[registry.NULL].content_hash
        task = {"task": registry.NULL, "task_hash": null, "task_config": {"parameters": 1}}
        limits = Limits(nice=7, memory_bytes_max=most)
        worker = await LocalWorker.start("j", tmp_path / "worker.log", limits)
        assert await worker.request({**prepare, **task}) == {"op": "prepared"}
        process = psutil.Process(worker.pid)
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_DATA) == (most, most)
        assert process.nice() == min(19, os.nice(0) + 7)
        assert os.getsid(worker.pid) == worker.pid
        await worker.stop()

    asyncio.run(scenario())
