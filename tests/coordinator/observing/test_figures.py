"""What /metrics shows of the federation, from a real installation's database and certificates."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection

from coordinator.blobs import BlobStore
from coordinator.config.config import load_config
from coordinator.gateway import certificate as gateway_certificate
from coordinator.installation import init
from coordinator.jobspec import parse_job
from coordinator.keyring import ledger_key
from coordinator.observing.figures import SELDOM_S, Figures
from coordinator.observing.metrics import Metrics
from coordinator.pausing import Pausing
from coordinator.rounds.driver import Rounds
from coordinator.rounds.effects import Effects
from coordinator.rounds.events import Absence
from coordinator.rounds.live import LiveJob, job_to_json, plan_of
from coordinator.rounds.phases import Course, Ended, Phase, RoundRecord, Selecting, Training
from coordinator.server_certificate import ServerCertificate
from coordinator.sessions import Sessions
from coordinator.store import certificates, epochs, joins, ledger, people
from coordinator.store.database import Database
from coordinator.store.jobs import JobRecord
from coordinator.store.schema import accounts, countersignatures
from protos.feddp.v1 import federation_pb2 as federation

DOMAIN = "test.example"
SPEC = b'name: small\ntask: "null"\ndataset: cohort\nfederation: {rounds: 9}\n'
AWAY = Absence("d", "OFFLINE", "is not connected")


class Installation:
    """An installation with two enrolled nodes and one that only has a token; nothing runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "coordinator"
        init(self.folder, DOMAIN)
        self.config = load_config(self.folder / "coordinator.yaml", {})
        storage = self.config.storage
        self.database = Database(storage.database_url)
        self.sessions = Sessions(30.0, 10.0)
        self.metrics = Metrics()
        pausing = Pausing(self.database)
        effects = Effects(BlobStore(storage.blob_dir, None), self.sessions, pausing)
        self.rounds = Rounds(self.database, self.sessions, effects, self.metrics, pausing)
        self.figures = Figures(
            self.metrics,
            self.database,
            self.rounds,
            self.sessions,
            ServerCertificate(self.config),
            604_800.0,
        )
        for name in ("a", "d", "new"):
            self.database.write_now(lambda c, name=name: self._invite(c, name))
        for name in ("a", "d"):
            self.say(name)

    def _invite(self, connection: Connection, name: str) -> None:
        identity = f"spiffe://{DOMAIN}/node/{name}"
        people.invite(
            connection, name, "edge", name, spiffe_id=identity, now_s=0.0, expires_at_s=9.0
        )

    def say(self, name: str, *refuses: str) -> None:
        """A node greets with one account for each of `refuses`."""
        hello = federation.Hello(
            accounts=[
                federation.Account(name=f"p{number}", refuses=why)
                for number, why in enumerate(refuses)
            ]
        )

        def write(connection: Connection) -> None:
            people.enrol(connection, name, name, b"key", b"chain")
            people.keep_hello(connection, name, hello, 0.0)

        self.database.write_now(write)

    def run(self, job_id: str, phase: Phase) -> None:
        """A job in that phase, as if it had been brought there."""
        job = parse_job(SPEC, self.config)
        record = JobRecord(
            job_id, "default", "small", "u", job_id, SPEC, job_to_json(job), "f", "running", 0.0
        )
        self.rounds._live[job_id] = LiveJob(record, job, phase, 1)

    def course(self, *missed: str) -> Course:
        """Rounds that were published, each without the nodes that it names, a letter each."""
        plan = plan_of(parse_job(SPEC, self.config))
        done = tuple(
            RoundRecord(
                number,
                0.0,
                left_out=tuple(Absence(node, "OFFLINE", "is not connected") for node in nodes),
            )
            for number, nodes in enumerate(missed, 1)
        )
        return Course(plan, "m", "m", done)

    def shown(self, name: str, **labels: str) -> float | None:
        """A sample, after another look at everything."""
        self.figures._looked_at_s -= SELDOM_S
        return self.shown_soon(name, **labels)

    def shown_soon(self, name: str, **labels: str) -> float | None:
        """A sample, after another look at what changes often."""
        nodes = self.database.read_now(people.all_nodes)
        known = {one.account: one for one in self.database.read_now(ledger.all_accounts)}
        asyncio.run(self.figures.refresh(nodes, known))
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """A fresh one."""
    made = Installation(tmp_path)
    yield made
    made.database.close()


