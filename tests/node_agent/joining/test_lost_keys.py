"""What patients have spent can be read when a key of the node, or its passphrase, is lost."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from certs.authority import Authority
from certs.enrolment import (
    load_certificate_key,
    load_ledger_key,
    new_ledger_key,
    save_private_key,
)
from feddp.cli.app import app
from node_agent.alerts.digest import digest
from node_agent.doctor.examine import examine, joined
from node_agent.folder.backup import backup
from node_agent.folder.config import Folder
from node_agent.joining.identity import load_identity
from node_agent.joining.leaving import leave
from node_agent.joining.renewal import _advice as advice
from node_agent.ledger.copies import export, heads, restore, settle
from node_agent.outbox import outbox
from node_agent.state.state import State
from node_agent.status import status
from privacy.filters import make_filter
from protos.errors import FeddpError, Malformed
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent
from tests.node_agent.samples import NODE, order

PASSPHRASE = "twelve letters and more"


@pytest.fixture
def spent(tmp_path: Path) -> Folder:
    """An agent whose patients have spent something."""
    folder = make_agent(tmp_path / "agent", Authority.create(tmp_path / "ca", TRUST_DOMAIN), 9)
    key = load_ledger_key(folder.identity / "ledger.key")
    with closing(State(folder.state_db, NODE, key)) as state:
        state.reserve(order(), make_filter("gdp", 0, 10.0, 1.0e-5))
        state.open("a1", 1.0, 0.5)
        state.lose("a1")
    return folder


def encrypted(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both keys under a passphrase, which is in the environment."""
    monkeypatch.setenv("FEDDP_KEY_PASSPHRASE", PASSPHRASE)
    for name, load in (("node.key", load_certificate_key), ("ledger.key", load_ledger_key)):
        path = folder.identity / name
        key = load(path)
        path.unlink()
        save_private_key(path, key, encrypted=True)


def no_ledger_key(folder: Folder, _: pytest.MonkeyPatch) -> None:
    (folder.identity / "ledger.key").unlink()


def damaged_ledger_key(folder: Folder, _: pytest.MonkeyPatch) -> None:
    (folder.identity / "ledger.key").write_text("nothing")


def no_node_key(folder: Folder, _: pytest.MonkeyPatch) -> None:
    (folder.identity / "node.key").unlink()


def damaged_node_key(folder: Folder, _: pytest.MonkeyPatch) -> None:
    (folder.identity / "node.key").write_text("nothing")


