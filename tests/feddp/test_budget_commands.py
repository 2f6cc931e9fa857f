"""`feddp budget` over rpc, over a database and over an exported file."""

import json
import sqlite3
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Run
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_coordinator import Coordinator, wire
from sqlalchemy.engine import make_url

from benchmarks.postgresql import PostgreSql
from feddp.cli.budget import guarantee_of
from feddp.cli.ledgers import Ledger, check, from_client
from feddp.cli.verify.exports import from_file
from feddp.client import Client
from privacy import ledger
from privacy.canonical import PUBLIC_KEY_BYTES, SIGNATURE_BYTES
from privacy.figures import figures_of
from privacy.filters import make_filter
from privacy.limits import LimitChange, LimitTerms
from protos.feddp.v1.budgets_pb2 import BudgetAccount
from tests.attackers import drop_guards


def statement(kind: ledger.Kind, attempt: str) -> ledger.Statement:
    """One full-batch release of five steps."""
    return ledger.Statement(
        kind=kind,
        attempt_id=attempt,
        project="default",
        node="a",
        account="a/patients",
        dataset="heart-disease",
        job_id="j1",
        round=1,
        unit="patient",
        declared_n=199,
        mechanism="gaussian",
        noise_multiplier=20.0,
        sample_rate=1.0,
        steps=5,
    )


def chain(key: Ed25519PrivateKey) -> list[ledger.Entry]:
    """A posted attempt and a void one, all signed."""
    entries: list[ledger.Entry] = []
    for kind, attempt in (("reserve", "t1"), ("post", "t1"), ("reserve", "t2"), ("void", "t2")):
        one = statement(kind, attempt)  # type: ignore[arg-type]
        entries.append(ledger.append(one, entries[-1] if entries else None, ledger.sign(key, one)))
    return entries


@pytest.fixture
def booked(coordinator: Coordinator) -> Coordinator:
    """A coordinator with one account of four entries."""
    key = Ed25519PrivateKey.generate()
    budget = make_filter("gdp", 0, 2.0, 1e-5)
    coordinator.state.entries = chain(key)
    release = statement("post", "t1").release
    used, figures = budget.cost_units(release), figures_of([release], budget)
    assert figures is not None
    coordinator.state.accounts = [
        BudgetAccount(
            account="a/patients",
            node="a",
            data_sets=["heart-disease"],
            filter="gdp",
            epsilon_limit=2.0,
            epsilon_limit_highest=2.0,
            delta=1e-5,
            epsilon_spent=figures.running,
            epsilon_booked=figures.booked,
            epsilon_naive=figures.naive,
            efficiency=figures.efficiency,
            booked_to_naive=figures.booked_to_naive,
            posted_units=used,
            limit_units=budget.limit_units,
            guarantee=True,
            entries=4,
            head_hash=coordinator.state.entries[-1].hash,
            ledger_public_key=key.public_key().public_bytes_raw(),
        )
    ]
    return coordinator


def test_show_says_what_a_raise_makes_of_delta(booked: Coordinator, run: Run) -> None:
    """Only where there was one: for all limits together delta counts once more for each."""
    said = "After raises the DELTA holds for each limit by itself"
    assert said not in run("budget", "show", "--profile", booked.profile).out
    terms = LimitTerms(
        "a/patients", "a", 1, "gdp", 0, 1e-5, 2.0, 3.0, "more", "anna", "a" * PUBLIC_KEY_BYTES * 2
    )
    signature = "c" * SIGNATURE_BYTES * 2
    change = LimitChange(terms, signature, "bert", "b" * PUBLIC_KEY_BYTES * 2, signature)
    entries = booked.state.entries
    entries.append(ledger.append(change, entries[-1], bytes(SIGNATURE_BYTES)))
    ran = run("budget", "show", "--profile", booked.profile)
    assert ran.code == 0
    assert "limit raised 1 time, 2 at first" in ran.out
    assert said in ran.out


