"""Who was revoked is kept beside the database, and a restored registry knows of them."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs

from certs import sealing
from certs.authority import Authority
from certs.enrolment import new_key
from certs.spiffe import SpiffeId
from coordinator.checking.check import check
from coordinator.identities import Identities
from coordinator.keyring import ledger_key, ledger_public_key
from coordinator.restoring.revocations import RevocationsFile, read
from coordinator.store import certificates, users
from coordinator.store import revocations as store
from coordinator.store.database import Database
from protos.errors import Malformed, NotFound
from tests.coordinator.restoring.samples import Source, opened, restored, rows, source

LEDGER = b"k" * 32
DOMAIN = "test.example"
ALPHA = SpiffeId(DOMAIN, "node", "alpha")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a password is not made hard here."""
    monkeypatch.setattr(sealing, "LOG2_N", 4)


@pytest.fixture
def made(tmp_path: Path) -> Source:
    """An installation on SQLite."""
    return source(tmp_path / "c")


def issue(made: Source, identity: SpiffeId) -> str:
    """A certificate that is registered; its fingerprint."""
    authority = Authority.load(made.made.folder / "pki")
    issued = authority.issue(
        new_key().public_key(), identity, now=datetime.now(UTC), lifetime=timedelta(days=7)
    )
    with opened(made.url) as database:
        database.write_now(lambda c: certificates.add(c, issued, "0" * 64))
    return issued.fingerprint


def reload(made: Source, file: Path) -> Identities:
    """What the coordinator does after each change, and at its start."""

    async def work(database: Database) -> Identities:
        key = ledger_key(made.made.folder / "pki")
        identities = Identities(database, DOMAIN, revocations=RevocationsFile(file, key))
        await identities.reload()
        return identities

    with opened(made.url) as database:
        return asyncio.run(work(database))


def revoke(made: Source, identity: SpiffeId) -> None:
    """As `feddp node revoke` does in the database."""
    with opened(made.url) as database:
        database.write_now(lambda c: certificates.revoke(c, identity))


def test_revocations_after_the_backup_are_replayed_also_of_unknown_certificates(
    made: Source, tmp_path: Path
) -> None:
    """The one that the backup has, and its successor, which only the file knows."""
    first, log = issue(made, ALPHA), tmp_path / "revocations.jsonl"
    file = made.backup(tmp_path / "b")
    second = issue(made, ALPHA)
    revoke(made, ALPHA)
    reload(made, log)
    done = restored(file, tmp_path / "d", revoked=[log])
    assert done.revocations == 2
    with opened(f"sqlite:///{tmp_path / 'd/coordinator.db'}") as database:
        assert {one.fingerprint for one in database.read_now(store.revoked)} == {first, second}
        assert database.read_now(certificates.revoked_identities) == {str(ALPHA)}
        kept = database.read_now(lambda c: certificates.find(c, second))
    assert kept is not None
    assert (kept.revoked, kept.generation) == (True, 2)
    without = restored(file, tmp_path / "e")
    assert without.revocations == 0
    with opened(f"sqlite:///{tmp_path / 'e/coordinator.db'}") as database:
        assert database.read_now(store.revoked) == []


def test_an_operator_who_was_revoked_gets_no_profile(made: Source, tmp_path: Path) -> None:
    """Or a restore would let in whom the others have shut out."""
    file, operator = made.backup(tmp_path / "b"), SpiffeId(DOMAIN, "user", "operator")
    revoke(made, operator)
    reload(made, tmp_path / "r")
    done = restored(file, tmp_path / "d", revoked=[tmp_path / "r"])
    assert done.profile is None
    assert not (tmp_path / "d/operator").exists()


def test_each_revocation_is_one_line_also_after_a_restart(made: Source, tmp_path: Path) -> None:
    """What a crash kept from the file, or cut off in it, comes with the next look."""
    log, beta = tmp_path / "r", SpiffeId(DOMAIN, "node", "beta")
    issue(made, ALPHA)
    revoke(made, ALPHA)
    reload(made, log)
    reload(made, log)
    assert len(log.read_text().splitlines()) == 2, "the first says whose file it is"
    issue(made, beta)
    revoke(made, beta)
    with log.open("ab") as file:
        file.write(b'{"coordinator": "0')
    reload(made, log)
    lines = log.read_text().splitlines()[1:]
    assert [json.loads(one)["spiffe_id"] for one in lines] == [str(ALPHA), str(beta)]
    kept = read([log], ledger_public_key(made.made.folder / "pki"), DOMAIN)
    assert len(kept.revocations) == 2