def no_passphrase(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypted(folder, monkeypatch)
    monkeypatch.delenv("FEDDP_KEY_PASSPHRASE")


def wrong_passphrase(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypted(folder, monkeypatch)
    monkeypatch.setenv("FEDDP_KEY_PASSPHRASE", "another one of some length")


LOST = [
    *(no_ledger_key, damaged_ledger_key, no_node_key, damaged_node_key),
    *(no_passphrase, wrong_passphrase),
]


@pytest.mark.parametrize("lose", LOST)
def test_what_only_reads_works_and_says_which_key_is_lost(
    spent: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[..., None]
) -> None:
    """The export that the docs send the reader to, above all."""
    lose(spent, monkeypatch)
    found = status(spent.root)
    name = "node.key" if "node_key" in lose.__name__ else "ledger.key"
    told = found["keys_lost"]
    assert "feddp agent status" in told
    assert "Lost keys" in told
    assert (
        "passphrase" in told
        if "passphrase" in lose.__name__
        else name in told or ("private key" in told)
    )
    assert found["in_order"] is False
    assert found["ledger"]["entries"] == 2
    assert found["accounts"][0]["epsilon_booked"] > 0
    assert digest(spent.root, 7.0)["node"] == NODE
    assert len(outbox(spent.root)["items"]) == 1
    assert export(spent.root, tmp_path / "copy.db") == 2
    told = CliRunner().invoke(app, ["agent", "status", "--dir", str(spent.root)])
    assert (told.exit_code, "KEYS LOST" in told.stdout) == (1, True)


@pytest.mark.parametrize("lose", [no_ledger_key, no_passphrase])
def test_nothing_is_called_verified_without_the_key(
    spent: Folder, monkeypatch: pytest.MonkeyPatch, lose: Callable[..., None]
) -> None:
    """Whether this node signed what stands there is not known."""
    lose(spent, monkeypatch)
    ledger = status(spent.root)["ledger"]
    assert ledger["verified"] is False
    assert ledger["problems"] == ["without the ledger's key its signatures cannot be checked"]


@pytest.mark.parametrize("lose", [no_ledger_key, damaged_ledger_key, no_passphrase])
def test_what_signs_or_writes_says_what_to_do(
    spent: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[..., None]
) -> None:
    """Never with a key of this moment: nothing of the ledger changes."""
    export(spent.root, tmp_path / "copy.db")
    lose(spent, monkeypatch)
    before = spent.state_db.read_bytes()
    for use in (
        lambda: heads(spent.root),
        lambda: settle(spent.root, "*"),
        lambda: restore(spent.root, tmp_path / "copy.db"),
        lambda: leave(spent.root),
        lambda: load_identity(spent.identity),
    ):
        with pytest.raises(FeddpError) as caught:
            use()
        message = caught.value.message
        assert "Lost keys" in message or "FEDDP_KEY_PASSPHRASE" in message, use
    assert spent.state_db.read_bytes() == before


def test_a_key_in_the_place_of_a_lost_one_signs_nothing(spent: Folder) -> None:
    """Whatever asks it."""
    (spent.identity / "ledger.key").unlink()
    identity = load_identity(spent.identity, to_read=True)
    for use in (
        lambda: identity.ledger_key.sign(b"a"),
        identity.ledger_key.private_bytes_raw,
        lambda: new_ledger_key() and identity.ledger_key.private_bytes(),  # type: ignore[call-arg]
    ):
        with pytest.raises(FeddpError) as caught:
            use()
        assert caught.value.reason == "IDENTITY_INVALID"


def test_a_backup_needs_the_keys_but_not_their_passphrase(
    spent: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encrypted keys are copied as they lie; without a key it would be none."""
    no_passphrase(spent, monkeypatch)
    assert "identity/ledger.key" in backup(spent.root, tmp_path / "one.tar")
    (spent.identity / "ledger.key").unlink()
    with pytest.raises(FeddpError) as caught:
        backup(spent.root, tmp_path / "two.tar")
    assert caught.value.reason == "IDENTITY_INVALID"
    assert not (tmp_path / "two.tar").exists()


@pytest.mark.parametrize("lose", LOST)
def test_doctor_names_the_key_and_goes_on(
    spent: Folder, monkeypatch: pytest.MonkeyPatch, lose: Callable[..., None]
) -> None:
    """A line `keys`, and all the others."""
    lose(spent, monkeypatch)
    checks = {one.name: one for one in examine(joined(spent.root), hold_s=0.0)}
    assert checks["keys"].result == "failed"
    assert checks["keys"].do
    assert checks["ledger"].result == "ok"
    assert {"policy", "certificate"} <= checks.keys()


def test_a_folder_that_has_left_is_read_without_its_key(spent: Folder, tmp_path: Path) -> None:
    """Its ledger is all that it keeps."""
    leave(spent.root)
    (spent.identity / "ledger.key").unlink()
    assert export(spent.root, tmp_path / "copy.db") == 2
    with pytest.raises(FeddpError):
        heads(spent.root)


def test_a_renewal_without_its_passphrase_asks_nobody_but_this_hospital(
    spent: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names where the passphrase was read, and the coordinator's operator can do nothing
    about it."""
    encrypted(spent, monkeypatch)
    file = tmp_path / "passphrase"
    file.write_text("another one of some length\n")
    monkeypatch.setenv("FEDDP_KEY_PASSPHRASE_FILE", str(file))
    with pytest.raises(Malformed) as caught:
        load_identity(spent.identity)
    assert caught.value.reason == "PASSPHRASE_WRONG"
    assert f"in {file} (FEDDP_KEY_PASSPHRASE_FILE)" in caught.value.message
    for ended in (False, True):
        said = advice(caught.value, ended=ended)
        assert "send this line" not in said
        assert "passphrase" in said
    file.write_text(f"{PASSPHRASE}\n")
    assert load_identity(spent.identity).lost is None