def test_show_labels_the_running_figure_and_names_the_guarantee(
    booked: Coordinator, run: Run
) -> None:
    """The highest limit that was ever in force, at delta, is the guarantee."""
    ran = run("budget", "show", "--profile", booked.profile)
    assert ran.code == 0
    assert "RUNNING EPSILON" in ran.out
    assert "The GUARANTEE is the highest limit that was ever in force" in ran.out
    account = run("budget", "show", "--json", "--profile", booked.profile).json["accounts"][0]
    assert (account["account"], account["epsilon_limit"]) == ("a/patients", 2.0)


def test_show_puts_what_is_booked_beside_what_it_is_worth(booked: Coordinator, run: Run) -> None:
    """Booked, naive sum and both ratios, in the table and as JSON; the conversion cost of rdp."""
    account = booked.state.accounts[0]
    account.filter, account.rdp_order, account.epsilon_start = "rdp", 4, 3.08786
    account.epsilon_limit = account.epsilon_limit_highest = 10.0
    account.epsilon_booked, account.epsilon_naive = 3.2, 1.6
    account.efficiency, account.booked_to_naive = 0.125, 2.0
    ran = run("budget", "show", "--profile", booked.profile)
    header, row = ran.out.splitlines()[:2]
    for name, value in (
        ("FILTER", "rdp order 4, starts at 3.0879"),
        ("BOOKED", "3.2"),
        ("NAIVE SUM", "1.6"),
        ("EFFICIENCY", "0.125"),
        ("OF NAIVE", "2.000"),
    ):
        assert row[header.index(name) :].startswith(value)
    found = run("budget", "show", "--json", "--profile", booked.profile).json["accounts"][0]
    assert (found["epsilon_booked"], found["epsilon_naive"]) == (3.2, 1.6)
    assert (found["efficiency"], found["booked_to_naive"]) == (0.125, 2.0)
    assert found["epsilon_start"] == 3.08786


def test_show_reads_the_figures_from_a_stopped_coordinators_database(
    run: Run, tmp_path: Path
) -> None:
    """One posted release: gdp books exactly what it is worth, and the filter admits no more."""
    unsigned = [replace(one, node_signature=b"") for one in chain(Ed25519PrivateKey.generate())]
    folder = _installed(run, tmp_path / "i", unsigned[:2])
    (account,) = run("budget", "show", "--json", "--dir", folder).json["accounts"]
    budget = make_filter("gdp", 0, 2.0, 1e-5)
    assert account["epsilon_booked"] == budget.epsilon_of(account["posted_units"])
    assert account["epsilon_spent"] == pytest.approx(account["epsilon_booked"], rel=1e-3)
    assert 0.999 <= account["efficiency"] <= 1 + 1e-6
    assert account["booked_to_naive"] == pytest.approx(1.0, rel=1e-6)
    assert account["epsilon_start"] == 0.0


def test_an_account_without_guarantee_says_so(booked: Coordinator, run: Run) -> None:
    """Visibly, and with no epsilon at all."""
    booked.state.accounts[0].guarantee = False
    booked.state.accounts[0].ClearField("epsilon_spent")
    assert "NO GUARANTEE" in run("budget", "show", "--profile", booked.profile).out
    account = run("budget", "show", "--json", "--profile", booked.profile).json["accounts"][0]
    assert account["epsilon_spent"] is None


def test_the_ledger_is_printed_flat_with_its_parameters(booked: Coordinator, run: Run) -> None:
    """Exactly the fields that the ledger's format fixes, so that anyone can recompute epsilon."""
    found = run("budget", "ledger", "--json", "--profile", booked.profile).json
    assert found["entries"] == [ledger.to_json(entry) for entry in booked.state.entries]
    assert found["accounts"][0]["account"] == "a/patients"
    assert "gaussian" in run("budget", "ledger", "--profile", booked.profile).out


