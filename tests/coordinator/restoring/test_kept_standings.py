"""Nodes that were disabled, quarantined or let in after a backup stay so after a restore."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from certs import sealing
from certs.enrolment import new_ledger_key, public_bytes_of
from coordinator.identities import Identities
from coordinator.keyring import ledger_key
from coordinator.restoring.revocations import Kept, RevocationsFile, read
from coordinator.restoring.standings import newest, sign
from coordinator.store import joins, people, standings
from coordinator.store.database import Database
from coordinator.store.schema import nodes
from coordinator.store.standings import NodeStanding
from protos.errors import Malformed
from tests.coordinator.restoring.samples import Source, opened, restored, source

DOMAIN = "test.example"
KEY = new_ledger_key()
PUBLIC = public_bytes_of(KEY)
IN = NodeStanding("a", disabled=False, quarantine="")
DISABLED = NodeStanding("a", disabled=True, quarantine="")
QUARANTINED = NodeStanding("a", disabled=False, quarantine="a copy runs")

Change = Callable[[Connection], object]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a password is not made hard here."""
    monkeypatch.setattr(sealing, "LOG2_N", 4)


@pytest.fixture
def made(tmp_path: Path) -> Source:
    """An installation that knows the node "a"."""
    made = source(tmp_path / "c")
    with opened(made.url) as database:
        database.write_now(lambda c: c.execute(update(nodes).values(status="enrolled")))
    return made


def change(made: Source, file: Path, *work: Change) -> None:
    """As a coordinator does: a change of the database, then of the registry."""

    async def reload(database: Database) -> None:
        key = ledger_key(made.made.folder / "pki")
        identities = Identities(database, DOMAIN, revocations=RevocationsFile(file, key))
        for one in work:
            await database.write(one)
            await identities.reload()
        assert not identities.is_behind

    with opened(made.url) as database:
        asyncio.run(reload(database))


def disable(connection: Connection) -> None:
    """As `feddp node disable a`."""
    people.set_status(connection, "a", "disabled")


def enable(connection: Connection) -> None:
    """As `feddp node enable a`."""
    people.set_status(connection, "a", "enrolled")


def quarantine(connection: Connection) -> None:
    """As the coordinator does that sees two machines of one node."""
    joins.quarantine(connection, "a", "a copy runs")


def release(connection: Connection) -> None:
    """As `feddp node release a`."""
    joins.release(connection, "a")


def stands(folder: Path) -> list[NodeStanding]:
    """Who is shut out in what was restored."""
    with opened(f"sqlite:///{folder / 'coordinator.db'}") as database:
        return database.read_now(standings.shut_out)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [disable], [DISABLED]),
        ([], [quarantine], [QUARANTINED]),
        ([], [disable, enable], []),
        ([], [quarantine, release], []),
        ([disable], [enable], []),
        ([quarantine], [release], []),
        ([disable], [enable, disable], [DISABLED]),
        ([disable], [quarantine], [NodeStanding("a", disabled=True, quarantine="a copy runs")]),
        ([quarantine], [disable, release], [DISABLED]),
        ([disable], [], [DISABLED]),
        ([disable, enable], [], []),
    ],
)
def test_a_restored_registry_has_each_node_as_it_stood_at_the_end(
    made: Source,
    tmp_path: Path,
    before: list[Change],
    after: list[Change],
    expected: list[NodeStanding],
) -> None:
    """Whatever the backup says of it, and with what the next coordinator adds to the same file."""
    log = tmp_path / "r"
    change(made, log, *before)
    file = made.backup(tmp_path / "b")
    change(made, log, *after)
    done = restored(file, tmp_path / "d", revoked=[log])
    assert stands(tmp_path / "d") == expected
    was_out = bool(before) and before[-1] is not enable
    assert done.nodes.shut_out == (("a",) if expected and not was_out else ())
    assert done.nodes.let_in == (("a",) if was_out and not expected else ())


def test_a_backup_that_is_newer_than_the_file_knows_better(made: Source, tmp_path: Path) -> None:
    """A copy of the file from before the node was let in again shuts nobody out, and one from
    before it was shut out lets nobody in."""
    log = tmp_path / "r"
    change(made, log, disable)
    shutil.copy(log, tmp_path / "disabled")
    later = standings.SLACK_S + 1
    with opened(made.url) as database:
        database.write_now(enable)
    made_at_s = time.time() + later
    (kept,) = read([tmp_path / "disabled"], _public(made), DOMAIN).standings
    with opened(made.url) as database:
        told = [(kept.at_ms / 1000, kept.standing)]
        assert database.write_now(lambda c: standings.carry(c, told, made_at_s)).shut_out == ()
        database.write_now(disable)
        told = [(kept.at_ms / 1000, IN)]
        carried = database.write_now(lambda c: standings.carry(c, told, made_at_s))
        assert carried.let_in == ()
        assert database.read_now(standings.shut_out) == [DISABLED]


