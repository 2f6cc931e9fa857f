"""To another coordinator and back: who must be asked, and what is an old copy of the ledger."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.enrolment import spoken
from tests.integration.federation import Federation, cli_json, run_cli, wait_for
from tests.integration.test_moving import (
    cheap,
    countersigned,
    put_back,
    serving,
    snapshot,
    start_alpha,
    status,
    stop_agent,
)

ACCOUNT = "alpha/patients"


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Federation]:
    """The one."""
    yield from serving(tmp_path / "one")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Federation]:
    """The other."""
    yield from serving(tmp_path / "other")


def root(federation: Federation) -> str:
    return str(federation.installation.folder)


def token(federation: Federation, *options: str) -> Any:
    """One for alpha, as the operator makes it."""
    return cli_json("node", "token", "alpha", *options, "--dir", root(federation))


def approve(federation: Federation, *options: str) -> None:
    """The operator lets in the machine that waits."""
    done = run_cli("node", "approve", "alpha", *options, "--dir", root(federation))
    assert done[0] == 0, done
    assert "`feddp agent join` or `move` goes on by itself" in done[1]


def waiting_key(federation: Federation) -> str:
    """Of the machine that waits, as people read it out; empty while none does."""
    with federation.client() as client:
        key = next((one.waiting_key for one in client.nodes() if one.name == "alpha"), "")
    return spoken(key) if key else ""


def work(federation: Federation, entries: int, rounds: int = 2) -> None:
    """A job, after which the account has so many entries that its node has signed."""
    federation.start("alpha")
    federation.wait_for_nodes("alpha", "beta")
    assert federation.wait_for_end(federation.submit(cheap(rounds))).status == "completed"
    wait_for("its head is countersigned", lambda: countersigned(federation, ACCOUNT, entries))


def settle_at(other: Federation, folder: Path) -> None:
    """A hospital beside it there, and a policy that lets that coordinator's engineers ask too."""
    other.add_node("beta")
    other.start("beta")
    theirs = yaml.safe_load((other.agent("beta") / "policy.yaml").read_text())["who_may_ask"]
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    policy["who_may_ask"]["engineers"] += [{**one, "name": "other"} for one in theirs["engineers"]]
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    other.agent("alpha").symlink_to(folder)


