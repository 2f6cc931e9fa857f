"""A node that goes back in time, leaves, or moves to another coordinator: its ledger decides."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.state.state import State
from tests.integration.federation import (
    Federation,
    cli_json,
    job_file,
    null_job,
    run_cli,
    wait_for,
)

PAIR = {"min_participants": 2, "rounds": 2}


def serving(folder: Path) -> Iterator[Federation]:
    """A coordinator that is content with two hospitals."""
    folder.mkdir()
    federation = Federation(folder)
    federation.configure(min_participants=2)
    federation.start("coordinator")
    yield federation
    federation.stop()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Federation]:
    """The one."""
    yield from serving(tmp_path / "one")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Federation]:
    """The other."""
    yield from serving(tmp_path / "other")


def of_two(**changes: Any) -> bytes:
    """A job that two hospitals are enough for, and that needs both."""
    return job_file(federation=PAIR, **changes)


def cheap(rounds: int) -> bytes:
    """Likewise, without data; entries of the ledger all the same."""
    return null_job(rounds, min_participants=2)


def status(folder: Path) -> Any:
    """`feddp agent status`, whatever its exit code."""
    return json.loads(run_cli("agent", "status", "--dir", str(folder), "--json")[1])


def countersigned(federation: Federation, account: str, seq: int) -> bool:
    """Whether the coordinator holds the node's signature over this entry or a later one."""
    with federation.database() as database:
        query = "SELECT coalesce(max(seq), 0) FROM countersignatures WHERE account = ?"
        return int(database.execute(query, (account,)).fetchone()[0]) >= seq


def start_alpha(federation: Federation, **policy: Any) -> Path:
    """A node that runs, beside another one that goes on; its folder."""
    for name in ("alpha", "beta"):
        federation.add_node(name, **(policy if name == "alpha" else {}))
        federation.start(name)
    federation.wait_for_nodes("alpha", "beta")
    return federation.agent("alpha")


def stop_agent(federation: Federation) -> None:
    """As a power cut does."""
    federation.kill("alpha")


def snapshot(folder: Path, to: Path) -> None:
    """The ledger's files, as a machine's snapshot holds them."""
    to.mkdir()
    for one in folder.glob("state.db*"):
        shutil.copy(one, to / one.name)


def put_back(saved: Path, folder: Path) -> None:
    """What restoring the snapshot does."""
    for one in folder.glob("state.db*"):
        one.unlink()
    for one in saved.iterdir():
        shutil.copy(one, folder / one.name)


