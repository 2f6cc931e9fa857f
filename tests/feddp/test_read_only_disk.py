"""An agent's folder on a disk that takes no writes: shown, copied and backed up all the same.

Each test makes a real file system read-only, in a mount namespace of its own: it needs a kernel
that gives one to this user, and fails where it does not.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from certs.authority import Authority
from certs.enrolment import load_ledger_key
from node_agent.folder.config import Folder
from node_agent.state.state import State
from privacy.filters import make_filter
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, order

FEDDP: Final = f"{sys.executable} -m feddp"
MADE_SO: Final = 'mount --bind "$DIR" "$DIR" && mount -o remount,ro,bind "$DIR" "$DIR"'

READERS: Final = (
    *("status", "policy check", "policy show", "outbox", "digest", "ledger heads"),
    *("approve --list", "leave"),
)
WRITERS: Final = ("run", "approve job-1", "leave --yes", "ledger settle patients")

IN_ONE_PROCESS: Final = """
import sys
from typer.testing import CliRunner
from feddp.cli.app import app
for words in sys.argv[2:]:
    ran = CliRunner().invoke(app, ["agent", *words.split(), "--dir", sys.argv[1]])
    print(f"# {words}", ran.output.rstrip(), f"exit {ran.exit_code}", sep="\\n")
"""


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """An agent's folder, its ledger with one release."""
    path = tmp_path_factory.mktemp("joined")
    made = make_agent(path / "agent", Authority.create(path / "ca", TRUST_DOMAIN), 1)
    (made.root / "train.csv").write_text("patient_id,disease,age\n")
    key = load_ledger_key(made.identity / "ledger.key")
    with contextlib.closing(State(made.state_db, NODE, key)) as state:
        state.reserve(order(), make_filter("gdp", 0, 10.0, 1e-5))
        state.open("a1", 1.0, 1.0)
        state.lose("a1")
        state.close_attempt("a1", "post")
    made.lock.touch()
    return made


@pytest.fixture(params=["at rest", "open", "left open", "left open, without the index"])
def folder(joined: Folder, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Folder]:
    """As a stopped agent leaves it; as one has it that sees the disk otherwise, and may write; as a
    killed one leaves it, and as a copy of that may be."""
    made = Folder(shutil.copytree(joined.root, tmp_path / "agent"))
    if request.param == "at rest":
        yield made
        return
    with contextlib.closing(sqlite3.connect(made.state_db, isolation_level=None)) as agent:
        agent.execute("INSERT INTO meta VALUES ('note', 'in the log alone')")
        if request.param == "open":
            yield made
            return
        left = Folder(shutil.copytree(made.root, tmp_path / "left"))
    if request.param == "left open, without the index":
        Path(f"{left.state_db}-shm").unlink()
    yield left


def ran(folder: Folder, out: Path, script: str) -> str:
    """What a script prints on both streams; $DIR is the agent's folder, $OUT may be written."""
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        env={
            "DIR": str(folder.root),
            "OUT": str(out),
            "FEDDP": FEDDP,
            "HOME": str(out),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": ":".join(sys.path),
        },
    )
    return done.stdout


def test_what_only_reads_says_the_same_as_where_it_may_write(
    folder: Folder, tmp_path: Path
) -> None:
    """Each command, with its exit code; a sound ledger is nowhere called another thing."""
    named = " ".join(f"'{one}'" for one in READERS)
    script = f"{sys.executable} -c '{IN_ONE_PROCESS}' $DIR {named}"
    since = re.compile(r"since .* UTC")  # in the digest; a minute may pass between the two
    before = since.sub("", ran(folder, tmp_path / "out", script))
    after = since.sub("", ran(folder, tmp_path / "out", f"{MADE_SO}\n{script}"))
    assert after == before
    assert "2 entries, verifies" in after
    assert after.count("\nexit 0\n") == len(READERS)


def test_doctor_says_of_the_disk_what_is_wrong_and_of_the_ledger_that_it_is_sound(
    folder: Folder, tmp_path: Path
) -> None:
    """Nobody is sent to a backup."""
    said = ran(
        folder, tmp_path / "out", f"{MADE_SO}\n$FEDDP agent doctor --dir $DIR --hold 0 || true"
    )
    assert re.search("FAILED +disk: .* cannot be written .*: Read-only file system", said)
    assert re.search("ok +ledger: 2 entries;", said)
    assert "import" not in said


def test_the_ledger_and_all_of_the_folder_are_saved_from_it(folder: Folder, tmp_path: Path) -> None:
    """With what stands in the log alone; and restored elsewhere."""
    said = ran(
        folder,
        tmp_path / "out",
        f"{MADE_SO}\nset -e; $FEDDP agent ledger export $OUT/own.db --dir $DIR\n"
        "$FEDDP agent backup $OUT/all.tar --dir $DIR; $FEDDP agent restore $OUT/all.tar --dir "
        "$OUT/new; $FEDDP agent ledger heads --dir $OUT/new\n",
    )
    assert "2 entries copied to" in said
    in_log = Path(f"{folder.state_db}-wal").exists()
    for copy in ("own.db", "new/state.db"):
        with contextlib.closing(sqlite3.connect(tmp_path / "out" / copy)) as copied:
            assert copied.execute("SELECT count(*) FROM entries").fetchone() == (2,)
            found = copied.execute("SELECT value FROM meta WHERE key = 'note'").fetchone()
            assert found == (("in the log alone",) if in_log else None)


@pytest.mark.parametrize("folder", ["at rest"], indirect=True)
def test_what_has_to_write_says_that_the_disk_is_read_only(folder: Folder, tmp_path: Path) -> None:
    """And what works all the same; nothing is called damaged, and no copy is to be put back."""
    each = "".join(
        f"$FEDDP agent {one} --dir $DIR; echo exit $?\n"
        for one in (*WRITERS, "ledger import $OUT/own.db")
    )
    made = f"$FEDDP agent ledger export $OUT/own.db --dir $DIR >/dev/null; {MADE_SO}\n"
    said = ran(folder, tmp_path / "out", f"{made}{each}").splitlines()
    assert len(said) == 2 * (len(WRITERS) + 1), said
    for error, code in zip(said[::2], said[1::2], strict=True):
        assert error.startswith(f"error: {folder.root} is read-only, and this has to write there")
        assert "feddp agent backup FILE" in error
        assert code == "exit 1"