def test_a_right_ledger_verifies(booked: Coordinator, run: Run) -> None:
    """And says what was checked."""
    ran = run("budget", "verify", "--profile", booked.profile)
    assert ran.code == 0
    assert "the ledger verifies" in ran.out
    assert "hash chain" in ran.out
    found = run("budget", "verify", "--json", "--profile", booked.profile).json
    assert (found["verified"], found["entries"], found["problems"]) == (True, 4, [])


def test_an_export_verifies_without_a_coordinator(
    booked: Coordinator, run: Run, tmp_path: Path
) -> None:
    """`verify FILE` needs nothing but the file."""
    exported = run("budget", "ledger", "--json", "--profile", booked.profile).out
    (tmp_path / "ledger.json").write_text(exported)
    assert run("budget", "verify", "ledger.json").code == 0


@pytest.mark.parametrize(
    ("account", "data_set", "kind", "named"),
    [
        ("a/others", "heart-disease", "post", True),
        ("a/others", "heart-disease", "void", False),
        ("a/others", "lungs", "post", False),
        ("b/others", "heart-disease", "post", False),
    ],
)
def test_a_data_set_that_has_paid_from_two_accounts_is_named(
    booked: Coordinator, run: Run, account: str, data_set: str, kind: ledger.Kind, named: bool
) -> None:
    """A note and no fault: only the hospital knows whether they are the same patients."""
    key, budget = Ed25519PrivateKey.generate(), make_filter("gdp", 0, 2.0, 1e-5)
    node = account.partition("/")[0]
    if node == "a":
        booked.state.entries = chain(key)
        booked.state.accounts[0].head_hash = booked.state.entries[-1].hash
        booked.state.accounts[0].ledger_public_key = key.public_key().public_bytes_raw()
    more: list[ledger.Entry] = []
    for each in ("reserve", kind):
        one = replace(
            statement(each, "t9"),  # type: ignore[arg-type]
            node=node,
            account=account,
            dataset=data_set,
        )
        more.append(ledger.append(one, more[-1] if more else None, ledger.sign(key, one)))
    posts = [more[0].statement.release] if kind == "post" else []  # type: ignore[union-attr]
    figures = figures_of(posts, budget)
    assert figures is not None
    other = BudgetAccount()
    other.CopyFrom(booked.state.accounts[0])
    other.account, other.node, other.entries, other.head_hash = account, node, 2, more[-1].hash
    other.ledger_public_key = key.public_key().public_bytes_raw()
    other.data_sets[:] = [data_set]
    other.posted_units = sum(budget.cost_units(one) for one in posts)
    for name in ("spent", "booked", "naive"):
        value = getattr(figures, "running" if name == "spent" else name)
        setattr(other, f"epsilon_{name}", value)
    for name in ("efficiency", "booked_to_naive"):
        other.ClearField(name)  # type: ignore[arg-type]
        if (value := getattr(figures, name)) is not None:
            setattr(other, name, value)
    booked.state.accounts.append(other)
    booked.state.entries = [*booked.state.entries, *more]
    ran = run("budget", "verify", "--profile", booked.profile)
    assert (ran.code, "the ledger verifies" in ran.out) == (0, True), ran.out
    found = run("budget", "verify", "--json", "--profile", booked.profile).json["paid_twice"]
    said = "NOTE: node a's data set heart-disease has paid from 2 accounts"
    assert (said in ran.out, len(found)) == (named, int(named))
    if named:
        assert f"{account} (first in entry 2), a/patients (first in entry 2)" in ran.out
        assert (found[0]["node"], found[0]["data_set"]) == ("a", "heart-disease")
        assert found[0]["posts"] == [[account, 2], ["a/patients", 2]]


