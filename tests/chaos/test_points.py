"""The scan names what the code does, and weaving changes nothing but that it is watched."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import points, shim

SOURCE = """
import os

class Thing(SomeServicer):
    async def Ask(self, request, context):
        answer = await self.database.write(request)
        os.replace("a", "b")
        os.replace("b", "c")
        return answer

    def swap(self, text):
        return text.replace("a", "b")

def keep(engine):
    with engine.begin() as connection:
        return connection
"""


def test_names_follow_the_code_and_not_its_lines() -> None:
    """Sites are counted within their function; a replaced string is no rename."""
    _, found = points.weave("m", SOURCE, "m.py")
    _, moved = points.weave("m", f"import sys\n\n{SOURCE}", "m.py")
    assert [site.name for site in found] == [
        "m:Thing.Ask:transaction",
        "m:Thing.Ask:rename",
        "m:Thing.Ask:rename:2",
        "m:Thing.Ask:reply",
        "m:keep:transaction",
    ]
    assert found == moved


def test_woven_code_passes_its_points_around_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the act itself, after: in this order, with the act's own answer."""
    said: list[str] = []

    class Database:
        async def write(self, what: str) -> str:
            said.append("written")
            return what.upper()

    source = "async def act(database):\n    return await database.write('x')\n"
    tree, _ = points.weave("m", source, "m.py")
    space: dict[str, object] = {points.PASS: said.append}
    exec(compile(tree, "m.py", "exec"), space)  # noqa: S102 - the text is ours
    act = space["act"]
    assert asyncio.run(act(Database())) == "X"  # type: ignore[operator]
    assert said == ["m:act:transaction:before", "written", "m:act:transaction:after"]


def test_a_process_dies_at_the_passing_that_was_asked_for(tmp_path: Path) -> None:
    """The third passing, by SIGKILL, with nothing run after it."""
    seen = tmp_path / "seen"
    script = "import os\nfrom tests.chaos.shim import POINTS\nPOINTS.arm(dict(os.environ))\n"
    script += "for _ in range(5): POINTS.passing('p:before')\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=points.ROOT,
        check=False,
        env={
            **os.environ,
            "FEDDP_KILL_AT": "p:before",
            "FEDDP_KILL_PASS": "3",
            "FEDDP_POINTS_SEEN": str(seen),
        },
    )
    assert done.returncode == -signal.SIGKILL
    assert seen.read_text().split() == ["p:before"] * 3


def test_a_kill_file_is_struck_before_the_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next life would be killed too."""
    file = tmp_path / "kill"
    file.write_text("p:before\nq:after")
    died: list[str] = []
    monkeypatch.setattr(shim, "die", lambda: died.append("killed"))
    watched = shim.Points()
    watched.arm({"FEDDP_KILL_FILE": str(file)})
    for _ in range(2):
        watched.passing("p:before")
    assert died == ["killed"]
    assert file.read_text() == "q:after"
