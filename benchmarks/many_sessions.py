"""Some hundred agents' sessions behind a gateway: memory, time of an answer, and coming back."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from benchmarks.federation import COORDINATOR
from benchmarks.gateway_site import Mode, Site, site, start
from benchmarks.measuring import resident_mib
from benchmarks.null_round import SETTLE_S
from benchmarks.results import Result, result
from certs.authority import Authority
from certs.enrolment import new_key, private_pem
from certs.spiffe import SpiffeId
from coordinator.store import certificates
from coordinator.store.database import Database
from coordinator.store.schema import nodes

PROCESSES: Final = 4
CONNECT_S_MAX: Final = 180.0
LOOK_S: Final = 0.1
CLASSES: Final = ("edge", "hpc", "cloud")


@dataclass(frozen=True, slots=True)
class ManySessions:
    """Sessions that the agent's own code keeps open (its link, its back-off, its heartbeats), each
    on a connection of its own with a certificate of its own; only what an agent does besides is
    left out.

    Attributes:
        watch_s: how long answers are timed.
    """

    mode: Mode
    sessions: int
    watch_s: float

    disk_bytes = 0

    def run(self, case: str) -> list[Result]:
        """Connect all, time answers, kill the gateway and start it again."""
        with site(self.mode) as running:
            _enrol(running, self.sessions)
            start(running)
            coordinator = int(json.loads((running.folder / "pids.json").read_text())[COORDINATOR])
            time.sleep(SETTLE_S)
            before_mib = resident_mib(coordinator)
            crowd = Crowd(running, self.sessions)
            try:
                crowd.until(self.sessions, CONNECT_S_MAX)
                time.sleep(SETTLE_S)
                took_s = crowd.echoes(self.watch_s)
                after_mib = resident_mib(coordinator)
                running.kill_envoy()
                crowd.until(0, CONNECT_S_MAX)
                began_s = time.monotonic()
                running.start_envoy()
                crowd.until(self.sessions, CONNECT_S_MAX)
                back_s = time.monotonic() - began_s
            finally:
                crowd.close()
        each_kib = 1024 * (after_mib - before_mib) / self.sessions
        p99_ms = 1000 * statistics.quantiles(took_s, n=100)[98]
        return [
            result(case, "memory_per_session", each_kib, "KiB"),
            result(case, "heartbeat_p99", p99_ms, "ms"),
            result(case, "all_back_after_restart", back_s, "s"),
        ]


class Crowd:
    """The processes that hold the sessions."""

    def __init__(self, running: Site, sessions: int) -> None:
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.session_holder"),
                    *(str(running.folder / "nodes"), running.through),
                    *(str(first), str(PROCESSES)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for first in range(PROCESSES)
        ]

    def until(self, wanted: int, seconds_max: float) -> None:
        """Wait until so many sessions are welcomed.

        Raises:
            RuntimeError: they are not in time: some are stuck.
        """
        deadline_s = time.monotonic() + seconds_max
        while (now := sum(self._ask("connected"))) != wanted:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{now} of {wanted} sessions after {seconds_max:.0f} s")
            time.sleep(LOOK_S)

    def echoes(self, seconds: float) -> list[float]:
        """Seconds of each answer to a message on a stream, for a while."""
        return [one for each in self._ask(f"echo {seconds}") for one in each]

    def _ask(self, question: str) -> list[Any]:
        for one in self._processes:
            assert one.stdin is not None
            one.stdin.write(f"{question}\n")
            one.stdin.flush()
        answers = []
        for one in self._processes:
            assert one.stdout is not None
            line = one.stdout.readline()
            if not line:
                raise RuntimeError("a process that holds sessions has ended")
            answers.append(json.loads(line))
        return answers

    def close(self) -> None:
        """End them."""
        for one in self._processes:
            one.kill()
            one.wait()


def _enrol(running: Site, sessions: int) -> None:
    """Register nodes as joins would, and write their identities to `folder`/nodes."""
    folder: Path = running.folder / "nodes"
    folder.mkdir()
    authority = Authority.load(running.installation.folder / "pki")
    now = datetime.now(UTC)
    issued = []
    for number in range(sessions):
        key, name = new_key(), f"node-{number}"
        identity = SpiffeId(authority.trust_domain, "node", name)
        one = authority.issue(key.public_key(), identity, now=now, lifetime=timedelta(days=7))
        issued.append((name, one))
        text = {
            "key": private_pem(key).decode(),
            "chain": one.chain_pem.decode(),
            "bundle": authority.trust_bundle.decode(),
        }
        (folder / f"{number}.json").write_text(json.dumps(text))

    def work(connection: Connection) -> None:
        for number, (name, one) in enumerate(issued):
            connection.execute(
                nodes.insert().values(
                    name=name,
                    node_class=CLASSES[number % len(CLASSES)],
                    status="enrolled",
                    ledger_public_key=bytes(32),
                    created_at=now.timestamp(),
                    last_seen_at=0.0,
                    hello=b"",
                )
            )
            certificates.add(connection, one)

    database = Database(f"sqlite:///{running.installation.folder / 'coordinator.db'}")
    try:
        database.migrate()
        database.write_now(work)
    finally:
        database.close()
