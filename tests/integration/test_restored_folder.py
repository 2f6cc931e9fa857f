"""A folder that was restored from a backup whose certificate was renewed since: it is a copy's."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from certs.enrolment import spoken
from node_agent.joining.identity import load_identity
from tests.integration.federation import Federation, cli_json, run_cli, wait_for
from tests.integration.test_certificates import reloaded
from tests.integration.test_renewal import set_life

LIFE_S = 30


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """An agent whose certificate lives for 30 s."""
    made = Federation(tmp_path)
    set_life(made, LIFE_S)
    try:
        made.start("coordinator")
        made.add_node("alpha")
        made.start("alpha")
        made.wait_for_nodes("alpha")
        yield made
    finally:
        made.stop()


def restored(federation: Federation) -> Path:
    """A folder from a backup; since then its agent has got another certificate, and used it."""
    folder, backup = federation.agent("alpha"), federation.folder / "backup.tar"
    cli_json("agent", "backup", str(backup), "--dir", str(folder))
    ago = "UPDATE certificates SET superseded_at = superseded_at - 100 WHERE superseded_at > 0"

    def is_superseded() -> bool:
        with federation.database() as database:  # what a minute does
            return database.execute(ago).rowcount > 0

    wait_for("its next certificate is in use", is_superseded, LIFE_S)
    federation.kill("alpha")
    reloaded(federation, "alpha")
    again = federation.agent("again")
    cli_json("agent", "restore", str(backup), "--dir", str(again))
    (again / "data").symlink_to(folder / "data")
    return again


def status(folder: Path) -> tuple[int, Any]:
    """(exit code, what it says) of `feddp agent status`."""
    code, out, _ = run_cli("agent", "status", "--dir", str(folder), "--json")
    return code, json.loads(out)


def refused_for(folder: Path, *reasons: str) -> bool:
    """Whether its status says so, and its exit code is 1."""
    code, found = status(folder)
    return (code, (found["refused"] or {}).get("reason")) in [(1, one) for one in reasons]


def joins_again(federation: Federation, folder: Path) -> None:
    """As docs/hospital-it.md has it: a token, the key that waits, the steward's word."""
    where = ("--dir", str(federation.installation.folder))
    token = cli_json("node", "token", "alpha", "--rejoin", *where)["token"]
    join = ("agent", "join", token, "--again", "--dir", str(folder))
    waits = run_cli(*join, "--no-wait")
    assert waits[0] == 1, waits
    with federation.client() as client:
        key = spoken(client.node("alpha").waiting_key)
    assert key in waits[2]
    approve = ("node", "approve", "alpha", "--key", key, *where)
    assert run_cli(*approve)[0] != 0, "the steward was not asked"
    assert run_cli(*approve, "--steward", "anna")[0] == 0
    assert run_cli(*join)[0] == 0
    federation.start(folder.name)
    federation.wait_for_nodes("alpha")
    wait_for("it is in order", lambda: status(folder)[0] == 0)


def test_a_restored_folder_joins_again_before_its_agent_runs(federation: Federation) -> None:
    """Nobody is quarantined then; the steward is asked all the same."""
    folder = restored(federation)
    joins_again(federation, folder)
    with federation.client() as client:
        assert client.node("alpha").quarantine == ""


def test_a_restored_folder_whose_agent_ran_says_why_it_is_refused(federation: Federation) -> None:
    """Its certificate is that of a copy, and the node is quarantined; joining again ends it. The
    reason stays once the certificate has ended, where it comes with the refusal of another."""
    folder = restored(federation)
    ends_at_s = load_identity(folder / "identity").expires_at.timestamp()
    federation.start("again")
    copy = ("CERTIFICATE_SUPERSEDED", "NODE_QUARANTINED")
    wait_for("it says why", lambda: refused_for(folder, *copy))
    wait_for("the certificate has ended", lambda: time.time() > ends_at_s + 1, LIFE_S)
    federation.kill("again")
    again = run_cli("agent", "status", "--dir", str(folder))
    assert (again[0], "REFUSED" in again[1]) == (1, True), again
    federation.agent("first").symlink_to(federation.agent("alpha"))
    ended = load_identity(federation.agent("alpha") / "identity").expires_at.timestamp()
    wait_for("the other's has ended too", lambda: time.time() > ended + 1, 2 * LIFE_S)
    assert status(federation.agent("alpha"))[1]["refused"] is None
    federation.start("first")
    wait_for("so it is told", lambda: refused_for(federation.agent("alpha"), "NODE_QUARANTINED"))
    federation.kill("first")
    joins_again(federation, folder)


def test_a_node_that_was_disabled_past_its_certificates_end_says_so(
    federation: Federation,
) -> None:
    """No session can tell it: only the enrolment port answers."""
    folder = federation.agent("alpha")
    federation.kill("alpha")
    with federation.client() as client:
        client.disable("alpha")
    ends_at_s = load_identity(folder / "identity").expires_at.timestamp()
    wait_for("it has ended", lambda: time.time() > ends_at_s + 1, LIFE_S + 2)
    federation.start("alpha")
    wait_for("it says why", lambda: refused_for(folder, "NODE_DISABLED"))
    with federation.client() as client:
        client.enable("alpha")
    federation.wait_for_nodes("alpha")
    wait_for("it is in order", lambda: status(folder)[0] == 0)
