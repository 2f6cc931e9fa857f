"""A coordinator that changes its ledger is found out: by its nodes, and by officers who compare."""

import asyncio
import json
import shutil
import sqlite3
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator import views
from coordinator.keyring import ledger_key
from coordinator.observing.metrics import Metrics
from coordinator.rpc import witness as witness_rpc
from coordinator.rpc.gate import Gate
from coordinator.store import checkpoints, ledger, limits, people
from coordinator.store.booking import Books
from coordinator.store.database import Database
from feddp.cli.verify.history import Passing, faults
from feddp.cli.verify.witnesses import Witnesses, from_json, from_message
from node_agent.session.countersigning import denied
from node_agent.session.ledger_thread import LedgerThread
from node_agent.session.witness import Witness
from node_agent.state.state import State
from privacy.entries import Entry, Statement, append, entry_hash, sign
from privacy.filters import make_filter
from privacy.heads import head_of
from privacy.ledger import LimitChange, verify
from privacy.limits import LimitTerms, sign_terms
from protos.errors import WrongPhase
from protos.feddp.v1 import jobs_pb2, witness_pb2_grpc
from tests.attackers import drop_guards
from tests.integration.federation import Federation, null_job, run_cli, wait_for
from tests.node_agent.samples import LEDGER_KEY, NODE, order

ACCOUNT = f"{NODE}/patients"
FILTER = make_filter("gdp", 0, 10.0, 1.0e-5)
PUBLIC = LEDGER_KEY.public_key().public_bytes_raw()
ENTRIES = 20


class OpenGate(Gate):
    """Admits everybody; the node is the one of this test."""

    def admit(self, context: Any, method: str) -> None:
        return None


def row_of(entry: Entry) -> dict[str, Any]:
    """An entry as the table has it."""
    if isinstance(entry.statement, LimitChange):
        return limits._row(entry, entry.statement)
    values = {**entry.statement.fields(), "seq": entry.seq, "prev_hash": entry.prev_hash}
    return values | {"hash": entry.hash, "node_signature": entry.node_signature}


