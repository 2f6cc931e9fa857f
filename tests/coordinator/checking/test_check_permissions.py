"""`feddp coordinator check` tells who else may read keys and tables, or write to them."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.checking.check import check
from coordinator.checking.permissions import NAMED_MAX
from coordinator.installation import Installation, init


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may enter, as is none of pytest's own."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def installation(folder: Path) -> Installation:
    """A new one."""
    made = init(folder / "c", "test.example")
    (made.folder / "coordinator.db").chmod(0o600)  # as of a process of `feddp`, by its umask
    return made


def said(made: Installation, subject: str) -> list[tuple[str, str]]:
    """(level, text) of what is found of a subject."""
    return [(one.level, one.text) for one in check(made.config) if one.subject == subject]


def test_what_init_makes_is_its_owners_alone(installation: Installation) -> None:
    """Nothing to say of its permissions."""
    fine = [("ok", "keys and tables are their owner's alone")]
    assert said(installation, "permissions") == fine


def test_what_anybody_may_read_or_write_is_told(installation: Installation) -> None:
    """Keys, tables and models that are read, and whatever is written to."""
    for one in (installation.folder, *installation.folder.rglob("*")):
        one.chmod(0o777 if one.is_dir() else 0o666)
    warnings = [text for level, text in said(installation, "permissions") if level == "warning"]
    reading, writing = warnings
    assert ("may read" in reading, "may write to" in writing) == (True, True)
    assert f"{installation.folder}/pki/issuing.key" in reading
    assert f"{installation.folder}/pki/ledger.key" in reading
    assert "chmod o-rwx" in reading
    assert f"{installation.folder}, " in writing
    assert reading.count(str(installation.folder)) == NAMED_MAX


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("pki/ledger.key", 0o604, "read"),
        ("coordinator.db", 0o604, "read"),
        ("operator/key.pem", 0o604, "read"),
        ("pki/root.crt", 0o602, "write to"),
        ("coordinator.yaml", 0o602, "write to"),
        ("pki", 0o703, "write to"),
    ],
)
def test_one_file_that_anybody_may_reach_is_told(
    installation: Installation, name: str, mode: int, words: str
) -> None:
    """And only where every folder above lets them through."""
    path = installation.folder / name
    path.chmod(mode)
    [(level, _)] = said(installation, "permissions")
    assert level == "ok"
    for one in path.relative_to(installation.folder).parents:
        (installation.folder / one).chmod(0o701)
    assert said(installation, "permissions") == [
        (
            "warning",
            f"anybody on this machine may {words} {path}: `chmod o-rwx` takes that away",
        )
    ]


def test_certificates_and_a_configuration_without_a_password_may_be_read(
    installation: Installation,
) -> None:
    """They hold no secret; a database's password is one."""
    installation.folder.chmod(0o701)
    installation.config.chmod(0o604)
    (installation.folder / "pki").chmod(0o701)
    (installation.folder / "pki/root.crt").chmod(0o604)
    assert [level for level, _ in said(installation, "permissions")] == ["ok"]
    with installation.config.open("a") as file:
        file.write(
            "storage: {database_url: 'postgresql+psycopg://feddp:se1cret@127.0.0.1:1/feddp'}\n"
        )
    [(level, text)] = said(installation, "permissions")
    assert (level, "coordinator.yaml" in text, "se1cret" in text) == ("warning", True, False)


def test_what_a_group_may_read_is_noted(installation: Installation) -> None:
    """A volume of a pod shows its files so; nobody else is in that group there."""
    for one in (installation.folder, *installation.folder.rglob("*")):
        one.chmod(0o770 if one.is_dir() else 0o660)
    found = said(installation, "permissions")
    assert {level for level, _ in found} == {"note"}
    assert any("their group may read" in text and "ledger.key" in text for _, text in found)