@contextlib.contextmanager
def moving(secret: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`feddp agent move`, which waits for a person, and what it says of that."""
    process = subprocess.Popen(
        [sys.executable, "-m", "feddp", "agent", "move", secret, "--dir", str(folder), "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        yield process, json.loads(process.stderr.readline())["waiting"]["message"]
    finally:
        process.kill()
        process.communicate()


def moved(process: subprocess.Popen[str]) -> str:
    """The address of the coordinator that it has moved to, once it has."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return str(json.loads(out)["coordinator"])


def given(folder: Path) -> dict[str, bytes]:
    """What the present coordinator gave, and the keys."""
    parts = [folder / "agent.yaml", *(folder / "identity").iterdir()]
    return {one.name: one.read_bytes() for one in parts if not one.name.startswith("moving-")}


def test_a_move_waits_for_both_approvals_and_goes_on_with_the_key_that_was_read_out(
    coordinator: Federation, other: Federation
) -> None:
    """There by a token with --approval, and back by the steward's word. Until each is given the
    folder is as it was and works where it is, whatever became of the command."""
    folder = start_alpha(coordinator)
    assert coordinator.wait_for_end(coordinator.submit(cheap(2))).status == "completed"
    stop_agent(coordinator)
    before, there = given(folder), token(other, "--approval")
    move = ("agent", "move", there["token"], "--dir", str(folder))
    false = run_cli(*move, "--fingerprint", "ab" * 32)
    assert (false[0], "Nothing was sent" in false[2]) == (3, True), false
    assert waiting_key(other) == ""
    shown = run_cli(*move, "--no-wait")
    assert shown[0] == 1, shown
    assert there["root_fingerprint"] in shown[2]
    key = waiting_key(other)
    assert key in shown[2]
    assert given(folder) == before

    with moving(there["token"], folder) as (process, message):
        assert key in message
        assert given(folder) == before
        process.kill()
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha", "beta")
    assert coordinator.wait_for_end(coordinator.submit(cheap(1))).status == "completed"
    wait_for("its head is countersigned", lambda: countersigned(coordinator, ACCOUNT, 6))
    stop_agent(coordinator)

    with moving(there["token"], folder) as (process, message):
        assert key in message
        approve(other, "--key", key)
        assert moved(process) == other.address
    assert list((folder / "identity").glob("moving-*")) == []
    settle_at(other, folder)
    work(other, 4)

    other.kill("alpha")
    back = token(coordinator, "--rejoin")["token"]
    with moving(back, folder) as (process, message):
        key = waiting_key(coordinator)
        assert key in message
        alone = run_cli("node", "approve", "alpha", "--key", key, "--dir", root(coordinator))
        assert (alone[0] != 0, "--steward" in alone[2]) == (True, True), alone
        approve(coordinator, "--key", key, "--steward", "anna")
        assert moved(process) == coordinator.address
    work(coordinator, 10)
    assert "ledger_rolled_back" not in coordinator.log("alpha")
    assert status(folder)["in_order"], status(folder)


def test_a_project_of_the_same_name_at_the_other_coordinator_is_looked_at(
    coordinator: Federation, other: Federation
) -> None:
    """What the steward had let in was the first one's; here a job waits, and then nothing is
    released before they have looked."""
    folder = start_alpha(coordinator)
    rules = yaml.safe_load((folder / "policy.yaml").read_text())
    rules["work"] = {"approve_first_job": True}
    (folder / "policy.yaml").write_text(yaml.safe_dump(rules))
    place = ("--dir", str(folder))

    def waiting() -> list[str]:
        return [one["job_id"] for one in cli_json("agent", "status", *place)["waiting"]]

    first = coordinator.submit(cheap(1))
    wait_for("it waits", lambda: waiting() == [first])
    cli_json("agent", "approve", first, *place)
    assert coordinator.wait_for_end(first).status == "completed"
    stop_agent(coordinator)
    cli_json("agent", "move", token(other)["token"], *place)
    settle_at(other, folder)
    other.start("alpha")
    other.wait_for_nodes("alpha", "beta")
    second = other.submit(cheap(1))
    wait_for("it waits there, too", lambda: waiting() == [second])
    assert cli_json("agent", "status", *place)["ledger"]["entries"] == 2, "something was released"
    cli_json("agent", "approve", second, *place)
    assert other.wait_for_end(second).status == "completed"


def test_an_old_copy_is_told_from_coming_back(
    coordinator: Federation, other: Federation, tmp_path: Path
) -> None:
    """A node that was elsewhere and comes back lacks nothing; a copy that was made before it left,
    or on its way back, does, and is found when it is put back later."""
    folder = start_alpha(coordinator)
    assert coordinator.wait_for_end(coordinator.submit(cheap(2))).status == "completed"
    wait_for("its head is countersigned", lambda: countersigned(coordinator, ACCOUNT, 4))
    stop_agent(coordinator)
    copies = [tmp_path / name for name in ("before", "on-its-way", "newest")]
    snapshot(folder, copies[0])
    cli_json("agent", "move", token(other)["token"], "--dir", str(folder))
    settle_at(other, folder)
    work(other, 2, rounds=1)  # fewer than with the first, which then seems to be ahead
    other.kill("alpha")

    left = run_cli("agent", "leave", "--dir", str(folder), "--yes")
    assert "`feddp node enable alpha`" in left[1], left
    # The operator of the first one disables it, as is told there, with a token under way.
    early = token(coordinator, "--rejoin")["token"]
    assert run_cli("node", "disable", "alpha", "--dir", root(coordinator))[0] == 0
    no = run_cli("agent", "join", early, "--dir", str(folder))
    assert (no[0], "feddp node enable alpha" in no[2]) == (3, True), no
    assert run_cli("node", "enable", "alpha", "--dir", root(coordinator))[0] == 0
    join = ("agent", "join", token(coordinator, "--rejoin")["token"], "--dir", str(folder))
    assert run_cli(*join, "--no-wait")[0] == 1
    approve(coordinator, "--key", waiting_key(coordinator), "--steward", "anna")
    assert run_cli(*join)[0] == 0
    snapshot(folder, copies[1])
    assert "or its coordinator was left" in run_cli("agent", "status", "--dir", str(folder))[1]
    work(coordinator, 8)
    assert "ledger_rolled_back" not in coordinator.log("alpha")
    found = status(folder)
    assert (found["ledger"]["rolled_back"], found["catching_up"]) == ("", False)
    assert found["in_order"], found
    stop_agent(coordinator)
    snapshot(folder, copies[2])

    for copy in copies[:2]:
        put_back(copy, folder)
        coordinator.start("alpha")
        wait_for("it is found out", lambda: bool(status(folder)["ledger"]["rolled_back"]))
        assert "up to entry 4" in status(folder)["ledger"]["rolled_back"]
        stop_agent(coordinator)
    put_back(copies[2], folder)
    work(coordinator, 12)
    assert status(folder)["in_order"]