class Bench:
    """Both ledgers of one node, as files, and a coordinator that serves its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(f"sqlite:///{folder / 'coordinator.db'}")
        self.state = State(folder / "state.db", NODE, LEDGER_KEY)
        self.key = ledger_key(folder)
        self.public_key = self.key.public_key().public_bytes_raw()

    def book(self, attempts: int, first: int = 0, account: str = "patients") -> None:
        """Attempts that both sides have reserved, posted and closed."""

        def central(connection: Any) -> None:
            books = Books(connection)
            for statement in statements:
                books.book(statement, sign(LEDGER_KEY, statement))
            books.flush()

        statements = []
        for number in range(first, first + attempts):
            wanted = order(f"a{number}", job_id=f"job-{number}", account=account)
            self.state.reserve(wanted, FILTER)
            self.state.open(wanted.attempt_id, 1.0, 1.0)
            self.state.lose(wanted.attempt_id)
            self.state.close_attempt(wanted.attempt_id, "post")
            statements += [wanted.statement(NODE, kind) for kind in ("reserve", "post")]
        self.database.write_now(central)

    def chain(self) -> list[Entry]:
        """The central chain."""
        return self.database.read_now(lambda c: list(ledger.chain(c, ACCOUNT)))

    def write(self, chain: list[Entry], head: str = "") -> None:
        """Put another chain in the place of the central one, as whoever may write there can.

        Args:
            head: the account's head; that of the chain where it is empty.
        """

        def work(connection: Any) -> None:
            execute = connection.exec_driver_sql
            drop_guards(connection.connection.cursor())
            execute("DELETE FROM entries WHERE account = ?", (ACCOUNT,))
            for one in chain:
                values = row_of(one)
                names, marks = ", ".join(values), ", ".join("?" * len(values))
                execute(
                    f"INSERT INTO entries ({names}) VALUES ({marks})",  # noqa: S608
                    tuple(values.values()),
                )
            execute(
                "UPDATE accounts SET entries = ?, head_hash = ? WHERE account = ?",
                (len(chain), head or chain[-1].hash, ACCOUNT),
            )

        self.database.write_now(work)

    def look(
        self,
        monkeypatch: pytest.MonkeyPatch,
        coordinator: type[witness_rpc.WitnessService] = witness_rpc.WitnessService,
    ) -> None:
        """What the node does at its next session, over real gRPC."""

        class Caller:
            node = NODE

        monkeypatch.setattr(witness_rpc, "caller", Caller)

        async def run() -> None:
            server = grpc.aio.server(interceptors=[OpenGate(None, Metrics())])
            service = coordinator(self.database, self.key)
            witness_pb2_grpc.add_WitnessServicer_to_server(service, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            thread = LedgerThread()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    witness = Witness(channel, self.state, thread, lambda _: FILTER, lambda: 1.0)
                    await witness.look()
            finally:
                await server.stop(None)
                thread.close()

        asyncio.run(run())

    def close(self) -> None:
        """Let go of both files."""
        self.database.close()
        self.state.close()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 20 entries in each ledger, all followed and countersigned by the node."""
    folder = tmp_path_factory.mktemp("seen")
    bench = Bench(folder)
    bench.database.migrate()
    invitation = {"spiffe_id": "s", "now_s": 0.0, "expires_at_s": 1.0}
    bench.database.write_now(lambda c: people.invite(c, NODE, "hpc", "s", **invitation))
    public_key = LEDGER_KEY.public_key().public_bytes_raw()
    bench.database.write_now(
        lambda c: c.exec_driver_sql("UPDATE nodes SET ledger_public_key = ?", (public_key,))
    )
    bench.database.write_now(
        lambda c: ledger.open_account(c, ACCOUNT, NODE, "gdp", 0, 10.0, 1.0e-5)
    )
    bench.book(ENTRIES // 2)
    with pytest.MonkeyPatch.context() as patch:
        bench.look(patch)
    assert bench.state.disputes.all() == []
    assert bench.state.witnessed.head(ACCOUNT).seq == ENTRIES
    kept = bench.database.read_now(checkpoints.countersigned)
    assert [one.head.seq for one in kept] == [ENTRIES]
    bench.close()
    return folder


@pytest.fixture
def bench(seen: Path, tmp_path: Path) -> Any:
    """The same, of one's own."""
    shutil.copytree(seen, tmp_path / "bench")
    opened = Bench(tmp_path / "bench")
    yield opened
    opened.close()


def forged(chain: list[Entry], k: int, change: Callable[[Statement], Statement]) -> list[Entry]:
    """The chain with entry `k` changed and every hash from there on made to fit."""
    made = chain[: k - 1]
    for entry in chain[k - 1 :]:
        statement = change(entry.statement) if entry.seq == k else entry.statement
        signature = b"" if entry.seq == k else entry.node_signature
        prev_hash = made[-1].hash if made else entry.prev_hash
        digest = entry_hash(entry.seq, prev_hash, statement)
        made.append(Entry(entry.seq, statement, prev_hash, digest, signature))
    return made


@pytest.mark.parametrize("longer", [False, True], ids=["as long", "longer"])
@pytest.mark.parametrize("kept", [False, True], ids=["head changed", "head kept"])
@pytest.mark.parametrize("k", range(1, ENTRIES + 1))
def test_a_fork_at_any_entry_raises_the_alarm_at_the_next_session(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, k: int, kept: bool, longer: bool
) -> None:
    """The rewritten chain is valid in itself, and as long as what was seen or longer; the account's
    own row says the new head, or the one that the node has seen, and goes on from that."""
    before = bench.chain()
    chain = forged(before, k, lambda one: replace(one, project="another"))
    if kept and longer:
        bench.book(1, first=ENTRIES)
        chain += bench.chain()[ENTRIES:]
        bench.write(chain)
    elif kept:
        bench.write(chain, head=before[-1].hash)
    else:
        bench.write(chain)
        if longer:
            bench.book(1, first=ENTRIES)
    bench.look(monkeypatch)
    found = bench.state.disputes.all()
    assert [one.account for one in found] == [ACCOUNT]
    if kept:
        assert found[0].text == f"entry {ENTRIES} is another one than this node has seen there"
    # Where it goes on from the head that was seen, the node has followed it before it looked back.
    followed = ENTRIES + 2 if kept and longer else ENTRIES
    assert bench.state.witnessed.head(ACCOUNT).seq == followed
    signed = bench.database.read_now(checkpoints.countersigned)
    assert [one.head.seq for one in signed] == [ENTRIES], "a disputed head was countersigned"


class Busy(witness_rpc.WitnessService):
    """A coordinator at which something happens just before it takes countersignatures."""

    happens: Callable[[], None]

    async def Countersign(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        type(self).happens()
        return await super().Countersign(request, context)


def test_an_attempt_that_ends_after_the_heads_were_told_raises_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no answer of before; the next look finds it there."""
    waiting = [lambda: bench.book(1, first=ENTRIES)]

    class Overtaken(witness_rpc.WitnessService):
        async def ReadHeads(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            answer = await super().ReadHeads(request, context)
            if waiting:
                await asyncio.to_thread(waiting.pop())
            return answer

    bench.look(monkeypatch, Overtaken)
    assert bench.state.disputes.all() == []
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.state.witnessed.head(ACCOUNT).seq == ENTRIES + 2


def busy(happens: Callable[[], None]) -> type[Busy]:
    """Such a coordinator; it happens once."""
    waiting = [happens]
    return type("BusyOnce", (Busy,), {"happens": lambda: waiting.pop()() if waiting else None})


def test_a_head_that_moves_on_while_it_is_signed_raises_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job's entries come between what is announced and the signature; the next look signs
    them too."""
    bench.book(1, first=ENTRIES)
    bench.look(monkeypatch, busy(lambda: bench.book(1, first=ENTRIES + 1)))
    assert bench.state.disputes.all() == []
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    signed = bench.database.read_now(checkpoints.countersigned)
    assert [one.head.seq for one in signed] == [ENTRIES, ENTRIES + 2, ENTRIES + 4]


def test_a_chain_that_is_changed_while_its_head_is_signed_raises_the_alarm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was announced a moment ago is a promise."""
    bench.book(1, first=ENTRIES)
    chain = forged(bench.chain(), ENTRIES + 1, lambda one: replace(one, project="another"))
    bench.look(monkeypatch, busy(lambda: bench.write(chain)))
    (found,) = bench.state.disputes.all()
    assert (found.account, found.seq) == (ACCOUNT, ENTRIES + 2)


def test_one_accounts_fork_keeps_no_other_ones_head_from_being_signed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are handed in together."""
    other = f"{NODE}/others"
    bench.database.write_now(lambda c: ledger.open_account(c, other, NODE, "gdp", 0, 10.0, 1.0e-5))
    before = bench.chain()
    chain = forged(before, 3, lambda one: replace(one, project="another"))
    bench.write(chain, head=before[-1].hash)
    bench.book(1, first=ENTRIES, account="others")
    bench.look(monkeypatch)
    assert [one.account for one in bench.state.disputes.all()] == [ACCOUNT]
    signed = bench.database.read_now(checkpoints.countersigned)
    assert [(one.head.account, one.head.seq) for one in signed] == [(other, 2), (ACCOUNT, ENTRIES)]


def test_an_account_that_is_gone_raises_the_alarm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its entries and its row: nothing of it is announced any more."""

    def remove(connection: Any) -> None:
        drop_guards(connection.connection.cursor())
        for table in ("countersignatures", "entries", "accounts"):
            connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608

    bench.database.write_now(remove)
    bench.look(monkeypatch)
    (found,) = bench.state.disputes.all()
    assert found.account == ACCOUNT
    assert found.text == f"entry {ENTRIES}, which this node has seen there, is gone"


def test_only_another_entry_in_its_place_disputes_a_head_that_is_not_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that does not take a head and shows the very entry holds it after all."""
    *_, before, last = bench.chain()
    head = head_of(last)
    assert denied(head, last) == ""
    assert "is gone" in denied(head, None)
    assert "is gone" in denied(head, before)
    assert "is another one" in denied(head, replace(last, hash="0" * 64))

    def refuse() -> None:
        raise WrongPhase("HEAD_UNKNOWN", "it is not the newest")

    bench.look(monkeypatch, type("Stubborn", (Busy,), {"happens": refuse}))
    assert bench.state.disputes.all() == []


@pytest.mark.parametrize("k", [1, ENTRIES // 2, ENTRIES - 1])
def test_a_chain_that_was_cut_raises_the_alarm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    """What is left is a valid chain."""
    bench.write(bench.chain()[:k])
    bench.look(monkeypatch)
    assert "has seen 20" in bench.state.disputes.all()[0].text


def test_an_honest_chain_that_grows_raises_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at after each attempt; and again where nothing is new."""
    for number in range(5):
        bench.book(1, first=ENTRIES + number)
        bench.look(monkeypatch)
        bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.state.witnessed.head(ACCOUNT).seq == ENTRIES + 10
    assert len(bench.state.witnessed.checkpoints()) == 6


def test_what_was_posted_here_and_is_missing_there_raises_the_alarm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator has said that the attempt is over, and does not book it."""
    before = bench.chain()
    bench.book(1, first=ENTRIES)
    bench.write(before)
    bench.look(monkeypatch)
    assert f"attempt a{ENTRIES} is over and posted here" in bench.state.disputes.all()[0].text


def test_other_terms_than_ours_raise_the_alarm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post with more noise than was ordered would make the account look less spent."""
    bench.book(1, first=ENTRIES)
    cheaper = forged(bench.chain(), ENTRIES + 2, lambda one: replace(one, noise_multiplier=1000.0))
    bench.write(cheaper)
    bench.look(monkeypatch)
    assert "with other terms" in bench.state.disputes.all()[0].text


def test_two_histories_are_two_checkpoints_of_one_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A coordinator that restores a copy and goes on otherwise has signed both."""
    fork = tmp_path / "fork"
    shutil.copytree(bench.folder, fork)
    other = Bench(fork)
    for one, number in ((bench, ENTRIES), (other, ENTRIES + 1)):
        one.book(1, first=number)
        one.look(monkeypatch)
        assert one.state.disputes.all() == []
    nodes = [seen_by(one.state) for one in (bench, other)]
    assert {len(one.checkpoints) for one in nodes} == {2}
    public = {NODE: LEDGER_KEY.public_key().public_bytes_raw()}
    passed = Passing(bench.chain(), [Witnesses("the coordinator"), *nodes])
    assert len(list(passed)) == len(bench.chain())
    found = faults(passed, public, whole=True)
    assert ("(checkpoints)", 2) in {(account, seq) for account, seq, _ in found}
    # And a node that has seen the one is alarmed by the other.
    bench.database.close()
    bench.database = other.database
    bench.look(monkeypatch)
    assert {one.account for one in bench.state.disputes.all()} >= {ACCOUNT}
    other.state.close()


def test_the_coordinator_says_what_each_root_is_made_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found again among the entries; where the entries were cut, the root cannot be made."""
    bench.book(1, first=ENTRIES)
    bench.look(monkeypatch)

    def problems() -> list[tuple[str, int, str]]:
        message = bench.database.read_now(lambda c: views.checkpoints(c, bench.public_key))
        kept = from_message(message, [ACCOUNT], bench.chain())
        moved.append(kept.moved)
        passed = Passing(bench.chain(), [kept])
        assert list(passed) == bench.chain()
        return faults(passed, {NODE: PUBLIC}, whole=True)

    moved: list[Any] = []
    assert problems() == []
    assert moved == [[[(ACCOUNT, ENTRIES)], [(ACCOUNT, ENTRIES + 2)]]]
    bench.write(bench.chain()[:-2])
    bench.database.write_now(
        lambda c: c.exec_driver_sql("DELETE FROM countersignatures WHERE seq > ?", (ENTRIES,))
    )
    (found,) = problems()
    assert found[:2] == ("(checkpoints)", 2)
    assert moved[1] == [[(ACCOUNT, ENTRIES)], []]


def seen_by(state: State) -> Witnesses:
    """What `feddp agent ledger heads` prints, without a folder."""
    witnessed = state.witnessed
    return from_json(
        {
            "coordinator_ledger_key": witnessed.coordinator_key().hex(),
            "heads": [
                {
                    "account": one.account,
                    "seq": one.seq,
                    "hash": one.hash,
                    "node_signature": witnessed.sign(one).hex(),
                }
                for one in witnessed.heads()
            ],
            "checkpoints": [
                {
                    "number": one.number,
                    "prev_hash": one.prev_hash,
                    "root": one.root,
                    "signature": one.signature.hex(),
                }
                for one in witnessed.checkpoints()
            ],
        },
        NODE,
    )


def test_an_older_copy_of_our_ledger_catches_up_with_what_we_signed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was spent since counts again, and nothing is disputed."""
    shutil.copy(bench.folder / "state.db", tmp_path / "copy.db")
    spent = bench.state.ledger.account(ACCOUNT)
    assert spent is not None
    bench.book(3, first=ENTRIES)
    after = bench.state.ledger.account(ACCOUNT)
    assert after is not None
    bench.state.close()
    bench.state = State(tmp_path / "copy.db", NODE, LEDGER_KEY)
    bench.look(monkeypatch)
    restored = bench.state.ledger.account(ACCOUNT)
    assert restored is not None
    assert spent.posted_units < restored.posted_units == after.posted_units
    assert bench.state.disputes.all() == []


def test_a_raise_that_this_node_did_not_make_raises_the_alarm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that writes a limit entry by itself; its chain is valid but for the node."""
    people = [Ed25519PrivateKey.generate() for _ in range(2)]
    for number, signature in enumerate((b"", people[0].sign(b"x"))):
        entry = append(raised(bench, people), bench.chain()[-1], signature)
        before = bench.chain()
        bench.write([*before, entry])
        bench.look(monkeypatch)
        (found,) = bench.state.disputes.all()
        assert (found.account, found.seq) == (ACCOUNT, ENTRIES + 1), number
        assert "this node has not signed that" in found.text
        kept = bench.state.ledger.account(ACCOUNT)
        assert kept is not None
        assert kept.epsilon_limit == 10.0
        bench.write(before)
        bench.state.settle(ACCOUNT)
        bench.look(monkeypatch)
        assert bench.state.disputes.all() == []


def test_our_own_raise_is_followed_and_not_brought_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is brought until it was seen in the coordinator's chain."""
    change = raised(bench, [Ed25519PrivateKey.generate() for _ in range(2)])
    with bench.state.raising() as own:
        signature = own.record(change)
    bench.look(monkeypatch)
    assert bench.state.ledger.unseen_raises() == [(change, signature)]
    bench.database.write_now(lambda c: limits.record(c, NODE, PUBLIC, change, signature))
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.state.ledger.unseen_raises() == []
    assert bench.state.witnessed.head(ACCOUNT).seq == ENTRIES + 1


def test_another_raise_of_the_same_number_raises_the_alarm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though this node's key has signed it: its ledger says otherwise."""
    people = [Ed25519PrivateKey.generate() for _ in range(2)]
    with bench.state.raising() as own:
        own.record(raised(bench, people))
    other = raised(bench, people, new=99.0)
    chain = bench.chain()
    bench.write([*chain, append(other, chain[-1], sign(LEDGER_KEY, other))])
    bench.look(monkeypatch)
    assert "with other terms" in bench.state.disputes.all()[0].text


def test_an_older_copy_of_our_ledger_catches_up_with_a_raise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """We have signed it, so it is ours, and what was spent under it is within the limit."""
    shutil.copy(bench.folder / "state.db", tmp_path / "copy.db")
    change = raised(bench, [Ed25519PrivateKey.generate() for _ in range(2)])
    with bench.state.raising() as own:
        signature = own.record(change)
    bench.database.write_now(lambda c: limits.record(c, NODE, PUBLIC, change, signature))
    bench.book(1, first=ENTRIES)
    bench.state.close()
    bench.state = State(tmp_path / "copy.db", NODE, LEDGER_KEY)
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    kept = bench.state.ledger.account(ACCOUNT)
    assert kept is not None
    assert kept.epsilon_limit == 20.0
    assert bench.state.ledger.raises(ACCOUNT) == [change]
    filters = {ACCOUNT: kept.filter(kept.epsilon_limit_highest)}
    assert verify(bench.state.ledger.entries(), filters, {NODE: PUBLIC}).ok


def raised(bench: Bench, people: Sequence[Ed25519PrivateKey], new: float = 20.0) -> LimitChange:
    """The account's first raise."""
    kept = bench.state.ledger.account(ACCOUNT)
    assert kept is not None
    asked, agreed = (one.public_key().public_bytes_raw().hex() for one in people)
    terms = LimitTerms(
        account=ACCOUNT,
        node=NODE,
        number=1,
        filter=kept.fixed.kind,
        rdp_order=kept.fixed.order,
        delta=kept.fixed.delta,
        epsilon_limit_old=10.0,
        epsilon_limit_new=new,
        reason="a second study",
        asked_by="anna",
        asked_key=asked,
    )
    signatures = [sign_terms(one, terms) for one in people]
    return LimitChange(terms, signatures[0], "bert", agreed, signatures[1])


def test_what_is_settled_is_taken_as_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it contradicts our own ledger; what comes after it is compared again."""
    before = bench.chain()
    bench.book(1, first=ENTRIES)
    bench.write(forged(before, 3, lambda one: replace(one, project="another")))
    bench.look(monkeypatch)
    assert bench.state.settle(ACCOUNT).account == ACCOUNT
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    assert bench.state.witnessed.head(ACCOUNT).seq == ENTRIES
    kept = bench.chain()
    bench.book(1, first=ENTRIES + 1)
    bench.look(monkeypatch)
    assert bench.state.disputes.all() == []
    bench.write(kept)
    bench.look(monkeypatch)
    assert len(bench.state.disputes.all()) == 1


# Real processes


def test_the_nodes_notice_and_refuse_until_their_steward_settles(
    coordinator: Federation, tmp_path: Path
) -> None:
    """A rewritten chain: the alarm, the refused order, `verify --heads`, and the way back."""
    names = ("alpha", "beta", "gamma")
    for name in names:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*names)
    job = coordinator.wait_for_end(coordinator.submit(null_job(3)))
    assert job.status == "completed"

    def signed(account: str) -> bool:
        return is_signed(coordinator, account)

    for name in names:
        account = f"{name}/patients"
        wait_for("its head is countersigned", lambda account=account: signed(account))  # type: ignore[misc]
    heads = tmp_path / "alpha.json"
    found = run(
        coordinator, "agent", "ledger", "heads", "--json", "--dir", coordinator.agent("alpha")
    )
    heads.write_text(found[1])
    assert run(coordinator, "budget", "verify", "--heads", heads)[0] == 0
    coordinator.kill("coordinator")
    rewrite(coordinator, "alpha/patients")
    coordinator.start("coordinator")
    coordinator.wait_for_nodes(*names)
    wait_for("alpha is alarmed", lambda: "ledger_disputed" in coordinator.log("alpha"))
    verified = run(coordinator, "budget", "verify", "--heads", heads)
    assert verified[0] == 1
    assert "the history was rewritten" in verified[1]
    second = coordinator.submit(null_job(1))
    # It is in the middle of an order, or has said beforehand that it would refuse one.
    wait_for(
        "alpha refuses",
        lambda: ("alpha", "LEDGER_DISPUTED") in refusals(coordinator.job(second)),
    )
    coordinator.kill("alpha")
    settled = run(
        coordinator,
        "agent",
        "ledger",
        "settle",
        "alpha/patients",
        "--dir",
        coordinator.agent("alpha"),
    )
    assert "settled: alpha/patients" in settled[1]
    coordinator.start("alpha")
    assert coordinator.wait_for_end(second).status == "completed"
    wait_for("its head is countersigned anew", lambda: signed("alpha/patients"))
    assert coordinator.log("alpha").count("ledger_disputed") == 1


def is_signed(federation: Federation, account: str) -> bool:
    """Whether the node has countersigned the account's last entry."""
    query = (
        "SELECT (SELECT max(seq) FROM countersignatures WHERE account = :a)"
        " = (SELECT max(seq) FROM entries WHERE account = :a)"
    )
    with federation.database() as database:
        (found,) = database.execute(query, {"a": account}).fetchone()
    return bool(found)


def test_a_changed_account_whose_head_was_kept_is_found_and_stops_nobody_else(
    coordinator: Federation,
) -> None:
    """Its node is alarmed and left out with the reason; jobs, sessions and probes go on."""
    names = ("alpha", "beta", "gamma", "delta")
    for name in names:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*names)
    assert coordinator.wait_for_end(coordinator.submit(null_job(2))).status == "completed"
    wait_for("its head is countersigned", lambda: is_signed(coordinator, "alpha/patients"))
    coordinator.kill("coordinator")
    rewrite(coordinator, "alpha/patients", head_kept=True)
    coordinator.start("coordinator")
    coordinator.wait_for_nodes(*names)
    wait_for("alpha is alarmed", lambda: "ledger_disputed" in coordinator.log("alpha"))
    status = run(coordinator, "agent", "status", "--dir", coordinator.agent("alpha"))
    assert status[0] == 1
    assert "another one than this node has seen there" in status[1]
    done = coordinator.wait_for_end(coordinator.submit(null_job(1)))
    assert done.status == "completed"
    parts = {one.node: (one.outcome, one.reason) for one in done.rounds[0].participation}
    assert parts == dict.fromkeys(names, ("update", "")) | {"alpha": ("left_out", "LEDGER_DAMAGED")}
    coordinator.kill("beta")
    waiting = coordinator.submit(null_job(1))
    missing = {("alpha", "LEDGER_DAMAGED"), ("beta", "OFFLINE")}
    wait_for("it waits", lambda: refusals(coordinator.job(waiting)) >= missing)
    shown = run(coordinator, "job", "show", waiting)[1]
    assert "ledger of account alpha/patients is damaged" in " ".join(shown.split())
    assert "feddp budget verify" in shown
    coordinator.start("beta")
    assert coordinator.wait_for_end(waiting).status == "completed"
    with urllib.request.urlopen(coordinator.health + "/ready", timeout=10) as answer:  # noqa: S310
        assert json.loads(answer.read())["ready"] is True
    with urllib.request.urlopen(coordinator.health + "/metrics", timeout=10) as answer:  # noqa: S310
        assert b"feddp_ledger_damaged_accounts 1.0" in answer.read()
    log = coordinator.log("coordinator")
    assert log.count("account_damaged") == 1
    for trouble in ("command_failed", "rpc_failed", "tick_failed", "event_not_taken"):
        assert trouble not in log


def refusals(job: jobs_pb2.Job) -> set[tuple[str, str]]:
    """Who cannot take part now, or did not, and why."""
    absent = {(one.node, one.reason) for one in job.waiting}
    return absent | {(p.node, p.reason) for r in job.rounds for p in r.participation}


def test_any_hospitals_file_finds_another_ones_account_cut(
    coordinator: Federation, tmp_path: Path
) -> None:
    """The last attempt goes with its countersignature, and the sums fit; the ledger alone, and
    its export, are found out by a hospital that has nothing to do with the account."""
    names = ("alpha", "beta", "gamma")
    for name in names:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*names)
    assert coordinator.wait_for_end(coordinator.submit(null_job(2))).status == "completed"

    def seen_last(name: str) -> Any:
        """A node's own file, once it has seen the job's last entries below a checkpoint."""
        with coordinator.database() as database:
            query = "SELECT entries, head_hash FROM accounts WHERE account = ?"
            standing = tuple(database.execute(query, (f"{name}/patients",)).fetchone())
        folder = coordinator.agent(name)
        found = json.loads(
            run(coordinator, "agent", "ledger", "heads", "--json", "--dir", folder)[1]
        )
        heads = [(one["seq"], one["hash"]) for one in found["heads"]]
        return found if heads == [standing] and found["checkpoints"] else None

    files: dict[str, Path] = {}
    for name in names:
        wait_for("it has seen everything", lambda name=name: seen_last(name) is not None)  # type: ignore[misc]
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(seen_last(name)))
    coordinator.kill("coordinator")
    every = [word for file in files.values() for word in ("--heads", file)]
    verified = run(coordinator, "budget", "verify", *every)
    assert (verified[0], "beside what 3 nodes have seen" in verified[1]) == (0, True)
    for name in names:
        assert f"behind {name}/patients: its own node's file up to entry" in verified[1]
    assert "no file for its filter" not in verified[1]
    # A checkpoint below which the cut entries stand: that of the last look of all.
    last = max(names, key=lambda name: len(json.loads(files[name].read_text())["checkpoints"]))
    victim = next(name for name in names if name != last)
    cut_last_attempt(coordinator, f"{victim}/patients")
    verified = run(coordinator, "budget", "verify", "--heads", files[last])
    assert verified[0] == 1
    assert "was made over other entries than these" in verified[1]
    export = tmp_path / "ledger.json"
    export.write_text(run(coordinator, "budget", "ledger", "--json")[1])
    assert run_cli("budget", "verify", str(export), "--heads", str(files[last]))[0] == 1


def cut_last_attempt(federation: Federation, account: str) -> None:
    """Take an account's last two entries away and put its own figures right."""
    with federation.database() as database:
        (count,) = database.execute(
            "SELECT entries FROM accounts WHERE account = ?", (account,)
        ).fetchone()
        drop_guards(database)
        database.execute("DELETE FROM entries WHERE account = ? AND seq > ?", (account, count - 2))
        database.execute(
            "DELETE FROM countersignatures WHERE account = ? AND seq > ?", (account, count - 2)
        )
        database.execute(
            "UPDATE accounts SET entries = entries - 2, posted_units = posted_units *"
            " (entries - 2) / entries, head_hash = (SELECT hash FROM entries WHERE"
            " entries.account = accounts.account ORDER BY seq DESC LIMIT 1) WHERE account = ?",
            (account,),
        )
        database.commit()


def run(federation: Federation, *arguments: object) -> tuple[int, str, str]:
    """A command; those of people on this installation."""
    words = [str(one) for one in arguments]
    if words[0] != "agent":
        words += ["--dir", str(federation.installation.folder)]
    return run_cli(*words)


def rewrite(federation: Federation, account: str, *, head_kept: bool = False) -> None:
    """Change an account's second entry, and make every hash fit, the head's own where it is not
    kept as it was."""
    with federation.database() as database:
        drop_guards(database)
        database.row_factory = sqlite3.Row
        rows = database.execute(
            "SELECT * FROM entries WHERE account = ? ORDER BY seq", (account,)
        ).fetchall()
        before = ""
        for row in rows:
            statement = Statement(**{n: row[n] for n in Statement.__dataclass_fields__})
            project = "another" if row["seq"] == 2 else row["project"]
            prev_hash = before or row["prev_hash"]
            before = entry_hash(row["seq"], prev_hash, replace(statement, project=project))
            signature = b"" if row["seq"] == 2 else row["node_signature"]
            database.execute(
                "UPDATE entries SET project = ?, prev_hash = ?, hash = ?, node_signature = ?"
                " WHERE account = ? AND seq = ?",
                (project, prev_hash, before, signature, account, row["seq"]),
            )
        if not head_kept:
            change = "UPDATE accounts SET head_hash = ? WHERE account = ?"
            database.execute(change, (before, account))
        database.commit()


def test_a_ledger_is_copied_and_put_back(coordinator: Federation, tmp_path: Path) -> None:
    """Into a folder whose own was lost; a copy that lacks what the folder has is refused."""
    coordinator.add_node("alpha")
    copy, agent = tmp_path / "copy.db", coordinator.agent("alpha")
    made = run(coordinator, "agent", "ledger", "export", copy, "--dir", agent, "--json")
    assert json.loads(made[1]) == {"file": str(copy), "entries": 0}
    assert copy.stat().st_mode & 0o077 == 0
    again = run(coordinator, "agent", "ledger", "export", copy, "--dir", agent)
    assert "is not written over" in again[2]
    state = State(agent / "state.db", "alpha", ledger_key_of(agent))
    state.reserve(order(), FILTER)
    state.close()
    refused = run(coordinator, "agent", "ledger", "import", copy, "--dir", agent)
    assert refused[0] != 0
    assert "would forget what was spent" in refused[2]
    newer = tmp_path / "newer.db"
    run(coordinator, "agent", "ledger", "export", newer, "--dir", agent)
    assert run(coordinator, "agent", "ledger", "import", newer, "--dir", agent)[0] == 0
    newer.write_bytes(newer.read_bytes()[:5000])
    damaged = run(coordinator, "agent", "ledger", "import", newer, "--dir", agent)
    assert damaged[0] == 2
    assert "no ledger that can be read" in damaged[2]


def ledger_key_of(agent: Path) -> Any:
    """The agent's ledger key."""
    from certs.enrolment import load_ledger_key

    return load_ledger_key(agent / "identity" / "ledger.key")