def test_disagreeing_ledgers_are_shown_as_the_node_said_last(installation: Installation) -> None:
    """By reason; other reasons for refusing are no matter of the ledger; then it is settled."""
    name = "feddp_ledger_refused_accounts"
    installation.say("a", "LEDGER_DISPUTED", "LEDGER_DISPUTED", "LEDGER_ROLLED_BACK", "")
    installation.say("d", "OUTSIDE_HOURS")
    assert installation.shown(name, node="a", reason="disputed") == 2
    assert installation.shown(name, node="a", reason="rolled_back") == 1
    assert installation.shown(name, node="a", reason="catching_up") == 0
    assert installation.shown(name, node="d", reason="disputed") == 0
    installation.say("a", "")
    assert installation.shown(name, node="a", reason="disputed") == 0


def test_nodes_are_counted_by_status_and_those_that_are_shut_out(
    installation: Installation,
) -> None:
    """A quarantined node stays enrolled; one without a session counts for none."""
    installation.sessions.open("a")
    installation.database.write_now(lambda c: joins.quarantine(c, "d", "shown"))
    assert installation.shown("feddp_nodes", status="enrolled") == 2
    assert installation.shown("feddp_nodes", status="invited") == 1
    assert installation.shown("feddp_nodes", status="disabled") == 0
    assert installation.shown("feddp_nodes_quarantined") == 1
    assert installation.shown("feddp_sessions") == 1


def test_the_ends_of_certificates_are_those_of_the_files(installation: Installation) -> None:
    """The server's and the authority's are there from the start, a gateway's once it has one."""
    name = "feddp_certificate_expiry_timestamp_seconds"
    authority = installation.figures.certificate.authority
    year_s = 365 * 86_400
    server = installation.shown(name, holder="server")
    assert server == pytest.approx(time.time() + year_s, abs=3700)
    assert installation.shown(name, holder="root") == (
        authority.root.not_valid_after_utc.timestamp()
    )
    assert installation.shown(name, holder="gateway") is None
    ends_at = gateway_certificate.issue(
        installation.folder, ["feddp.example"], installation.folder / "gateway"
    )
    assert installation.shown(name, holder="gateway") == ends_at.timestamp()


def test_a_node_is_shown_with_the_newest_certificate_that_holds(
    installation: Installation,
) -> None:
    """One that was revoked counts no more; a node without any is not shown."""
    name = "feddp_node_certificate_expiry_timestamp_seconds"

    def issue(connection: Connection) -> None:
        rows = certificates.certificates.insert()
        for number, (ends_at_s, revoked) in enumerate(
            ((100.0, False), (300.0, True), (200.0, False))
        ):
            connection.execute(
                rows.values(
                    fingerprint=f"f{number}",
                    spiffe_id=f"spiffe://{DOMAIN}/node/a",
                    not_before=0.0,
                    not_after=ends_at_s,
                    revoked=revoked,
                    generation=number + 1,
                )
            )

    installation.database.write_now(issue)
    assert installation.shown(name, node="a") == 200.0
    assert installation.shown(name, node="d") is None


def test_who_was_left_out_is_shown_with_the_longest_streak(installation: Installation) -> None:
    """Of jobs that run, and of those that ended within the hour; older ones count no more."""
    name, now_s = "feddp_node_left_out_rounds", time.time()
    ended = Ended(installation.course(*"dddd"), "completed", "", now_s - 60.0)
    installation.run("j1", ended)
    installation.run("j2", Selecting(installation.course("", "d", "d"), now_s))
    installation.run("j3", replace(ended, course=installation.course(*"d" * 9), ended_at_s=1.0))
    assert installation.shown(name, node="d") == 4
    assert installation.shown(name, node="a") == 0
    installation.run("j1", replace(ended, ended_at_s=now_s - 7200.0))
    assert installation.shown(name, node="d") == 2


