"""The agent looks at the headers of its data sets before any order, and tells what is wrong."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog

from certs.authority import Authority
from node_agent.data import header_watch
from node_agent.data.aside import run_aside
from node_agent.data.header_watch import HeaderWatch
from node_agent.folder.config import Folder
from node_agent.policy.steward import Steward
from node_agent.status import status
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    make_agent,
)
from tests.node_agent.samples import DATA_SET, POLICY, write_rules

RIGHT = "patient_id,age,disease\nsecret7,60,1\n"
WRONG = "id,age,disease\nsecret7,60,1\n"
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An agent that has joined."""
    return make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)


def test_a_wrong_column_is_told_at_the_first_look_and_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log names the column; files that have not changed are not read again."""
    source = folder.root / "train.csv"
    source.write_text(WRONG)
    watch = HeaderWatch(folder, Steward(folder))
    reads = []
    real = header_watch.check_header
    monkeypatch.setattr(header_watch, "check_header", lambda s: (reads.append(s.name), real(s))[1])
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            asyncio.run(watch.look())
    assert reads == ["heart"]
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("data_set_unavailable", "error")
    assert (line["data_set"], line["reason"]) == ("heart", "SCHEMA_MISMATCH")
    assert "column 'patient_id' is missing" in line["detail"]
    assert "secret7" not in str(logs)
    assert watch.reasons() == {"heart": "SCHEMA_MISMATCH"}
    assert status(folder.root)["data_sets"][0]["message"] == line["detail"]


@pytest.mark.parametrize("change", ["file", "rules", "gone"])
def test_every_change_is_looked_at(folder: Folder, change: str) -> None:
    """A file that is written, a declaration that is changed, a file that goes and comes back."""
    source = folder.root / "train.csv"
    watch = HeaderWatch(folder, Steward(folder))
    asyncio.run(watch.look())
    assert watch.reasons() == {}
    reason = "SCHEMA_MISMATCH"
    if change == "file":
        source.write_text(WRONG)
    elif change == "rules":
        write_rules(folder.root, data_sets=[{**DATA_SET, "label": "diseases"}])
        source.write_text(RIGHT)
    else:
        source.unlink()
        reason = "SOURCE_MISSING"
    asyncio.run(watch.look())
    assert watch.reasons() == {"heart": reason}
    write_rules(folder.root, data_sets=[DATA_SET])
    source.write_text(RIGHT)
    with structlog.testing.capture_logs() as logs:
        asyncio.run(watch.look())
    assert watch.reasons() == {}
    assert [one["event"] for one in logs] == ["data_set_available"]


def test_a_parquet_files_schema_is_read_in_a_process_of_its_own(folder: Folder) -> None:
    """The agent, which is to stay small, loads nothing for it."""
    pq.write_table(
        pa.table({"id": ["secret7"], "age": [2.0], "disease": [1]}), folder.root / "t.parquet"
    )
    write_rules(folder.root, data_sets=[DATA_SET, {**DATA_SET, "name": "p", "source": "t.parquet"}])
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from node_agent.folder.config import Folder\n"
        "from node_agent.policy.steward import Steward\n"
        "from node_agent.data.header_watch import HeaderWatch\n"
        "folder = Folder(Path(sys.argv[1])); watch = HeaderWatch(folder, Steward(folder))\n"
        "asyncio.run(watch.look())\n"
        "print(watch.reasons(), 'pyarrow' in sys.modules, 'numpy' in sys.modules)"
    )
    words = [sys.executable, "-c", script, str(folder.root)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "{'p': 'SCHEMA_MISMATCH'} False False"
    assert "column 'patient_id' is missing" in done.stdout
    assert "secret7" not in done.stdout


def test_a_database_is_asked_again_though_no_file_has_changed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was away is found again by itself, and not at every look."""
    (folder.root / "q.sql").write_text("SELECT patient_id, age, disease FROM visits")
    file = folder.root / "visits.db"
    database = {"url": f"sqlite:///{file}"}
    write_rules(folder.root, data_sets=[{**DATA_SET, "source": "q.sql", "database": database}])
    watch = HeaderWatch(folder, Steward(folder))
    asyncio.run(watch.look())
    assert watch.reasons().keys() == {"heart"}
    with contextlib.closing(sqlite3.connect(file)) as made:
        made.execute("CREATE TABLE visits (patient_id TEXT, age REAL, disease INTEGER)")
    asyncio.run(watch.look())
    assert watch.reasons().keys() == {"heart"}
    later_s = time.monotonic() + header_watch.DATABASE_LOOK_S
    monkeypatch.setattr(header_watch, "time", SimpleNamespace(monotonic=lambda: later_s))
    asyncio.run(watch.look())
    assert watch.reasons() == {}


