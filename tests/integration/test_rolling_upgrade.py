"""The scripts of deploy/upgrade on three real coordinators of one PostgreSQL, while a job runs."""

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from tests.deploy.versions import Service, next_release, printed_json, script, version_folder
from tests.integration.federation import job_file, wait_for
from tests.integration.replicas import REPLICAS, ReplicatedFederation
from tests.integration.test_failures import check_books, per_round, rounds_done
from tests.integration.test_replicas import MOVED_S_MAX

ROUNDS = 75
NOW = "now"


class ManagedFederation(ReplicatedFederation):
    """Its replicas run as services would, so that another process can replace them."""

    def __init__(self, folder: Path, database_url: str, s3: S3Server) -> None:
        super().__init__(folder, database_url=database_url, s3=s3)
        self.service = Service(folder / "service")
        self.now = version_folder(folder / "versions", NOW)
        for name in REPLICAS:
            log, config = folder / f"{name}.log", self.installation.config
            self.service.add(name, config, log, **self.environment[name])
            self.service.switch(name, self.now)

    def start(self, name: str) -> None:
        """A replica through the service."""
        if name not in REPLICAS:
            super().start(name)
            return
        self.service.start(name)
        wait_for(f"{name} is ready", lambda: self.ready(name))

    def ready(self, name: str) -> bool:
        """What its /ready says."""
        assert self.service.runs(name), self.log(name)
        return bool(self._page(name, "ready").get("ready"))

    def leads(self, name: str) -> bool:
        """Whether this replica says that it leads."""
        return "feddp_leading 1.0" in self._text(name, "metrics")

    def options(self, old: Path, new: Path, backup: Path) -> list[object]:
        """What the scripts are given."""
        pages = [
            word
            for name in REPLICAS
            for word in ("--replica", f"{name}=http://127.0.0.1:{self.ports[name]['health_port']}")
        ]
        folder = self.installation.folder
        where = ["--dir", folder, "--old", old, "--new", new, "--backup", backup]
        password = self.folder / "password"
        password.write_text("a password of enough bytes\n")
        return [*where, *pages, *self.service.options, "--password-file", password]

    def close(self) -> None:
        """End everything."""
        self.service.close()
        super().close()


@pytest.fixture
def federation(
    postgresql_server: PostgreSql,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ManagedFederation]:
    """Three replicas of now, and three nodes that dial any of them."""
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    federation = ManagedFederation(tmp_path, postgresql_server.new_database(), s3)
    # The scripts' own look at the installation is not one of the replicas.
    monkeypatch.setenv("FEDDP_STORAGE__BLOB_URL", federation.bucket)
    monkeypatch.setenv("FEDDP_STORAGE__BLOB_ENDPOINT", s3.endpoint)
    with federation.with_nodes():
        yield federation


@dataclass(slots=True)
class Gaps:
    """The longest times, in seconds, that no replica said that it leads, and that none of an
    operator's calls was answered."""

    leaderless_s: float = 0.0
    unanswered_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.leaderless_s:.1f} s without a leader, {self.unanswered_s:.1f} s no answer"


@contextmanager
def watched(federation: ManagedFederation) -> Iterator[Gaps]:
    """What is seen from outside meanwhile."""
    found, done = Gaps(), threading.Event()

    def longest(holds: Callable[[], bool], name: str) -> None:
        held_s = time.monotonic()
        while not done.wait(0.05):
            if holds():
                held_s = time.monotonic()
            setattr(found, name, max(getattr(found, name), time.monotonic() - held_s))

    led = functools.partial(longest, lambda: any(map(federation.leads, REPLICAS)), "leaderless_s")
    served = functools.partial(longest, federation.is_served, "unanswered_s")
    threads = [threading.Thread(target=one) for one in (led, served)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_job_goes_through_a_rolling_upgrade_and_the_way_back(
    federation: ManagedFederation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three replicas are replaced by the next release, whose migration lets the old ones serve, and
    again by the old one on the tables that it left; every node is charged once a round."""
    following = next_release(tmp_path / "next", older_may_serve=True)
    folder = federation.installation.folder
    job_id = federation.submit(
        job_file(
            federation={"rounds": ROUNDS},
            privacy={"target_epsilon": None, "noise_multiplier": 30.0},
        )
    )
    rounds_done(federation, job_id, 2)
    first = federation.leader()
    with watched(federation) as gaps:
        options = federation.options(federation.now, following, tmp_path / "one.backup")
        done = script("rolling", *options, "--run")
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        sys.stdout.write(f"\nrolling upgrade: {gaps}\n")
    assert max(gaps.leaderless_s, gaps.unanswered_s) < MOVED_S_MAX
    assert {federation.service.version(name) for name in REPLICAS} == {following.name}
    assert done.stdout.index(f"{first}: stop ...") > max(
        done.stdout.index(f"{name}: stop ...") for name in REPLICAS if name != first
    )
    assert federation.job(job_id).ended_at == 0, "the job has to run meanwhile"
    plan = printed_json(federation.now, "coordinator", "upgrade", "--plan", "--dir", folder)
    assert plan["revision"] > plan["newest"] == plan["oldest_that_serves"]

    with watched(federation) as gaps:
        options = federation.options(following, federation.now, tmp_path / "two.backup")
        done = script("rollback", *options, "--run")
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        sys.stdout.write(f"rollback: {gaps}\n")
    assert max(gaps.leaderless_s, gaps.unanswered_s) < MOVED_S_MAX
    assert {federation.service.version(name) for name in REPLICAS} == {NOW}
    after = federation.wait_for_end(job_id, 300)
    assert (after.status, after.rounds_done) == ("completed", ROUNDS), after.message
    check_books(federation, after)
    assert set(per_round(federation).values()) == {1}