def _tampered(content: Any, how: str) -> None:
    if how == "noise":
        content["entries"][1]["noise_multiplier"] = 40.0
    elif how == "cut short":
        del content["entries"][2:]
    elif how == "hole":
        del content["entries"][1]
    elif how == "signature":
        content["entries"][1]["node_signature"] = content["entries"][0]["node_signature"]
    elif how == "limit":
        content["accounts"][0]["epsilon_limit_highest"] = 0.01
    elif how == "head":
        content["accounts"][0]["head_hash"] = "0" * 64
    elif how in ("kind", "steps", "signature case"):
        key, value = {
            "kind": ("kind", "foo"),
            "steps": ("steps", "abc"),
            "signature case": ("node_signature", content["entries"][1]["node_signature"].upper()),
        }[how]
        content["entries"][1][key] = value
    elif how == "no head":
        del content["accounts"][0]["head_hash"]
    elif how == "no node":
        del content["accounts"][0]["node"]
    elif how.startswith("huge "):
        content["accounts"][0][how.removeprefix("huge ")] = 10**400
    elif how == "units":
        content["accounts"][0]["posted_units"] = 1
    elif how == "guarantee":
        content["accounts"][0]["guarantee"] = False
    elif how == "twice":
        content["accounts"].append(dict(content["accounts"][0]))
    elif how == "stranger":
        content["accounts"] = []


@pytest.mark.parametrize(
    ("how", "seq"),
    [
        ("noise", 2),
        ("cut short", 3),
        ("hole", 2),
        ("signature", 2),
        ("limit", 1),
        ("head", 4),
        ("stranger", 1),
        ("kind", 2),
        ("steps", 2),
        ("signature case", 2),
        ("no head", 0),
        ("no node", 0),
        ("huge epsilon_limit_highest", 0),
        ("huge epsilon_limit", 0),
        ("huge delta", 0),
        ("huge epsilon_spent", 0),
        ("units", 4),
        ("guarantee", 4),
        ("twice", 0),
    ],
)
def test_a_tampered_ledger_does_not_verify(
    booked: Coordinator, run: Run, tmp_path: Path, how: str, seq: int
) -> None:
    """Exit code 1, and the first bad entry by its number."""
    content = run("budget", "ledger", "--json", "--profile", booked.profile).json
    _tampered(content, how)
    (tmp_path / "ledger.json").write_text(json.dumps(content))
    ran = run("budget", "verify", "ledger.json", "--json")
    assert ran.code == 1
    assert ran.json["verified"] is False
    assert ran.json["problems"][0]["seq"] == seq
    said = run("budget", "verify", "ledger.json").out
    assert "BAD: " in said
    assert f"entry {seq}:" in said if seq else "entry 0" not in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "foo"),
        ("noise_multiplier", None),
        ("steps", "abc"),
        ("sample_rate", float("inf")),
        ("node_signature", "AB" * 64),
        ("node_signature", "0"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(
    booked: Coordinator, run: Run, tmp_path: Path, field: str, value: object
) -> None:
    """A finding of the check with exit code 1, not an error inside."""
    content = run("budget", "ledger", "--json", "--profile", booked.profile).json
    content["entries"][1][field] = value
    (tmp_path / "ledger.json").write_text(json.dumps(content))
    ran = run("budget", "verify", "ledger.json")
    assert (ran.code, ran.err) == (1, "")
    assert "BAD: account a/patients, entry 2" in ran.out


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("entries", None),
        ("head_hash", None),
        ("entries", "x"),
        ("entries", 3),
        ("posted_units", 1),
        ("guarantee", False),
        ("epsilon_limit", None),
        ("epsilon_limit", "2"),
        ("epsilon_limit", 2.5),
        ("epsilon_limit", float("nan")),
    ],
)
def test_an_account_that_says_otherwise_than_its_entries_is_bad(
    booked: Coordinator, run: Run, tmp_path: Path, field: str, value: object
) -> None:
    """Each figure of the account is compared; None takes the field away."""
    content = run("budget", "ledger", "--json", "--profile", booked.profile).json
    content["accounts"][0][field] = value
    if value is None:
        del content["accounts"][0][field]
    (tmp_path / "ledger.json").write_text(json.dumps(content))
    ran = run("budget", "verify", "ledger.json")
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.startswith("BAD: ") or "\nBAD: account a/patients" in ran.out
    assert "entry 0" not in ran.out


