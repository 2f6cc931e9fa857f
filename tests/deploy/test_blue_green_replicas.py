"""deploy/upgrade/blue_green.py with three real replicas on PostgreSQL, an S3-compatible store and
Envoy: `createdb` makes the copy."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.postgresql import PostgreSql
from benchmarks.s3_server import S3Server
from tests.deploy.versions import next_release, printed_json, script, way_back
from tests.integration.federation import NODES, job_file, wait_for
from tests.integration.replicas import REPLICAS
from tests.integration.test_failures import rounds_done
from tests.integration.test_rolling_upgrade import ManagedFederation

ROUNDS = 45
THREE = NODES[:3]


class Replicas(ManagedFederation):
    """Blue's three replicas, and green's, which have the same ports and another database."""

    def __init__(self, folder: Path, server: PostgreSql, s3: S3Server) -> None:
        url = server.new_database()
        super().__init__(folder, url, s3)
        self.following = next_release(folder / "next", older_may_serve=False)
        self.green = folder / "green"
        base, _, name = url.rpartition("/")
        copied = f"{name}_green"
        self.variable = "FEDDP_STORAGE__DATABASE_URL"
        self.environment_file = folder / "green.env"
        self.environment_file.write_text(f"{self.variable}={base}/{copied}\n")
        self.environment_file.chmod(0o600)
        self.password = folder / "password"
        self.password.write_text("a password of enough bytes\n")
        self.copies = (
            f"cp -a {self.installation.folder} {self.green}",
            f"{server.binaries}/createdb -h {server.folder} -p {server.port} -U postgres "
            f"--owner feddp --template {name} {copied}",
        )
        self.greens = {f"green-{number}": name for number, name in enumerate(REPLICAS)}
        for green, blue in self.greens.items():
            own = {**self.environment[blue], self.variable: f"{base}/{copied}"}
            log, config = folder / f"{green}.log", self.green / "coordinator.yaml"
            self.service.add(green, config, log, **own)

    def words(self, *more: object) -> list[object]:
        """What the script is given."""
        pages = {
            green: f"{green}=http://127.0.0.1:{self.ports[blue]['health_port']}"
            for green, blue in self.greens.items()
        }
        first, *others = self.greens
        blue, *also = REPLICAS
        return [
            *("--dir", self.installation.folder, "--green-dir", self.green),
            *("--old", self.now, "--new", self.following),
            *("--backup", self.folder / "upgrade.backup", "--password-file", self.password),
            *("--replica", pages[first].replace(first, blue, 1), "--replica", pages[first]),
            *(word for name in also for word in ("--also", name)),
            *(word for name in others for word in ("--then", pages[name])),
            *(word for copy in self.copies for word in ("--copy", copy)),
            *self.service.options,
            *more,
            "--run",
        ]

    def submitted(self) -> str:
        """A job that is under way."""
        job_id = self.submit(
            job_file(
                federation={"rounds": ROUNDS},
                privacy={"target_epsilon": None, "noise_multiplier": 30.0},
            )
        )
        rounds_done(self, job_id, 2)
        return job_id


@pytest.fixture
def replicas(
    postgresql_server: PostgreSql,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Replicas]:
    """Blue serves three nodes."""
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    found = Replicas(tmp_path, postgresql_server, s3)
    monkeypatch.setenv("FEDDP_STORAGE__BLOB_URL", found.bucket)
    monkeypatch.setenv("FEDDP_STORAGE__BLOB_ENDPOINT", s3.endpoint)
    try:
        found.open()
        for name in THREE:
            found.add_node(name)
            found.start(name)
        found.wait_for_nodes(*THREE)
        yield found
    finally:
        found.close()


def posts(entries: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Whom a ledger has charged for which round."""
    return sorted((one["node"], one["round"]) for one in entries if one["kind"] == "post")


def test_green_replicas_go_on_from_the_copy_of_blues_database(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job under way goes on there, and each node is charged once a round; blue's database is
    as it was, and of the older version."""
    job_id = replicas.submitted()
    blue = replicas.installation.folder
    done = script("blue_green", *replicas.words("--green-env", replicas.environment_file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert replicas.environment_file.read_text().strip() not in done.stdout
    assert not any(map(replicas.service.runs, REPLICAS))
    assert all(map(replicas.service.runs, replicas.greens))
    after = replicas.wait_for_end(job_id, 240)
    assert (after.status, after.rounds_done) == ("completed", ROUNDS), after.message
    left = printed_json(replicas.now, "budget", "ledger", "--dir", blue)["entries"]
    plan = printed_json(replicas.following, "coordinator", "upgrade", "--plan", "--dir", blue)
    assert plan["migrations"]
    name, _, url = replicas.environment_file.read_text().strip().partition("=")
    monkeypatch.setenv(name, url)
    there = printed_json(replicas.following, "budget", "ledger", "--dir", replicas.green)["entries"]
    assert {one["hash"] for one in left} < {one["hash"] for one in there}
    assert posts(there) == sorted((node, one + 1) for node in THREE for one in range(ROUNDS))


def test_a_green_that_serves_from_blues_database_is_found_and_stopped(
    replicas: Replicas,
) -> None:
    """Its address was forgotten, where the versions have the same tables: the script stops before
    work goes on, and its commands bring blue back to the end of the job."""
    job_id = replicas.submitted()
    for green, blue in replicas.greens.items():
        log, config = replicas.folder / f"{green}.log", replicas.green / "coordinator.yaml"
        replicas.service.add(green, config, log, **replicas.environment[blue])
    words = replicas.words()
    words[words.index("--new") + 1] = replicas.now
    done = script("blue_green", *words)
    assert done.returncode == 1, done.stdout
    assert "serves from blue's database" in done.stdout, done.stdout
    for command in way_back(done.stdout):
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    wait_for("blue's replicas are ready", lambda: all(map(replicas.ready, REPLICAS)))
    after = replicas.wait_for_end(job_id, 240)
    assert (after.status, after.rounds_done) == ("completed", ROUNDS), after.message
