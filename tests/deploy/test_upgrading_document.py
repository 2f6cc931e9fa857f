"""docs/upgrading.md shows exactly what the scripts print."""

import os
import re
import shlex
import sys
from pathlib import Path

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


@pytest.mark.parametrize("green", ["blue", "blue/green", ".", "left", "file"])
def test_green_begins_in_no_folder_that_is_there(tmp_path: Path, green: str) -> None:
    """Blue's own, one in it or around it, or what an earlier try left, whose way back would name
    the folder to be removed."""
    (tmp_path / "blue").mkdir()
    (tmp_path / "left").mkdir()
    (tmp_path / "left/coordinator.db").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    done = script("blue_green", *blue_green(tmp_path, green), "--run")
    assert done.returncode == 2
    assert "remove" not in done.stdout.replace("remove it or name another", "")
    assert not (tmp_path / "b.log").exists()
    assert ("is there already" in done.stdout) == (green in ("left", "file"))
    assert ("--green-dir is" in done.stderr) == (green in ("blue", "blue/green", "."))


def test_a_copy_of_ones_own_may_fill_an_empty_disk(tmp_path: Path) -> None:
    """The plan goes on to where the versions are looked for."""
    for name in ("blue", "mounted"):
        (tmp_path / name).mkdir()
    words = blue_green(tmp_path, "mounted")
    refused = script("blue_green", *words, "--run")
    assert "is there already" in refused.stdout
    taken = script("blue_green", *words, "--copy", "cp -a blue/. mounted", "--run")
    assert "not found here: /usr/bin/feddp" in taken.stdout


def blue_green(folder: Path, green: str) -> list[object]:
    """Options of the script."""
    return [
        *("--dir", folder / "blue", "--green-dir", folder / green, "--old", "/usr"),
        *("--new", "/usr", "--backup", folder / "b"),
        *("--replica", "blue=http://x", "--replica", "green=http://x"),
    ]


@pytest.mark.parametrize("entries", [0, 3])
def test_an_installation_without_an_account_is_upgraded_and_one_that_lost_them_is_not(
    tmp_path: Path, entries: int
) -> None:
    """There is nothing to verify yet; where there had been entries, they are missing."""
    version = tmp_path / "v"
    (version / "bin").mkdir(parents=True)
    feddp = version / "bin/feddp"
    feddp.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
words, count = sys.argv[1:], pathlib.Path({str(tmp_path / "count")!r})
if words[:2] == ["budget", "verify"]:
    if not count.exists() and {entries}:
        count.touch()
        print(json.dumps({{"verified": True, "entries": {entries}}}))
        sys.exit(0)
    print(json.dumps({{"error": {{"reason": "NOTHING_TO_VERIFY"}}}}), file=sys.stderr)
    sys.exit(3)
print(json.dumps({{"needs_stop": False, "migrations": []}}))
"""
    )
    feddp.chmod(0o755)
    curl = tmp_path / "curl"
    curl.write_text(
        f"""#!{sys.executable}
import sys
print("feddp_leading 1.0" if "metrics" in sys.argv[-1] else '{{"ready": true}}')
"""
    )
    curl.chmod(0o755)
    done = script(
        *("rolling", "--dir", tmp_path, "--old", version, "--new", version, "--backup"),
        *(tmp_path / "b", "--replica", "a=http://x", "--run", "--wait-s", 1),
        *("--stop", "true", "--switch", "true", "--start", "true"),
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    )
    assert done.returncode == (1 if entries else 0), done.stdout
    assert ("entries were there before, and now 0" in done.stdout) == bool(entries)
