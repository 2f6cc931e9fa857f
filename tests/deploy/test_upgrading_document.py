"""docs/upgrading.md shows exactly what the scripts print."""

import re
import shlex

import pytest

from tests.deploy.versions import SCRIPTS, script

TEXT = (SCRIPTS.parents[1] / "docs/upgrading.md").read_text()
SHOWN = re.findall(
    r"^```sh\npython deploy/upgrade/(\w+)\.py (.*?)\n```\n```text\n(.*?)^```$",
    TEXT,
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize(("name", "words", "printed"), SHOWN)
def test_a_plan_in_the_document_is_what_the_script_prints(
    name: str, words: str, printed: str
) -> None:
    """Each command of each procedure, in order."""
    done = script(name, *shlex.split(words.replace("\\\n", " ")))
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_every_procedure_is_shown_for_processes_and_for_a_release() -> None:
    """A script without a plan in the document would not be compared."""
    found = {(name, "--helm" in words) for name, words, _ in SHOWN}
    assert found == {
        (name, helm) for name in ("rolling", "blue_green", "rollback") for helm in (False, True)
    }
    assert any("--restore " in words for _, words, _ in SHOWN)


def test_an_older_version_that_is_not_there_is_found_before_anything_is_stopped(
    tmp_path: object,
) -> None:
    """The rollback to a backup looks for it first."""
    done = script(
        *("rollback", "--dir", tmp_path, "--old", "/usr", "--new", "/usr", "--backup", "b"),
        *("--restore", "c", "--restored-dir", "d", "--stopped", "a", "--replica", "r=http://x"),
        "--run",
    )
    assert done.returncode == 2
    assert "nothing was done: not found here: /usr/bin/feddp" in done.stdout
