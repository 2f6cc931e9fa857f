"""`feddp coordinator restore`: what it asks for, what it says, and what to do next."""

from pathlib import Path

import pytest
from command_line import Run

from certs import sealing
from coordinator.restoring import marker
from tests.coordinator.restoring.samples import PASSWORD, Source, source


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a password is not made hard here."""
    monkeypatch.setattr(sealing, "LOG2_N", 4)


@pytest.fixture
def made(tmp_path: Path) -> Source:
    """An installation on SQLite, backed up to `b`, with its password in `p`."""
    found = source(tmp_path / "c")
    found.backup(tmp_path / "b")
    (tmp_path / "p").write_bytes(PASSWORD)
    return found


def words(tmp_path: Path, *more: str) -> list[str]:
    """The command, as far as it is always the same."""
    begins = ["coordinator", "restore", str(tmp_path / "b"), "--dir", str(tmp_path / "d")]
    return [*begins, "--password-file", str(tmp_path / "p"), *more]


@pytest.mark.parametrize("both", [False, True])
def test_revocations_or_that_there_are_none_must_be_said(
    run: Run, made: Source, tmp_path: Path, both: bool
) -> None:
    """Not both, and neither by default; nothing is read before."""
    more = ["--without-revocations", "--revocations", "r"] if both else []
    ran = run(*words(tmp_path, *more))
    assert (ran.code, "--without-revocations" in ran.err) == (2, True)
    assert not (tmp_path / "d").exists()


def test_it_says_what_it_did_and_what_to_do_next_in_order(
    run: Run, made: Source, tmp_path: Path
) -> None:
    """For people; a person who resumes without looking has read it at least."""
    ran = run(*words(tmp_path, "--without-revocations"))
    assert ran.code == 0
    assert "1 accounts, 3 entries, every chain and signature checked" in ran.out
    assert "job j ran or waited: it has failed, and can be resumed" in ran.out
    steps = [line.strip() for line in ran.out.splitlines() if line.startswith("  ")]
    verbs = ("make sure", "serve", "node list", "check", "revoke again", "tokens", "resume")
    assert [verb in step for verb, step in zip(verbs, steps, strict=True)] == [True] * len(verbs)
    assert [step[0] for step in steps] == list("1234567")


def test_with_json_it_is_one_object(run: Run, made: Source, tmp_path: Path) -> None:
    """Also for a dry run, which wrote nothing."""
    dry = run(*words(tmp_path, "--without-revocations", "--dry-run", "--json")).json
    assert (dry["dry_run"], dry["entries"], dry["epoch"]) == (True, 3, 0)
    assert not (tmp_path / "d").exists()
    done = run(*words(tmp_path, "--without-revocations", "--json")).json
    assert (done["dry_run"], done["entries"], done["epoch"]) == (False, 3, 2)
    assert (done["jobs_failed"], done["keys_from_backup"]) == (["j"], True)
    assert done["profile"] == str(tmp_path / "d/operator")


def test_a_dry_run_says_that_nothing_was_written(run: Run, made: Source, tmp_path: Path) -> None:
    """In its last line."""
    ran = run(*words(tmp_path, "--without-revocations", "--dry-run"))
    assert ran.out.splitlines()[-1] == "dry run: it can be restored, and nothing was written"


def test_a_second_restore_names_what_is_in_the_way(run: Run, made: Source, tmp_path: Path) -> None:
    """With an exit code, and a sentence that says what to do."""
    assert run(*words(tmp_path, "--without-revocations")).code == 0
    again = run(*words(tmp_path, "--without-revocations"))
    assert again.code != 0
    assert "Nothing that exists is written over" in again.err


def test_a_wrong_password_is_called_so(run: Run, made: Source, tmp_path: Path) -> None:
    """And a missing one asked for."""
    (tmp_path / "p").write_text("another password\n")
    wrong = run(*words(tmp_path, "--without-revocations"))
    assert (wrong.code, "password" in wrong.err) == (2, True)
    bare = run(
        "coordinator",
        "restore",
        str(tmp_path / "b"),
        "--dir",
        str(tmp_path / "d"),
        "--without-revocations",
    )
    assert (bare.code, "give --password-file FILE" in bare.err) == (3, True)


def test_what_a_restore_that_was_cut_off_has_left_is_told_as_that(run: Run, tmp_path: Path) -> None:
    """Also before its configuration is there: nothing in the folder was made by `init`."""
    folder = tmp_path / "d"
    folder.mkdir()
    marker.put(folder, marker.Mark(1.0, ()))
    for command in ("check", "serve"):
        ran = run("coordinator", command, "--dir", str(folder))
        assert ran.code != 0
        assert "was cut off" in ran.err
        assert "init" not in ran.err