def test_what_a_running_job_books_meanwhile_is_no_fault(
    booked: Coordinator, client: Client
) -> None:
    """Entries that came after the accounts were read belong to the next look."""
    entries, (account,) = booked.state.entries, booked.state.accounts
    before = BudgetAccount()
    before.CopyFrom(account)
    before.entries, before.posted_units, before.head_hash = 1, 0, entries[0].hash
    before.pending_units, before.epsilon_spent = account.posted_units, 0.0
    before.epsilon_booked = before.epsilon_naive = 0.0
    before.ClearField("efficiency")
    before.ClearField("booked_to_naive")
    answers = iter([[before], [account]])
    client.accounts = lambda _="": next(answers)  # type: ignore[method-assign]
    found = from_client(client, "")
    assert [entry.seq for entry in found.entries] == [1]
    assert check(found).problems == []


def test_more_entries_than_the_account_says_are_a_fault(booked: Coordinator, run: Run) -> None:
    """When nothing was booked meanwhile."""
    booked.state.accounts[0].entries = 3
    ran = run("budget", "verify", "--profile", booked.profile)
    assert ran.code == 1
    assert "the account says 3 entries, 4 are here" in ran.out


def _installed(run: Run, folder: Path, entries: list[ledger.Entry]) -> Path:
    """An installation whose database holds one account with these entries."""
    assert run("coordinator", "init", "--dir", folder, "--json").code == 0
    budget = make_filter("gdp", 0, 2.0, 1e-5)
    posted = budget.cost_units(statement("post", "t1").release)
    with closing(sqlite3.connect(folder / "coordinator.db")) as database, database:
        database.execute(
            "INSERT INTO nodes (name, node_class, status, ledger_public_key, created_at, "
            "last_seen_at, hello) VALUES ('a', 'edge', 'enrolled', x'', 0, 0, x'')"
        )
        database.execute(
            "INSERT INTO accounts (account, node, filter, rdp_order, epsilon_limit, "
            "epsilon_limit_highest, delta, posted_units, guarantee, entries, head_hash) "
            "VALUES ('a/patients', 'a', 'gdp', 0, 2.0, 2.0, 1e-5, ?, 1, ?, ?)",
            (posted, len(entries), entries[-1].hash),
        )
        for entry in entries:
            row = {**ledger.to_json(entry), "node_signature": entry.node_signature}
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            database.execute(
                f"INSERT INTO entries ({names}) VALUES ({marks})",  # noqa: S608
                tuple(row.values()),
            )
    return folder


@pytest.mark.parametrize(
    "change", ["kind = 'foo'", "steps = 'abc'", "sample_rate = 9e999", "node_signature = 'x'"]
)
def test_a_row_of_the_database_that_cannot_be_read_is_named(
    run: Run, tmp_path: Path, change: str
) -> None:
    """By verify as a finding, by the others as an error; never as something wrong inside."""
    unsigned = [replace(one, node_signature=b"") for one in chain(Ed25519PrivateKey.generate())]
    folder = _installed(run, tmp_path / "i", unsigned[:2])
    assert run("budget", "verify", "--dir", folder).code == 0
    with closing(sqlite3.connect(folder / "coordinator.db")) as database, database:
        drop_guards(database)
        database.execute(f"UPDATE entries SET {change} WHERE seq = 2")  # noqa: S608
    ran = run("budget", "verify", "--dir", folder)
    assert (ran.code, ran.err) == (1, "")
    assert "BAD: account a/patients, entry 2" in ran.out
    for command in ("show", "ledger"):
        ran = run("budget", command, "--json", "--dir", folder)
        assert (ran.code, ran.error["reason"]) == (1, "LEDGER_DAMAGED")


def test_without_accounts_what_makes_one_is_said(run: Run, tmp_path: Path) -> None:
    """In place of a table of no rows and what its columns mean."""
    assert run("coordinator", "init", "--dir", tmp_path / "i").code == 0
    ran = run("budget", "show", "--dir", tmp_path / "i")
    assert ran.code == 0
    assert "there is no account yet: each comes with the first connection" in ran.out
    assert "GUARANTEE" not in ran.out
    assert run("budget", "show", "--json", "--dir", tmp_path / "i").json == {"accounts": []}


