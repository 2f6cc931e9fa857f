"""`feddp coordinator check` says what is wrong and what to do; so does a start."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from benchmarks.postgresql import PostgreSql
from certs.authority import Authority
from certs.enrolment import private_pem
from coordinator.backups.backup import backup
from coordinator.checking.check import check
from coordinator.config.config import load_config
from coordinator.gateway import certificate as gateway_certificate
from coordinator.installation import Installation, init
from coordinator.server_certificate import ServerCertificate, issue
from coordinator.store import pauses
from coordinator.store.database import Database
from coordinator.store.diagnosis import _meaning, fault, is_empty, write_fault
from feddp.demo.ports import choose_ports
from protos.errors import Malformed, Unavailable
from tests.integration.federation import wait_for


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """A new one."""
    return init(tmp_path / "c", "test.example")


def url_of(made: Installation) -> str:
    """Of its database."""
    return f"sqlite:///{made.folder / 'coordinator.db'}"


def said(made: Installation, subject: str) -> list[tuple[str, str]]:
    """(level, text) of what is found of a subject."""
    return [(one.level, one.text) for one in check(made.config) if one.subject == subject]


def sql(made: Installation, statement: str) -> None:
    """Change the database past all that is ours."""
    with closing(sqlite3.connect(made.folder / "coordinator.db")) as database:
        database.execute(statement)
        database.commit()


@pytest.mark.parametrize(
    ("statement", "reason", "words"),
    [
        ("DROP TABLE models", "TABLES_MISSING", ("models", "restore the whole database")),
        ("UPDATE alembic_version SET version_num = '9999'", "DATABASE_NEWER", ("newer version",)),
    ],
)
def test_tables_that_this_version_cannot_use_are_told_by_the_check_and_by_a_start(
    installation: Installation, statement: str, reason: str, words: tuple[str, ...]
) -> None:
    """In the same words, and neither changes anything."""
    sql(installation, statement)
    [(level, text_)] = said(installation, "storage.database_url")
    assert level == "error"
    assert [word for word in words if word not in text_] == []
    database = Database(url_of(installation))
    with pytest.raises(Malformed) as caught:
        database.migrate()
    database.close()
    assert (caught.value.reason, caught.value.message) == (reason, text_)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a database's server its own user")
def test_a_user_who_may_only_read_the_tables_is_told_so(postgresql_server: PostgreSql) -> None:
    """Before the first node finds out."""
    url = postgresql_server.new_database()
    database = Database(url)
    database.migrate()
    assert (fault(url), write_fault(url)) == (None, None)
    name = url.rpartition("/")[2]
    user = database.read_now(lambda c: c.scalar(text("SELECT current_user")))
    owner = database.read_now(
        lambda c: c.scalar(text("SELECT tableowner FROM pg_tables WHERE tablename = 'entries'"))
    )
    assert user == owner
    postgresql_server.superuser(f'REVOKE INSERT ON entries FROM "{user}"', name)
    assert "entries" in (write_fault(url) or "")
    assert "GRANT" in (write_fault(url) or "")
    database.close()


@pytest.mark.parametrize(("shut", "done"), [(os.W_OK, "written"), (os.R_OK, "read")])
def test_a_database_file_that_cannot_be_read_or_written_is_an_error(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, shut: int, done: str
) -> None:
    """As for a user who does not own it (a superuser may write everywhere)."""
    file = installation.folder / "coordinator.db"
    really = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: (path, mode) != (file, shut) and really(path, mode)
    )
    assert ("error", f"{file} cannot be {done} by this user; run as its owner") in said(
        installation, "storage.database_url"
    )


@pytest.mark.parametrize(
    ("left_mib", "expected"),
    [
        (8, [("warning", "no update is taken"), ("error", "nothing is booked")]),
        (20, [("warning", "are left on"), ("warning", "are left on")]),
        (200, []),
    ],
)
def test_a_disk_that_fills_up_is_told(
    installation: Installation, left_mib: int, expected: list[tuple[str, str]]
) -> None:
    """Before it is full, and that it is; a full disk refuses nothing that one may look at."""
    script = (
        'mount -t tmpfs -o size=400m none "$1" && cp -a "$2/." "$1" && '
        'head -c "$3"M /dev/zero > "$1/more" && exec "$4" -m feddp coordinator check --json '
        '--dir "$1"'
    )
    disk = installation.folder.with_name("disk")
    disk.mkdir()
    words = (disk, installation.folder, str(400 - left_mib), sys.executable)
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("no namespaces here: no small disk to fill")
    found = [
        (one["level"], one["text"])
        for one in json.loads(done.stdout)["findings"]
        if "DiskFilling" in one["text"]
    ]
    assert [level for level, _ in found] == [level for level, _ in expected]
    assert all(part in said for (_, part), (_, said) in zip(expected, found, strict=True)), found


def test_a_gateway_whose_certificate_has_ended_is_told(
    installation: Installation, tmp_path: Path
) -> None:
    """Not before: of one that is good for long, or of none, there is no warning."""
    assert said(installation, "gateway") == []
    gateway_certificate.issue(installation.folder, ["gw.example"], tmp_path / "gw")
    assert [level for level, _ in said(installation, "gateway")] == ["ok"]
    sql(installation, "UPDATE certificates SET not_after = unixepoch() - 60")
    [(level, text_)] = said(installation, "gateway")
    assert level == "warning"
    assert "feddp coordinator gateway" in text_


def test_a_clock_that_went_back_is_told(installation: Installation) -> None:
    """The database has heard a node at a time that is yet to come."""
    assert [level for level, _ in said(installation, "clock")] == ["ok"]
    sql(
        installation,
        "INSERT INTO nodes VALUES ('a', 'edge', 'enrolled', x'', 1.0, unixepoch() + 3600, x'')",
    )
    [(level, text_)] = said(installation, "clock")
    assert (level, "NTP" in text_) == ("warning", True)


def test_a_pause_and_the_newest_backup_are_told(installation: Installation, tmp_path: Path) -> None:
    """Who comes new to it knows why nothing happens, and whether there is a way back."""
    assert said(installation, "pause") == []
    assert "none was made" in said(installation, "backup")[0][1]
    database = Database(url_of(installation))
    database.write_now(lambda c: pauses.keep(c, 0.0, "op", "a leak", paused=True))
    database.close()
    backup(installation.config, tmp_path / "b")
    [(level, text_)] = said(installation, "pause")
    assert (level, "1970-01-01 00:00 UTC by op: a leak" in text_) == ("warning", True)
    assert "the newest is of 2" in said(installation, "backup")[0][1]


def ports_of(made: Installation) -> dict[str, tuple[str, str]]:
    """(level, text) of each port."""
    found = check(made.config)
    return {one.subject: (one.level, one.text) for one in found if one.subject.endswith("port")}


def configured(made: Installation, ports: list[int]) -> None:
    """Where it would listen."""
    config = yaml.safe_load(made.config.read_text()) or {}
    names = ("port", "enrollment_port", "health_port")
    config["server"] = {**config.get("server", {}), **dict(zip(names, ports, strict=True))}
    made.config.write_text(yaml.safe_dump(config))


def test_a_port_that_another_program_holds_is_told_from_the_coordinators_own(
    installation: Installation, tmp_path: Path
) -> None:
    """The coordinator of this folder is known by its certificate, and is no fault; that of another
    installation, whatever its health page says, and a program that says nothing, are warned of."""
    ports = choose_ports(None)
    configured(installation, ports)
    assert {level for level, _ in ports_of(installation).values()} == {"ok"}
    other = init(tmp_path / "other", "other.example")
    configured(other, ports)
    with serving(installation):
        for level, text in ports_of(installation).values():
            assert (level, "is this coordinator's, which runs" in text) == ("ok", True)
        for level, text in ports_of(other).values():
            assert (level, "another program holds it" in text) == ("warning", True)
    with socket.create_server(("127.0.0.1", ports[0])):
        found = ports_of(installation)
    assert found["server.port"][0] == "warning"
    assert found["server.health_port"] == ("ok", f"port {ports[2]} is free")


@contextmanager
def serving(made: Installation) -> Iterator[None]:
    """A coordinator in a process of its own, once it is ready."""
    port = yaml.safe_load(made.config.read_text())["server"]["health_port"]
    words = ["coordinator", "serve", "--config", str(made.config)]
    process = subprocess.Popen(
        [sys.executable, "-m", "feddp", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for("it is ready", lambda: is_ready(port), 60)
        yield
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    """What /ready says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{password}", "hunter2", "does not accept this user with this password"),
        ("/feddp_", "/other_", "createdb"),
        (":{port}/", ":1/", "no server listens at that host and port"),
    ],
)
def test_a_start_says_what_is_wrong_with_the_database_as_the_check_does(
    installation: Installation, postgresql_server: PostgreSql, old: str, new: str, words: str
) -> None:
    """Not only that there is something, and never the URL."""
    right = postgresql_server.new_database()
    known = {"password": postgresql_server.password, "port": postgresql_server.port}
    wrong = right.replace(old.format(**known), new)
    assert wrong != right
    settings = yaml.safe_load(installation.config.read_text())
    settings["storage"] = {**settings.get("storage", {}), "database_url": wrong}
    installation.config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "feddp", "coordinator", "serve", "--config", installation.config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "storage.database_url: the PostgreSQL server cannot be used: " in done.stderr
    assert words in done.stderr
    assert "hunter2" not in done.stderr
    [(level, text_)] = said(installation, "storage.database_url")
    assert (level, words in text_) == ("error", True)