def test_an_opt_out_list_that_goes_is_told(folder: Folder) -> None:
    """Without it nobody knows who may not be read."""
    (folder.root / "out.txt").write_text("p7\n")
    write_rules(folder.root, data_sets=[{**DATA_SET, "opt_out": "out.txt"}])
    watch = HeaderWatch(folder, Steward(folder))
    asyncio.run(watch.look())
    assert watch.reasons() == {}
    (folder.root / "out.txt").unlink()
    asyncio.run(watch.look())
    assert watch.reasons() == {"heart": "OPT_OUT_UNREADABLE"}


def test_the_coordinator_hears_it_with_the_first_greeting_and_when_it_is_mended(
    tmp_path: Path,
) -> None:
    """Before any order, and by its reason alone."""

    async def play() -> None:
        authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
        coordinator = FakeCoordinator(authority)
        await coordinator.start()
        folder = make_agent(tmp_path / "agent", authority, coordinator.port)
        (folder.root / "train.csv").write_text(WRONG)
        try:
            async with RunningAgent(folder, FakeWorker()):
                hello = await coordinator.heard("hello")
                assert hello.data_sets[0].unavailable == "SCHEMA_MISMATCH"
                assert "patient_id" not in str(hello)
                await coordinator.heard("heartbeat")
                (folder.root / "train.csv").write_text(RIGHT)
                hello = await coordinator.heard("hello")
                assert (hello.data_sets[0].name, hello.data_sets[0].unavailable) == ("heart", "")
        finally:
            await coordinator.stop()

    asyncio.run(play())


def test_what_was_found_stays_while_the_stewards_files_are_broken(folder: Folder) -> None:
    """The agent goes by the rules of before, and so does the look; a source that is gone is not
    called available, and one that goes meanwhile is found."""
    for name in ("p", "q"):
        table = {"patient_id": ["secret7"], "age": [2.0], "disease": [1]}
        pq.write_table(pa.table(table), folder.root / f"{name}.parquet")
    listed = [{**DATA_SET, "name": name, "source": f"{name}.parquet"} for name in ("p", "q")]
    write_rules(folder.root, {**POLICY, "allow": []}, data_sets=listed)
    steward = Steward(folder)
    steward.rules()
    watch = HeaderWatch(folder, steward)
    (folder.root / "p.parquet").unlink()
    asyncio.run(watch.look())
    assert watch.reasons() == {"p": "SOURCE_MISSING"}
    folder.datasets_yaml.write_text("data_sets: [")
    (folder.root / "q.parquet").unlink()
    asyncio.run(watch.look())
    assert steward.fault
    assert watch.reasons() == {"p": "SOURCE_MISSING", "q": "SOURCE_MISSING"}


def test_a_look_that_cannot_be_made_forgets_nothing_and_is_made_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without memory for a process knows no better than before."""
    listed = [{**DATA_SET, "name": "p", "source": "p.parquet"}]
    write_rules(folder.root, {**POLICY, "allow": []}, data_sets=listed)
    watch = HeaderWatch(folder, Steward(folder))
    asyncio.run(watch.look())
    assert watch.reasons() == {"p": "SCHEMA_MISMATCH"}

    async def none(*_: object) -> None:
        return None

    monkeypatch.setattr(header_watch, "run_aside", none)
    monkeypatch.setattr(header_watch, "AGAIN_S", 0.0)
    (folder.root / "p.parquet").unlink()
    with structlog.testing.capture_logs() as logs:
        asyncio.run(watch.look())
    assert [one["event"] for one in logs] == ["headers_not_read"]
    assert watch.reasons() == {"p": "SCHEMA_MISMATCH"}
    monkeypatch.undo()
    asyncio.run(watch.look())
    assert watch.reasons() == {"p": "SOURCE_MISSING"}


def test_a_process_that_is_given_up_is_gone_when_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent that stops leaves nobody behind who reads records."""
    started: list[asyncio.subprocess.Process] = []
    is_up = asyncio.Event()
    real = asyncio.create_subprocess_exec

    async def start(*words: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(await real(*words, **options))
        is_up.set()
        return started[-1]

    async def given_up() -> None:
        statement = "import time; time.sleep(600)"
        task = asyncio.create_task(run_aside("timeit", Path(statement)))
        await is_up.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert started[0].returncode == -9

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    asyncio.run(given_up())