def test_what_was_shut_out_just_before_the_backup_stays_so(made: Source) -> None:
    """Two clocks do not tell which was first; the other way round nobody is let in."""
    with opened(made.url) as database:
        made_at_s = 1000.0
        carried = database.write_now(
            lambda c: standings.carry(c, [(made_at_s - 1, DISABLED)], made_at_s)
        )
        assert carried.shut_out == ("a",)
        carried = database.write_now(lambda c: standings.carry(c, [(made_at_s - 1, IN)], made_at_s))
        assert carried.let_in == ()


def test_a_node_that_the_backup_has_not_is_left_out(made: Source, tmp_path: Path) -> None:
    """It joined after the backup, and joins again with a new token."""
    with opened(made.url) as database:
        unknown = NodeStanding("z", disabled=True, quarantine="")
        assert (
            database.write_now(lambda c: standings.carry(c, [(1e12, unknown)], 0.0))
            == standings.Carried()
        )


def _public(made: Source) -> bytes:
    return public_bytes_of(ledger_key(made.made.folder / "pki"))


def test_one_change_is_one_line_also_after_a_restart_and_with_a_clock_set_back(
    made: Source, tmp_path: Path
) -> None:
    """The file is made at the first look, and the last line on a node is the last word."""
    log = tmp_path / "r"
    change(made, log, lambda c: None)
    assert json.loads(log.read_text()) == {"coordinator": _public(made).hex()}
    change(made, log, disable, lambda c: None)
    change(made, log, lambda c: None)
    assert len(log.read_text().splitlines()) == 2
    again = RevocationsFile(log, ledger_key(made.made.folder / "pki"))
    assert again.keep([], [], 1.0) == 1
    assert again.keep([], [], 1.0) == 0
    (kept,) = read([log], _public(made), DOMAIN).standings
    assert kept.standing == IN


def test_each_replica_has_its_file_and_the_newest_word_counts(tmp_path: Path) -> None:
    """In whatever order they are given; of two words of one moment the one that shuts out."""
    one, two = tmp_path / "one", tmp_path / "two"
    RevocationsFile(one, KEY).keep([], [DISABLED], 100.0)
    first = RevocationsFile(two, KEY)
    first.keep([], [DISABLED], 101.0)
    first.keep([], [], 102.0)
    for files in ([one, two], [two, one]):
        (kept,) = read(files, PUBLIC, DOMAIN).standings
        assert kept.standing == IN
    both = [sign(KEY, IN, 5), sign(KEY, DISABLED, 5)]
    for order in (both, both[::-1]):
        assert newest(order)["a"].standing == DISABLED


@pytest.mark.parametrize(
    "altered",
    [
        {"disabled": False},
        {"quarantine": "x"},
        {"node": "b"},
        {"at_ms": 1},
        {"signature": "0" * 128},
    ],
)
def test_a_line_that_somebody_wrote_or_changed_is_refused(
    tmp_path: Path, altered: dict[str, object]
) -> None:
    """Or whoever can write the file would let a node in; the coordinator does not heed it."""
    file = tmp_path / "r"
    RevocationsFile(file, KEY).keep([], [DISABLED], 100.0)
    line = {**json.loads(file.read_text().splitlines()[1]), **altered}
    with file.open("a") as open_file:
        open_file.write(json.dumps(line) + "\n")
    with pytest.raises(Malformed, match=r"line 3.*not signed by this installation"):
        read([file], PUBLIC, DOMAIN)
    assert RevocationsFile(file, KEY).keep([], [DISABLED], 101.0) == 0


def test_an_old_line_that_is_written_again_changes_nothing(tmp_path: Path) -> None:
    """What lets a node in says when, within what is signed."""
    file = tmp_path / "r"
    keeping = RevocationsFile(file, KEY)
    keeping.keep([], [DISABLED], 100.0)
    keeping.keep([], [], 200.0)
    keeping.keep([], [QUARANTINED], 300.0)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[2], lines[2]]) + "\n")
    (kept,) = read([file], PUBLIC, DOMAIN).standings
    assert kept.standing == QUARANTINED


def test_a_file_of_nobody_shut_out_says_whose_it_is(tmp_path: Path) -> None:
    """Another installation's is refused also then, as is one that was cut off at its first byte."""
    file = tmp_path / "r"
    RevocationsFile(file, KEY).keep([], [], 100.0)
    assert read([file], PUBLIC, DOMAIN) == Kept()
    with pytest.raises(Malformed, match=r"line 1.*another ledger key"):
        read([file], public_bytes_of(new_ledger_key()), DOMAIN)
    file.write_bytes(b"")
    with pytest.raises(Malformed, match="is empty"):
        read([file], PUBLIC, DOMAIN)
    assert RevocationsFile(file, KEY).keep([], [], 100.0) == 1