@pytest.mark.parametrize(
    "where", ["coordinator.checking.check.write_fault", "coordinator.store.diagnosis.tables_fault"]
)
def test_a_connection_that_postgresql_ends_is_not_told_as_damage(
    installation: Installation,
    postgresql_server: PostgreSql,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Whoever restored a sound database from a backup would raise its epoch and void its tokens."""

    def end(_: object) -> None:
        raise OperationalError("", {}, Exception("terminating connection"))

    monkeypatch.setattr(where, end)
    url = postgresql_server.new_database()
    with closing(Database(url)) as database:
        database.migrate()
    settings = yaml.safe_load(installation.config.read_text())
    settings["storage"] = {**settings.get("storage", {}), "database_url": url}
    installation.config.write_text(yaml.safe_dump(settings))
    [(level, text_)] = said(installation, "storage.database_url")
    assert (level, "try again" in text_) == ("error", True)
    assert "backup" not in text_


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("ssl=yes", "a parameter after ? that PostgreSQL does not know"),
        ("sslmode=sure", "verify-full is one"),
        ("sslmode=require", "do not agree on TLS; see sslmode"),
    ],
)
def test_a_parameter_of_the_database_that_cannot_be_is_told(
    postgresql_server: PostgreSql, query: str, words: str
) -> None:
    """Which one, in our own words."""
    assert words in (fault(f"{postgresql_server.new_database()}?{query}") or "")


AT_HOST = 'connection to server at "role-database.example" (192.0.2.1), port 5432 failed: '


@pytest.mark.parametrize(
    ("said_", "meaning"),
    [
        ("FATAL:  sorry, too many clients already", "no connection is left"),
        (
            "FATAL:  remaining connection slots are reserved for roles with SUPERUSER",
            "no connection is left",
        ),
        ('FATAL:  too many connections for role "feddp"', "no connection is left"),
        ('FATAL:  too many connections for database "feddp"', "no connection is left"),
        ("FATAL:  the database system is starting up", "starting, stopping or recovering"),
        ("FATAL:  the database system is in recovery mode", "starting, stopping or recovering"),
        (
            'FATAL:  database "role" is not currently accepting connections',
            "nobody may connect to this database now",
        ),
        ('FATAL:  role "database" is not permitted to log in', "may not log in"),
        ('FATAL:  permission denied for database "password"', "GRANT CONNECT ON DATABASE"),
        ('FATAL:  password authentication failed for user "role"', "with this password"),
        ('FATAL:  database "role" does not exist', "createdb"),
        ('FATAL:  role "database" does not exist', "no such user"),
        (
            'FATAL:  no pg_hba.conf entry for host "192.0.2.2", user "role", database "x", SSL off',
            "pg_hba.conf",
        ),
        ("Connection refused", "no server listens"),
        ("server closed the connection unexpectedly", "a reason that this program does not know"),
    ],
)
def test_what_postgresql_says_is_told_by_what_it_says_and_not_by_what_things_are_called(
    said_: str, meaning: str
) -> None:
    """Whoever is told to make the database that there is, or to restore it, may do so."""
    fault_ = Unavailable("DATABASE_UNREACHABLE", "away")
    fault_.__context__ = OperationalError("", {}, Exception(AT_HOST + said_))
    assert meaning in _meaning(fault_)


def test_a_server_that_is_full_or_shut_is_told_as_that(postgresql_server: PostgreSql) -> None:
    """By the real server, in its own words."""
    url = postgresql_server.new_database()
    name = url.rpartition("/")[2]
    for setting, back, words in (
        ("CONNECTION LIMIT 0", "CONNECTION LIMIT -1", "no connection is left"),
        ("ALLOW_CONNECTIONS false", "ALLOW_CONNECTIONS true", "nobody may connect"),
    ):
        postgresql_server.superuser(f"ALTER DATABASE {name} {setting}")
        assert words in (fault(url) or "")
        postgresql_server.superuser(f"ALTER DATABASE {name} {back}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("REVOKE UPDATE ON nodes FROM feddp", "may not read and write all of it (nodes)"),
        ("REVOKE SELECT ON nodes FROM feddp", "may not read and write all of it (nodes)"),
        (
            "ALTER DATABASE {name} SET default_transaction_read_only = on",
            "the server takes no writes now",
        ),
        (
            "ALTER SCHEMA public OWNER TO postgres; REVOKE ALL ON SCHEMA public FROM PUBLIC",
            "its tables are in the schema public, and this user does not see them there",
        ),
        ("ALTER DATABASE {name} SET search_path = elsewhere", "this user does not see them there"),
    ],
)
def test_rights_that_lack_are_told_as_that_and_never_as_a_loss(
    installation: Installation, postgresql_server: PostgreSql, change: str, words: str
) -> None:
    """Nobody is told to restore, or to begin anew, what is whole."""
    url = postgresql_server.new_database()
    name = url.rpartition("/")[2]
    with closing(Database(url)) as database:
        database.migrate()
    postgresql_server.superuser(change.format(name=name), name)
    settings = yaml.safe_load(installation.config.read_text())
    settings["storage"] = {**settings.get("storage", {}), "database_url": url}
    installation.config.write_text(yaml.safe_dump(settings))
    errors = [one.text for one in check(installation.config) if one.level == "error"]
    told = [one for one in errors if words in one]
    assert len(told) == 1
    assert [one for one in errors if "restore" in one or "init" in one] == []


def test_a_start_where_the_tables_are_not_seen_makes_no_others(
    installation: Installation, postgresql_server: PostgreSql
) -> None:
    """A second ledger of nothing, beside the one that is there."""
    url = postgresql_server.new_database()
    name = url.rpartition("/")[2]
    with closing(Database(url)) as database:
        database.migrate()
    statements = "CREATE SCHEMA elsewhere AUTHORIZATION feddp"
    postgresql_server.superuser(statements, name)
    postgresql_server.superuser(f"ALTER DATABASE {name} SET search_path = elsewhere")
    settings = yaml.safe_load(installation.config.read_text())
    settings["storage"] = {**settings.get("storage", {}), "database_url": url}
    installation.config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "feddp", "coordinator", "serve", "--config", installation.config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "its tables are in the schema public" in done.stderr
    assert "restore" not in done.stderr


@pytest.mark.parametrize("url", ["{url}\n", " {url}"])
def test_a_line_end_of_a_secret_is_told_as_that(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """PostgreSQL would have a database whose name ends with one."""
    right = "postgresql+psycopg://feddp:secret@127.0.0.1:1/feddp"
    monkeypatch.setenv("FEDDP_STORAGE__DATABASE_URL", url.format(url=right))
    with pytest.raises(Malformed, match="printf %s") as refused:
        check(installation.config)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_start_on_a_database_without_tables_is_refused(
    installation: Installation, postgresql_server: PostgreSql, kind: str
) -> None:
    """A slip in the name, or a database that was lost: a ledger of nothing would let everything be
    spent again. Nothing is made there."""
    file = installation.folder / "other.db"
    url = f"sqlite:///{file}" if kind == "sqlite" else postgresql_server.new_database()
    settings = yaml.safe_load(installation.config.read_text())
    settings["storage"] = {**settings.get("storage", {}), "database_url": url}
    installation.config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "feddp", "coordinator", "serve", "--config", installation.config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "names a database without tables: mend it, restore" in done.stderr
    assert is_empty(url)
    assert not is_empty(url_of(installation))


def outdated(made: Installation) -> tuple[bytes, bytes]:
    """(key, chain) of the server that are over."""
    long_ago = datetime.now(UTC) - timedelta(days=400)
    key, chain = issue(Authority.load(made.folder / "pki"), ["localhost"], [], long_ago)
    return private_pem(key), chain


def test_a_certificate_that_ended_while_it_was_off_keeps_no_coordinator_from_starting(
    installation: Installation,
) -> None:
    """As after a stop of months, or a restore of a backup of last year: the start renews it."""
    key, chain = outdated(installation)
    pki = installation.folder / "pki"
    (pki / "server.key").write_bytes(key)
    (pki / "server.crt").write_bytes(chain)
    [(level, text_)] = said(installation, "certificates")
    assert (level, "the start renews it" in text_) == ("warning", True)
    certificate = ServerCertificate(load_config(installation.config, {}), lambda _: None)
    certificate.refresh()
    [(level, _)] = said(installation, "certificates")
    assert level == "ok"


def test_a_given_certificate_that_is_over_is_an_error(
    installation: Installation, tmp_path: Path
) -> None:
    """Nobody here renews it."""
    given = {"ssl_key": tmp_path / "key.pem", "ssl_cert": tmp_path / "crt.pem"}
    for path, content in zip(given.values(), outdated(installation), strict=True):
        path.write_bytes(content)
        path.chmod(0o600)
    settings = yaml.safe_load(installation.config.read_text())
    settings["server"] |= {name: str(path) for name, path in given.items()}
    installation.config.write_text(yaml.safe_dump(settings))
    [(level, text_)] = said(installation, "certificates")
    assert (level, "no node will connect" in text_) == ("error", True)