def test_a_database_that_is_missing_is_not_made_and_a_damaged_one_is_named(
    run: Run, tmp_path: Path
) -> None:
    """Exit codes 3 and 2."""
    folder = tmp_path / "i"
    assert run("coordinator", "init", "--dir", folder, "--json").code == 0
    database = folder / "coordinator.db"
    for leftover in folder.glob("coordinator.db*"):
        leftover.unlink()
    ran = run("budget", "show", "--json", "--dir", folder)
    assert (ran.code, ran.error["reason"]) == (3, "DATABASE_MISSING")
    assert not database.exists()
    database.write_bytes(b"no database" * 1000)
    ran = run("budget", "show", "--json", "--dir", folder)
    assert (ran.code, ran.error["reason"]) == (2, "DATABASE_UNUSABLE")


def test_what_postgresql_refuses_is_no_damage(
    run: Run, tmp_path: Path, postgresql_server: PostgreSql
) -> None:
    """Nobody puts a backup over a sound database because a table was locked away."""
    folder, url = tmp_path / "i", postgresql_server.new_database()
    assert run("coordinator", "init", "--dir", folder, "--database-url", url, "--json").code == 0
    database = make_url(url).database
    postgresql_server.superuser("ALTER TABLE accounts OWNER TO postgres", database or "")
    ran = run("budget", "show", "--json", "--dir", folder)
    assert (ran.code, ran.error["reason"]) == (2, "DATABASE_REFUSED")
    assert "restore" not in ran.error["message"]
    assert "coordinator check" in ran.error["message"]


def test_a_file_is_verified_alone(run: Run, tmp_path: Path) -> None:
    """A selection beside it is wrong usage."""
    (tmp_path / "ledger.json").write_text('{"entries": [], "accounts": []}')
    assert run("budget", "verify", "ledger.json").code == 3
    for option in ("--dataset", "--dir", "--profile"):
        assert run("budget", "verify", "ledger.json", option, "x").code == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"entries": [3], "accounts": []}', '{"entries": 1, "accounts": []}']
)
def test_a_file_that_is_no_export_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    """Usage error, not a crash."""
    (tmp_path / "ledger.json").write_text(text)
    assert run("budget", "verify", "ledger.json").code == 2
    assert run("budget", "verify", "absent.json").code == 3


def test_an_unsigned_post_is_counted_and_no_fault(booked: Coordinator, run: Run) -> None:
    """A charge needs no proof."""
    entries = booked.state.entries
    entries[1] = replace(entries[1], node_signature=b"")
    assert wire(entries[1]).node_signature == b""
    found = run("budget", "verify", "--json", "--profile", booked.profile).json
    assert (found["verified"], found["unattested"]) == (True, 1)


def test_an_installations_ledger_is_read_while_its_server_is_stopped(
    run: Run, tmp_path: Path
) -> None:
    """With --dir the database itself is read, so no server is needed."""
    folder = tmp_path / "installation"
    assert run("coordinator", "init", "--dir", folder, "--json").code == 0
    for command, name in (("show", "accounts"), ("ledger", "entries")):
        assert run("budget", command, "--json", "--dir", folder).json[name] == []
    # An empty ledger proves nothing: that is no success.
    assert run("budget", "verify", "--dir", folder).code == 3
    assert run("budget", "show", "--dataset", "none", "--dir", folder).code == 3


