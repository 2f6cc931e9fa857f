"""Machines that stop, fill up, forget or sleep: the job waits and goes on, and nothing is lost."""

import importlib.util
import os
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protos.errors import FeddpError
from protos.feddp.v1.jobs_pb2 import Job
from tests.chaos import books
from tests.chaos.acts import NODES, spec, submit_once
from tests.chaos.lives import Nursery, WatchedFederation
from tests.integration.federation import null_job, wait_for

SIX = ("n1", "n2", "n3", "n4", "n5", "n6")
AWAY_S = 49 * 3600


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedFederation]:
    """A federation that is not started yet."""
    federation = WatchedFederation(tmp_path)
    federation.configure(
        min_participants=2, node_disconnected_s=3, node_silent_s=3, heartbeat_interval_s=1
    )
    try:
        yield federation
    finally:
        federation.stop()


def begin(federation: WatchedFederation, names: tuple[str, ...] = NODES) -> None:
    """Start the coordinator, and nodes with it."""
    federation.start("coordinator")
    for name in names:
        federation.add_node(name)
        federation.start(name)
    federation.wait_for_nodes(*names)


def rounds_done(federation: WatchedFederation, job_id: str, at_least: int) -> None:
    """Wait until a job has published so many rounds."""

    def done() -> bool:
        job = federation.again(lambda client: client.job(job_id))
        assert job.status in ("running", "waiting", "completed"), job.message
        return bool(job.rounds_done >= at_least)

    wait_for(f"{at_least} rounds are done", done, 60)


def completed(federation: WatchedFederation, job_id: str) -> Job:
    """The job once it has ended well, with all books checked."""
    job = federation.wait_for_end(job_id, 90)
    assert job.status == "completed", job.message
    books.check_job(federation, job)
    books.check_ledgers(federation)
    return job


def test_a_third_of_the_nodes_stopped_does_not_stop_the_job(watched: WatchedFederation) -> None:
    """Their round closes with the quorum, later rounds leave them out, and they come back."""
    begin(watched, SIX)
    job_id = submit_once(watched, spec(20, min_participants=4))
    rounds_done(watched, job_id, 1)
    stopped = [watched.pid(name) for name in SIX[:2]]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        before = watched.job(job_id).rounds_done
        rounds_done(watched, job_id, min(20, before + 3))
        missing = {
            p.outcome for p in watched.job(job_id).rounds[-1].participation if p.node in SIX[:2]
        }
        assert missing <= {"lost", "left_out", "open"}
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    job = completed(watched, job_id)
    # One that had handed its update in when it was stopped is left out of the next round instead.
    found = {(p.outcome, p.node) for one in job.rounds for p in one.participation}
    assert {node for outcome, node in found if outcome in ("lost", "left_out")} == set(SIX[:2])
    assert "lost" in {outcome for outcome, _ in found}
    watched.wait_for_nodes(*SIX)
    job = completed(watched, submit_once(watched, spec()))
    assert {p.node for p in job.rounds[0].participation if p.outcome == "update"} == set(SIX)