def test_a_streak_ends_with_the_round_that_has_the_node(installation: Installation) -> None:
    """And one that another node began before does not go on for it."""
    name, now_s = "feddp_node_left_out_rounds", time.time()
    installation.run("j1", Selecting(installation.course("a", "ad", "d"), now_s))
    assert installation.shown(name, node="d") == 2
    assert installation.shown(name, node="a") == 0
    installation.run("j1", Selecting(installation.course("a", "ad", "d", "d"), now_s))
    assert installation.shown(name, node="d") == 3
    installation.run("j1", Selecting(installation.course("a", "ad", "d", "d", ""), now_s))
    assert installation.shown(name, node="d") == 0


def test_the_longest_wait_is_shown_and_ends_with_the_waiting(installation: Installation) -> None:
    """A job in selection waits since that began; one below quorum since it was first seen so."""
    course, now_s = installation.course(), time.time()
    training = Training(course, RoundRecord(1, 0.0), now_s + 300.0, waiting=(AWAY,))
    installation.run("j1", training)
    assert installation.shown("feddp_jobs_waiting") == 1
    assert installation.shown("feddp_job_waiting_seconds") == pytest.approx(0.0, abs=30.0)
    installation.run("j2", Selecting(course, now_s - 600.0, (AWAY,), surveyed=True))
    assert installation.shown("feddp_jobs_waiting") == 2
    assert installation.shown("feddp_job_waiting_seconds") == pytest.approx(600.0, abs=30.0)
    installation.figures._below_quorum_s["j1", 1] -= 900.0
    assert installation.shown("feddp_job_waiting_seconds") == pytest.approx(900.0, abs=30.0)
    installation.run("j1", replace(training, waiting=()))
    installation.run("j2", Selecting(course, now_s - 600.0))
    assert installation.shown("feddp_jobs_waiting") == 0
    assert installation.shown("feddp_job_waiting_seconds") == 0.0


def test_chains_are_counted_with_what_nodes_have_signed(installation: Installation) -> None:
    """The newest signature of each account; counted anew only after a while."""

    def write(connection: Connection) -> None:
        for name, number in (("a/p", 7), ("d/p", 5)):
            ledger.open_account(connection, name, name[0], "gdp", 0, 5.0, 1e-5)
            connection.execute(
                accounts.update().where(accounts.c.account == name).values(entries=number)
            )
        for name, seq in (("a/p", 3), ("a/p", 6), ("d/p", 2)):
            connection.execute(
                countersignatures.insert().values(
                    account=name, seq=seq, hash="h", node_signature=b"s"
                )
            )

    assert installation.shown_soon("feddp_ledger_chain_entries") == 0, "the first look"
    installation.database.write_now(write)
    assert installation.shown_soon("feddp_ledger_chain_entries") == 0
    assert installation.shown("feddp_ledger_chain_entries") == 12
    assert installation.shown("feddp_ledger_countersigned_entries") == 8
    assert installation.shown("feddp_ledger_accounts", guarantee="yes") == 2


def test_accounts_that_wait_to_be_handed_in_are_shown_with_their_nodes(
    installation: Installation,
) -> None:
    """None before a restore; after it all of a node until it has handed in; a disabled one is
    forgotten."""
    name, key = "feddp_ledger_unreconciled_accounts", ledger_key(installation.folder / "pki")

    def write(connection: Connection) -> None:
        for account in ("a/p", "a/q", "d/p"):
            ledger.open_account(connection, account, account[0], "gdp", 0, 5.0, 1e-5)

    installation.database.write_now(write)
    assert installation.shown(name, node="a") == 0
    number = installation.database.write_now(
        lambda c: epochs.raise_epoch(c, key, now_s=time.time(), backup_made_at_s=1.0)
    ).number
    assert installation.shown(name, node="a") == 2
    assert installation.shown(name, node="d") == 1
    installation.database.write_now(lambda c: epochs.reconcile(c, "a/p", number, 1.0))
    installation.database.write_now(lambda c: epochs.reconcile(c, "d/p", number, 1.0))
    assert installation.shown(name, node="a") == 1
    assert installation.shown(name, node="d") == 0
    installation.metrics.forget_node("a")
    assert installation.metrics.registry.get_sample_value(name, {"node": "a"}) is None
