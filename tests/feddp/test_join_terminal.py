"""`feddp agent join` asks a person at a terminal whether the root is the one, and no script."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.authority import Authority
from certs.tokens import JoinToken
from tests.node_agent.agent_federation import TRUST_DOMAIN
from tests.node_agent.joining.test_enrol import FakeEnrolment


@pytest.fixture
def enrolment(tmp_path: Path) -> Iterator[FakeEnrolment]:
    """A coordinator's enrolment port on this machine."""
    server = FakeEnrolment(Authority.create(tmp_path / "ca", TRUST_DOMAIN))
    yield server
    server.stop()


def join(token: str, folder: Path, *words: str, typed: str | None = None) -> tuple[int, str]:
    """(exit code, what it says to people).

    Args:
        typed: at a terminal; None without one.
    """
    command = [sys.executable, "-m", "feddp", "agent", "join", token, "--dir", str(folder), *words]
    if typed is None:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return ran.returncode, ran.stderr
    person, terminal = pty.openpty()
    try:
        os.write(person, typed.encode())
        ran = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=False)
    finally:
        os.close(person)
        os.close(terminal)
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("typed", ["n\n", "\n", "x\n", "\x04"])
def test_a_person_who_does_not_agree_joins_nothing(
    enrolment: FakeEnrolment, tmp_path: Path, typed: str
) -> None:
    """Anything but yes, the end of input too: nothing was sent and nothing is made."""
    code, said = join(enrolment.token(), tmp_path / "agent", typed=typed)
    assert (code, "Does it agree? [y/N]" in said) == (1, True)
    assert "nothing was sent" in said
    assert enrolment.csrs == []
    assert not (tmp_path / "agent").exists()


def test_a_person_who_agrees_joins(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """After they saw the fingerprint."""
    token = enrolment.token()
    code, said = join(token, tmp_path / "agent", typed="y\n")
    assert (code, len(enrolment.csrs)) == (0, 1), said
    assert said.index(JoinToken.parse(token).fingerprint) < said.index("Does it agree?")


def test_nobody_is_asked_where_nobody_answers(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """A script goes on as ever, and `--yes` and `--json` do at a terminal."""
    for number, (words, typed) in enumerate([((), None), (("--yes",), ""), (("--json",), "")]):
        code, said = join(enrolment.token(), tmp_path / str(number), *words, typed=typed)
        assert (code, "agree" in said) == (0, False), said
    assert len(enrolment.csrs) == 3


def test_a_fingerprint_is_compared_by_the_command(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """As people write it, without a question; another root than that one is not spoken to, in JSON
    and with `--yes` neither."""
    token = enrolment.token()
    right = JoinToken.parse(token).fingerprint
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    for words in ((), ("--yes",), ("--json",)):
        code, said = join(token, tmp_path / "agent", "--fingerprint", wrong, *words, typed="y\n")
        assert (code, "names another root" in said) == (3, True), said
    code, said = join(token, tmp_path / "agent", "--fingerprint", right[:20])
    assert (code, "64 digits" in said) == (2, True), said
    assert enrolment.csrs == []
    shown = right.replace(":", "").lower()
    code, said = join(token, tmp_path / "agent", "--fingerprint", shown, typed="")
    assert (code, "agree?" in said, len(enrolment.csrs)) == (0, False, 1), said