def test_a_file_that_cannot_be_written_is_said_and_tried_again(
    made: Source, tmp_path: Path
) -> None:
    """The revocation is in force all the same."""
    issue(made, ALPHA)
    revoke(made, ALPHA)
    with capture_logs() as logs:
        identities = reload(made, tmp_path / "no-such-folder" / "r")
    assert identities.is_behind
    assert [one["event"] for one in logs] == ["revocations_not_kept"]
    assert identities.is_revoked("alpha")
    assert not reload(made, tmp_path / "r").is_behind


GOOD = {
    "coordinator": LEDGER.hex(),
    "fingerprint": "a" * 64,
    "spiffe_id": str(ALPHA),
    "not_before": 1.0,
    "not_after": 2.0,
    "generation": 1,
    "key_digest": "",
    "issuer": "",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"coordinator": "b" * 64}, "REVOCATIONS_OTHER"),
        ({"spiffe_id": "spiffe://other.example/node/alpha"}, "REVOCATIONS_OTHER"),
        ({"fingerprint": "A" * 64}, "REVOCATIONS_INVALID"),
        ({"fingerprint": "a" * 64 + "\n"}, "REVOCATIONS_INVALID"),
        ({"generation": "1"}, "REVOCATIONS_INVALID"),
        ({"generation": 0}, "REVOCATIONS_INVALID"),
        ({"spiffe_id": "alpha"}, "REVOCATIONS_INVALID"),
        ({"more": 1}, "REVOCATIONS_INVALID"),
    ],
)
def test_a_bad_line_is_named_with_its_number(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    """In whichever of the files it is; nothing of them is applied."""
    first, second = tmp_path / "one", tmp_path / "two"
    first.write_text(json.dumps(GOOD) + "\n")
    second.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(Malformed) as caught:
        read([first, second], LEDGER, DOMAIN)
    assert caught.value.reason == reason
    assert f"{second}, line 2" in caught.value.message
    kept = read([first, first], LEDGER, DOMAIN)
    assert [one.fingerprint for one in kept.revocations] == ["a" * 64]


@pytest.mark.parametrize("text", ["no json", '["a"]', "", '{"coordinator": "aa'])
def test_what_is_no_revocation_is_no_revocation(tmp_path: Path, text: str) -> None:
    """Also an empty line, and one that is cut off."""
    (tmp_path / "r").write_text(text + "\n")
    with pytest.raises(Malformed, match="line 1"):
        read([tmp_path / "r"], LEDGER, DOMAIN)


def test_a_bad_file_restores_nothing(made: Source, tmp_path: Path) -> None:
    """The folder is not even made, and a file that is missing is no empty one."""
    file = made.backup(tmp_path / "b")
    (tmp_path / "r").write_text("x\n")
    with pytest.raises(Malformed):
        restored(file, tmp_path / "d", revoked=[tmp_path / "r"])
    with pytest.raises(NotFound, match="--without-revocations"):
        restored(file, tmp_path / "d", revoked=[tmp_path / "none"])
    assert not (tmp_path / "d").exists()


def test_a_revoked_user_is_no_operator_after_a_restore(made: Source, tmp_path: Path) -> None:
    """People as nodes: by each certificate."""
    carol = SpiffeId(DOMAIN, "user", "carol")
    with opened(made.url) as database:
        user = users.User("carol", frozenset({"operator"}), "default")
        database.write_now(lambda c: users.add_user(c, user))
    issue(made, carol)
    file = made.backup(tmp_path / "b")
    with opened(made.url) as database:
        database.write_now(lambda c: users.revoke(c, carol, time.time()))
    reload(made, tmp_path / "r")
    restored(file, tmp_path / "d", revoked=[tmp_path / "r"])
    with opened(f"sqlite:///{tmp_path / 'd/coordinator.db'}") as database:
        found = database.read_now(lambda c: users.standings(c, DOMAIN, time.time()))
    assert found["carol"].status == "revoked"
    assert rows(f"sqlite:///{tmp_path / 'd/coordinator.db'}")["users"]


def test_the_check_says_where_revocations_cannot_be_kept(made: Source, tmp_path: Path) -> None:
    """Before the first of them is lost to a restore."""
    config = made.made.config
    assert "storage.revocations_file" not in {one.subject for one in check(config)}
    settings = yaml.safe_load(config.read_text())
    settings["storage"] = {"revocations_file": str(tmp_path / "no-such-folder/r")}
    config.write_text(yaml.safe_dump(settings))
    (found,) = [one for one in check(config) if one.subject == "storage.revocations_file"]
    assert (found.level, "would not know who was revoked" in found.text) == ("warning", True)