def small_disk(folder: Path, kilobytes: int) -> list[str]:
    """A command that runs another with a small file system of its own over a folder."""
    script = 'mount -t tmpfs -o "size=$1k,mode=700" tmpfs "$2" && shift 2 && exec "$@"'
    start = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tried = subprocess.run(
        [*start, str(kilobytes), str(folder), "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"a private mount is not allowed here: {tried.stderr.strip()}")
    return [*start, str(kilobytes), str(folder)]


def seen_by(pid: int, folder: Path) -> Path:
    """A folder as the process sees it."""
    return Path(f"/proc/{pid}/root") / folder.relative_to("/")


def fill(folder: Path, name: str = "filler") -> Path:
    """Leave no byte free."""
    path = folder / name
    with path.open("wb", 0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    return path


def test_a_full_blob_store_refuses_uploads_and_the_job_goes_on_when_there_is_room(
    watched: WatchedFederation,
) -> None:
    """People and nodes are told STORE_FULL; nobody trains again; nothing needs a restart."""
    blobs = watched.installation.folder / "blobs"
    nursery = Nursery("coordinator", small_disk(blobs, 4096))
    watched.bear_in("coordinator", nursery)
    begin(watched)
    job_id = submit_once(watched, spec(40))
    rounds_done(watched, job_id, 2)
    disk = seen_by(nursery.pid, blobs)
    fillers: list[Path] = []

    def stands_still() -> bool:
        """What the round under way gives back is taken, too, until it has nothing more to give."""
        fillers.append(fill(disk, f"filler-{len(fillers)}"))
        return "has no room for another model" in "".join(watched.job(job_id).warnings)

    taken: list[str] = []

    def is_refused() -> bool:
        """A submission, once nothing that was under way gives room back any more."""
        fillers.append(fill(disk, f"filler-{len(fillers)}"))
        try:
            with watched.client() as client:
                taken.append(client.submit(spec()).job_id)
        except FeddpError as refused:
            assert refused.reason == "STORE_FULL"
            assert "free room" in refused.message
            return True
        return False

    wait_for("the job has no room", stands_still)
    wait_for("a submission is refused", is_refused)
    held = watched.job(job_id).rounds_done
    time.sleep(1)
    job = watched.job(job_id)
    assert job.status in ("running", "waiting"), job.message
    assert job.rounds_done <= held + 1
    assert "store_full" in watched.log("coordinator")
    for filler in fillers:
        filler.unlink()
    for one in (job_id, *taken, submit_once(watched, spec())):
        completed(watched, one)
    assert watched.deaths == {}


def test_a_full_spool_is_waited_for_and_costs_nothing(watched: WatchedFederation) -> None:
    """The agent says what it needs, opens no data meanwhile, and goes on at the same attempt."""
    begin(watched)
    spool = watched.agent("alpha") / "spool"
    watched.send_away("alpha")
    nursery = Nursery("agent", small_disk(spool, 256))
    watched.bear_in("alpha", nursery)
    watched.start("alpha")
    watched.wait_for_nodes(*NODES)
    filler = fill(seen_by(nursery.pid, spool))
    job_id = submit_once(watched, spec())
    wait_for("alpha's disk is full", lambda: "spool_full" in watched.log("alpha"), 30)
    filler.unlink()
    job = completed(watched, job_id)
    assert {p.outcome for p in job.rounds[0].participation} == {"update"}
    assert watched.deaths == {"alpha": 1}, "it was sent away once, by this test"


def test_a_spool_without_room_for_an_update_refuses_before_data_is_opened(
    watched: WatchedFederation,
) -> None:
    """The reservation is given back, the round goes on with the others, the next one has room."""
    begin(watched)
    spool = watched.agent("alpha") / "spool"
    watched.send_away("alpha")
    nursery = Nursery("agent", small_disk(spool, 256))
    watched.bear_in("alpha", nursery)
    watched.start("alpha")
    watched.wait_for_nodes(*NODES)
    filler = fill(seen_by(nursery.pid, spool))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - (100 << 10))  # for one model of 80 KB
    job = completed(watched, submit_once(watched, spec(more=19_000)))
    refused = {p.node: p.reason for p in job.rounds[0].participation if p.outcome != "update"}
    assert refused == {"alpha": "SPOOL_FULL"}
    filler.unlink()
    job = completed(watched, submit_once(watched, spec(more=19_000)))
    assert {p.outcome for p in job.rounds[0].participation} == {"update"}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_database_gone_in_a_commit_and_back_again(
    watched: WatchedFederation, moment: str
) -> None:
    """A commit that failed, or that nobody heard of, is neither lost nor done twice."""
    begin(watched)
    job_id = submit_once(watched, spec(40))
    rounds_done(watched, job_id, 2)
    watched.commit_fault.write_text(moment)
    time.sleep(1.5)
    watched.commit_fault.unlink()
    completed(watched, job_id)
    assert watched.deaths == {}


def test_a_coordinator_that_was_killed_keeps_no_update_that_is_folded(
    watched: WatchedFederation,
) -> None:
    """It dies as it begins to forget them, after the commit; the next one does it, at its start.
    What a round under way holds stays."""
    begin(watched)
    held = watched.installation.folder / "blobs/updates"
    point = "coordinator.uploads:Uploads.spend:rename:before"
    watched.arm("coordinator", point)
    with watched.leaving_away("coordinator"):
        job_id = watched.submit(null_job(3, parameters=100_000))
    left = {path.name for path in held.iterdir()}
    assert left, "nothing was left behind"
    watched.start("coordinator")
    wait_for("the leftovers are gone", lambda: not left & {p.name for p in held.iterdir()}, 20)
    completed(watched, job_id)
    watched.arm("coordinator", "coordinator.blobs:BlobStore.adopt_model:rename:before")
    job_id = watched.submit(null_job(1, parameters=100_000))
    job = completed(watched, job_id)
    assert watched.deaths["coordinator"] == 2
    assert {p.outcome for p in job.rounds[0].participation} == {"update"}


def test_after_49_hours_a_spooled_update_is_taken_and_nothing_is_trained_again(
    watched: WatchedFederation,
) -> None:
    """Coordinator and machines were away for two days; certificates live seven."""
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        pytest.skip("the package libfaketime is not installed, so time cannot be moved")
    library = Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    watched.configure(node_disconnected_s=30, node_silent_s=30)
    begin(watched)
    with watched.leaving_away("coordinator"):
        watched.arm("coordinator", "coordinator.rounds.events:UpdateReceived:journal:before")
        job_id = submit_once(watched, spec())
    for name in NODES:
        wait_for(f"{name} has spooled", spooled(watched.agent(name), job_id), 20)
        watched.send_away(name)
    later = {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"+{AWAY_S}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    agents = Nursery("agent", environment=later)
    watched.bear_in("coordinator", Nursery("coordinator", environment=later))
    for name in NODES:
        watched.bear_in(name, agents)
        watched.start(name)
    watched.start("coordinator")
    job = completed(watched, job_id)
    assert job.ended_at > time.time() + AWAY_S - 3600, "time was not moved"
    assert {p.outcome for p in job.rounds[0].participation} == {"update"}
    for name in NODES:
        log = books.lines(watched.agent(name) / f"logs/worker-{job_id}.log")
        assert Counter(line["event"] for line in log)["trained"] == 1


def spooled(folder: Path, job_id: str) -> Callable[[], bool]:
    """Whether a node holds a finished update of a job."""

    def asked() -> bool:
        with sqlite3.connect(folder / "state.db", timeout=5) as state:
            rows = state.execute("SELECT state FROM attempts WHERE job_id = ?", (job_id,))
            return ("spooled",) in rows.fetchall()

    return asked