def test_a_ledger_that_went_back_in_time_trains_nothing_until_it_was_imported(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Found out by what the node has signed. After the import it knows again what was booked."""
    folder = start_alpha(coordinator)
    first = coordinator.wait_for_end(coordinator.submit(cheap(2)))
    assert first.status == "completed", first
    wait_for("its head is countersigned", lambda: countersigned(coordinator, "alpha/patients", 4))
    stop_agent(coordinator)
    saved = tmp_path / "snapshot"
    snapshot(folder, saved)
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    assert coordinator.wait_for_end(coordinator.submit(cheap(2))).status == "completed"
    wait_for("its head is countersigned", lambda: countersigned(coordinator, "alpha/patients", 8))
    booked = status(folder)["ledger"]["entries"]
    stop_agent(coordinator)
    put_back(saved, folder)
    assert status(folder)["ledger"]["entries"] < booked

    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    wait_for("it is found out", lambda: "ledger_rolled_back" in coordinator.log("alpha"))
    # An order that came before the coordinator heard of it would be charged.
    wait_for("it is told", lambda: "suspensions_changed" in coordinator.log("alpha"))
    third = coordinator.submit(cheap(2))

    def refused() -> bool:
        job = coordinator.job(third)
        absent = {one.reason for one in job.waiting}
        taken = {p.reason for r in job.rounds for p in r.participation}
        return "LEDGER_ROLLED_BACK" in absent | taken

    wait_for("the job is told", refused)
    found = status(folder)
    assert "this node has signed" in found["ledger"]["rolled_back"]
    assert found["in_order"] is False
    assert len([e for e in coordinator.entries("post") if e.statement.node == "alpha"]) == 4

    stop_agent(coordinator)
    copy = tmp_path / "own.db"
    cli_json("agent", "ledger", "export", str(copy), "--dir", str(folder))
    cli_json("agent", "ledger", "import", str(copy), "--dir", str(folder))
    coordinator.start("alpha")
    assert coordinator.wait_for_end(third).status == "completed"
    assert status(folder)["ledger"]["entries"] > booked
    assert status(folder)["ledger"]["disputes"] == []


def test_a_ledger_that_was_not_rolled_back_is_never_said_to_be(coordinator: Federation) -> None:
    """Killed in mid-job and started again, some times."""
    start_alpha(coordinator)
    job = coordinator.submit(cheap(6))
    for entries in (4, 10, 16):
        wait_for("it has done a round", lambda n=entries: len(coordinator.entries()) >= n)  # type: ignore[misc]
        coordinator.kill("alpha")
        coordinator.start("alpha")
    assert coordinator.wait_for_end(job).status == "completed"
    assert "ledger_rolled_back" not in coordinator.log("alpha")


def token(federation: Federation, name: str) -> str:
    """A fresh one."""
    with federation.client() as client:
        return client.create_token(name, "edge", 3600).token


def test_a_node_moves_and_the_other_coordinator_plans_with_what_is_left(
    coordinator: Federation, other: Federation
) -> None:
    """Epsilon 2 of 3 was spent with the first: the second may plan with the rest and no more, by
    what the node says when it greets; and the node's own ledger counts both."""
    folder = start_alpha(coordinator, epsilon_limit=3.0)
    config = yaml.safe_load((folder / "agent.yaml").read_text())
    (folder / "agent.yaml").write_text(yaml.safe_dump({**config, "worker": {"nice": 7}}))
    assert coordinator.wait_for_end(coordinator.submit(of_two())).status == "completed"
    wait_for("its head is countersigned", lambda: countersigned(coordinator, "alpha/patients", 4))
    fresh = token(other, "alpha")
    running = run_cli("agent", "move", fresh, "--dir", str(folder))
    assert (running[0], "stop it first" in running[2]) == (2, True)
    stop_agent(coordinator)
    key, before = (folder / "identity/ledger.key").read_bytes(), status(folder)["accounts"][0]

    wrong = run_cli("agent", "move", token(other, "zeta"), "--dir", str(folder))
    assert "ask the other coordinator's operator for a token for alpha" in wrong[2]
    same = run_cli("agent", "move", token(coordinator, "gamma"), "--dir", str(folder))
    assert "nothing to move" in same[2]
    assert load_identity(folder / "identity").spiffe_id.trust_domain == "test.example"

    moved = cli_json("agent", "move", fresh, "--dir", str(folder))
    assert moved["coordinator"] == other.address
    assert (folder / "identity/ledger.key").read_bytes() == key
    assert yaml.safe_load((folder / "agent.yaml").read_text())["worker"] == {"nice": 7}
    assert not (folder / "former").exists()
    assert list(folder.glob("heads-*.json"))

    other.add_node("beta")
    other.start("beta")
    # Its steward pins the engineers of the other federation, as of any.
    theirs = yaml.safe_load((other.agent("beta") / "policy.yaml").read_text())["who_may_ask"]
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    (folder / "policy.yaml").write_text(yaml.safe_dump({**policy, "who_may_ask": theirs}))
    other.agent("alpha").symlink_to(folder)
    other.start("alpha")
    other.wait_for_nodes("alpha", "beta")
    wait_for("it notices", lambda: "coordinator_changed" in other.log("alpha"))
    with other.client() as client:
        account = next(one for one in client.accounts() if one.account == "alpha/patients")
    (share,) = account.shares
    assert (share.kind, share.used_units) == ("account", before["posted_units"])
    file = other.folder / "job.yaml"
    file.write_bytes(of_two(privacy={"target_epsilon": 2.5}))
    quote = ("job", "quote", str(file), "--dir", str(other.installation.folder))
    # In its first seconds there it reads what it had signed, and takes no order.
    wait_for("it takes orders", lambda: "LEDGER_CATCHING_UP" not in run_cli(*quote)[1])
    code, quoted, _ = run_cli(*quote)
    assert code == 4
    assert "1 of 2 rounds fit its limit (account patients: 3)" in quoted
    small = other.wait_for_end(other.submit(of_two(privacy={"target_epsilon": 1.0})))
    assert small.status == "completed"
    after = status(folder)
    assert after["accounts"][0]["posted_units"] > before["posted_units"]
    assert (after["ledger"]["disputes"], after["ledger"]["verified"]) == ([], True)
    wait_for("the other's chain is followed", lambda: countersigned(other, "alpha/patients", 4))
    log = other.log("alpha")
    assert "ledger_disputed" not in log
    assert "ledger_rolled_back" not in log


def test_leaving_shows_first_and_keeps_the_ledger(coordinator: Federation) -> None:
    """And a node that comes back to the same coordinator goes on with it."""
    folder = start_alpha(coordinator)
    assert coordinator.wait_for_end(coordinator.submit(cheap(1))).status == "completed"
    stop_agent(coordinator)

    def files() -> set[str]:
        """But for SQLite's own, which come and go with whoever reads."""
        found = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
        return found - {"state.db-wal", "state.db-shm"}

    every = files()
    shown = cli_json("agent", "leave", "--dir", str(folder))
    assert shown["done"] is False
    assert files() == every
    wrong = run_cli("agent", "leave", "--dir", str(folder), "--yes", "--forget-ledger", "beta")
    assert (wrong[0], "this is node alpha" in wrong[2]) == (2, True)

    done = cli_json("agent", "leave", "--dir", str(folder), "--yes")
    assert done["removed"] == shown["removed"]
    for name in ("agent.yaml", "identity/node.key", "identity/node.crt", "spool"):
        assert not (folder / name).exists(), name
    for name in ("state.db", "identity/ledger.key", "policy.yaml", "datasets.yaml"):
        assert (folder / name).exists(), name
    assert run_cli("agent", "run", "--dir", str(folder))[0] == 3


def test_what_was_under_way_is_settled_when_the_node_leaves(
    coordinator: Federation,
) -> None:
    """Reserved and never opened: void, which the node has signed; opened: posted whole."""
    folder = start_alpha(coordinator)
    stop_agent(coordinator)
    from tests.integration.test_witness import FILTER
    from tests.node_agent.samples import order

    identity = load_identity(Folder(folder).identity)
    state = State(folder / "state.db", "alpha", identity.ledger_key)
    for attempt_id in ("reserved", "opened"):
        state.reserve(order(attempt_id=attempt_id, job_id=attempt_id), FILTER)
    state.open("opened", 1.0, 1.0)
    state.close()
    assert cli_json("agent", "leave", "--dir", str(folder))["unfinished_attempts"] == 2
    cli_json("agent", "leave", "--dir", str(folder), "--yes")
    state = State(folder / "state.db", "alpha", identity.ledger_key)
    kinds = [(one.statement.attempt_id, one.statement.kind) for one in state.ledger.entries()]  # type: ignore[union-attr]
    assert state.attempts.live() == []
    state.close()
    assert sorted(kinds) == [
        ("opened", "post"),
        ("opened", "reserve"),
        ("reserved", "reserve"),
        ("reserved", "void"),
    ]