@pytest.mark.parametrize(
    ("per_10000", "said"),
    [(5000, ""), (7900, ""), (8000, "80 % spent or more"), (9995, "spent: retire it")],
)
def test_an_account_that_is_nearly_spent_says_so(
    booked: Coordinator, run: Run, per_10000: int, said: str
) -> None:
    """From 80 % on, and when hardly anything is left; what is reserved counts."""
    account = booked.state.accounts[0]
    account.posted_units = -(-account.limit_units * per_10000 // 10000) - 1000
    account.pending_units = 1000
    out = run("budget", "show", "--profile", booked.profile).out
    assert ("spent" in out.split("a/patients", 1)[1].splitlines()[0]) == bool(said)
    assert said in out


@pytest.mark.parametrize(
    ("running", "said"),
    [(1.59, ""), (1.6, "80 % spent or more"), (1.9981, "spent: retire it"), (None, "NO GUARANTEE")],
)
def test_the_running_epsilon_warns_as_the_units_do(
    booked: Coordinator, run: Run, running: float | None, said: str
) -> None:
    """Epsilon is what people look at, and its share differs from the units'."""
    account = booked.state.accounts[0]
    account.ClearField("epsilon_spent")
    account.guarantee = running is not None
    if running is not None:
        account.epsilon_spent = running
    row = run("budget", "show", "--profile", booked.profile).out.splitlines()[1]
    assert ("spent" in row, said in row) == ("spent" in said, True)


def test_what_is_booked_warns_where_the_running_epsilon_does_not(
    booked: Coordinator, run: Run
) -> None:
    """In rdp the filter books more than the running epsilon, and holds that against the limit."""
    account = booked.state.accounts[0]
    account.epsilon_spent, account.epsilon_booked = 1.45, 1.6
    row = run("budget", "show", "--profile", booked.profile).out.splitlines()[1]
    assert "80 % spent or more" in row


@pytest.mark.parametrize(
    ("per_10000", "said"), [(5000, ""), (7000, "80 % spent or more"), (9995, "spent")]
)
def test_a_limit_within_an_account_that_is_nearly_spent_says_so(
    booked: Coordinator, run: Run, per_10000: int, said: str
) -> None:
    """By units or by epsilon, of which gdp's is at 80 % before the units are."""
    limit = make_filter("gdp", 0, 1.0, 1e-5).limit_units
    booked.state.accounts[0].shares.add(
        kind="purpose",
        name="training",
        epsilon_limit=1.0,
        limit_units=limit,
        used_units=limit * per_10000 // 10000,
    )
    out = run("budget", "show", "--profile", booked.profile).out
    (row,) = [one for one in out.splitlines() if "purpose training" in one]
    left, _, stage = row.partition("%")
    assert (left.split()[-1], stage.strip()) == (str((10000 - per_10000) // 100), said)


def test_a_demo_that_was_not_kept_says_how_to_keep_one(run: Run, tmp_path: Path) -> None:
    """Its folder holds results alone; it is no installation that somebody forgot to make."""
    (tmp_path / "result.json").write_text("{}")
    ran = run("budget", "show", "--dir", tmp_path)
    assert ran.code == 3
    assert "run without --keep" in ran.err
    assert "coordinator init" not in ran.err


def test_a_lowered_limit_is_no_guarantee(booked: Coordinator, run: Run) -> None:
    """Limit 2 lowered to 0.1 with 0.4 spent: the guarantee stays 2, and the row warns."""
    account = booked.state.accounts[0]
    account.epsilon_limit = 0.1
    account.limit_units = make_filter("gdp", 0, 0.1, 1e-5).limit_units
    header, row = run("budget", "show", "--profile", booked.profile).out.splitlines()[:2]
    assert row[header.index("GUARANTEE") :].startswith("2 ")
    assert "LIMIT BELOW WHAT IS SPENT" in row
    (found,) = run("budget", "show", "--json", "--profile", booked.profile).json["accounts"]
    assert (found["epsilon_limit"], found["epsilon_guarantee"]) == (0.1, 2.0)
    exported = run("budget", "ledger", "--json", "--profile", booked.profile).json["accounts"][0]
    assert "epsilon_guarantee" not in exported


@pytest.mark.parametrize(
    ("changes", "raised", "guarantee"),
    [
        ({}, [], 10.0),
        ({}, [20.0, 15.0], 20.0),
        ({"epsilon_limit": 25.0}, [20.0, 25.0], 25.0),
        ({"guarantee": False}, [20.0], None),
        ({"epsilon_limit_highest": None}, [], 3.0),
    ],
)
def test_the_guarantee_is_the_highest_limit_that_ever_was(
    changes: dict[str, Any], raised: list[float], guarantee: float | None
) -> None:
    """Of the first, the raised and the one in force; a coordinator of 0.1.0 tells the last only."""
    account = {"epsilon_limit": 3.0, "epsilon_limit_highest": 10.0, "guarantee": True, **changes}
    assert guarantee_of(account, raised) == guarantee


def test_an_export_whose_entries_come_first_verifies_too(
    booked: Coordinator, run: Run, tmp_path: Path
) -> None:
    """As 0.1.0 wrote it, without witnesses, and in any order that another tool leaves."""
    content = run("budget", "ledger", "--json", "--profile", booked.profile).json
    assert list(content) == ["accounts", "witnesses", "entries"]
    for names in (["entries", "accounts"], ["witnesses", "entries", "accounts"], sorted(content)):
        (tmp_path / "ledger.json").write_text(json.dumps({name: content[name] for name in names}))
        assert run("budget", "verify", "ledger.json", "--json").json["entries"] == 4
        bad = json.loads(json.dumps({name: content[name] for name in names}))
        bad["entries"][2]["steps"] = 4
        (tmp_path / "ledger.json").write_text(json.dumps(bad))
        ran = run("budget", "verify", "ledger.json", "--json")
        assert (ran.code, ran.json["problems"][0]["seq"]) == (1, 3)


@pytest.mark.parametrize("end", ["", "]", "]} x", ', "accounts": []}', '], "accounts": []}'])
def test_an_export_that_is_cut_or_goes_on_is_refused(
    booked: Coordinator, run: Run, tmp_path: Path, end: str
) -> None:
    """Also where the accounts and all entries were already read: a second list of accounts, which
    another reader would take, is not passed over."""
    exported = run("budget", "ledger", "--json", "--profile", booked.profile).out
    (tmp_path / "ledger.json").write_text(exported.rstrip().removesuffix("}").rstrip()[:-1] + end)
    assert run("budget", "verify", "ledger.json").code == 2


def _exported(count: int, file: Path) -> None:
    """An export of one account with `count` entries, none of them signed."""
    budget = make_filter("gdp", 0, 1000.0, 1e-5)
    entries: list[ledger.Entry] = []
    for number in range(count // 2):
        for kind in ("reserve", "post"):
            one = statement(kind, f"t{number}")  # type: ignore[arg-type]
            entries.append(ledger.append(one, entries[-1] if entries else None))
    account = {
        "account": "a/patients",
        "node": "a",
        "filter": "gdp",
        "rdp_order": 0,
        "epsilon_limit": 1000.0,
        "epsilon_limit_highest": 1000.0,
        "delta": 1e-5,
        "entries": count,
        "ledger_public_key": "",
        "guarantee": True,
        "posted_units": count // 2 * budget.cost_units(entries[0].statement.release),
        "head_hash": entries[-1].hash,
    }
    made = Ledger(entries, count, [account], {}, {})
    file.write_text(json.dumps(made.export(), indent=2))


def test_a_large_export_is_not_held_in_memory(tmp_path: Path) -> None:
    """Four times as many entries take only what an attempt's id needs, and not the entry."""
    peaks = []
    for count in (10_000, 40_000):
        file = tmp_path / "ledger.json"
        _exported(count, file)
        told: list[tuple[int, float]] = []
        tracemalloc.start()
        try:
            found = from_file(file, lambda *progress, told=told: told.append(progress))  # type: ignore[misc]
            found = replace(found, entries_about=1)  # in this process, which is the one that reads
            assert check(found).problems == []
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert [number for number, _ in told] == [*range(2000, count + 1, 2000), count]
        assert told[0][1] < told[-1][1] == 1.0
    per_entry = (peaks[1] - peaks[0]) / 30_000
    assert per_entry < 200 < file.stat().st_size / 40_000 / 2
