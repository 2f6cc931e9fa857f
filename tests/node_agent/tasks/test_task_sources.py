"""The content hash of a task covers what runs beside the data: all that its process loads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from node_agent.tasks import registry
from tests.node_agent.test_worker import CONFIG, GAUSSIAN, Bench

EVALUATION: Final = {
    "model": "logistic",
    "features": CONFIG["features"],
    "evaluates": "job-1",
}
CONFIGS: Final = {
    "tabular-classifier": CONFIG,
    "tabular-evaluation": EVALUATION,
    "null": {"parameters": 100},
}

PACKAGES: Final = ("certs", "feddp", "node_agent", "privacy", "protos")

READS_THE_AGENTS_FILES: Final = frozenset(
    {
        "certs/spiffe.py",
        "certs/tokens.py",
        "node_agent/alerts/settings.py",
        "node_agent/folder/config.py",
        "node_agent/yaml_files/faults.py",
        "node_agent/launchers/settings.py",
        "node_agent/connection/proxy.py",
        "node_agent/folder/tracing_config.py",
        "node_agent/joining/waiting_join.py",
        "node_agent/folder/ownership.py",
        "protos/yaml_slips.py",
    }
)
"""Loaded because `node_agent.data.datasets` also reads datasets.yaml, which the agent does: a
worker is told what it says. Nothing of them is called in a worker."""

ANOTHER_TASKS: Final = {
    "tabular-classifier": frozenset(
        {"node_agent/tasks/evaluation_config.py", "node_agent/tasks/null_config.py"}
    ),
    "tabular-evaluation": frozenset({"node_agent/tasks/null_config.py"}),
    "null": frozenset(
        {"node_agent/tasks/evaluation_config.py", "node_agent/tasks/tabular_config.py"}
    ),
}
"""Configurations of other tasks, which the registry knows by name; a task has one of its own."""

PROCESS: Final = """
import json, sys
from pathlib import Path
from node_agent.worker import Worker

worker = Worker()
answers = [worker.handle(line) for line in sys.stdin.buffer]
if answers[0]["op"] == "prepared" and sys.argv[1] == "reads":
    # Which one a data set takes is the steward's: all of them are beside some data.
    import node_agent.sources.parquet_file, node_agent.sources.sql_query
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print()
print(json.dumps([answers, [one for one in files if one]]))
"""


class _Kept:
    """In the place of a worker: keeps the requests."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def handle(self, line: bytes) -> dict[str, Any]:
        """No answer."""
        self.lines.append(line)
        return {}


def loaded_by(task: str, folder: Path) -> set[str]:
    """Files of ours, from the root, that a fresh process has loaded after one attempt."""
    bench = Bench(folder, task, CONFIGS[task])
    kept = _Kept()
    bench.worker = kept  # type: ignore[assignment]
    order: dict[str, Any] = {}
    if task == "tabular-evaluation":
        order = {"release": {**GAUSSIAN, "steps": 1}}
    bench.prepare()
    bench.check(**order)
    bench.train(**order)
    reads = "reads" if registry.installed()[task].reads_data else ""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, reads],
        input=b"\n".join(kept.lines) + b"\n",
        capture_output=True,
        check=True,
        cwd=registry.ROOT,
    )
    answers, files = json.loads(done.stdout.splitlines()[-1])
    assert [one["op"] for one in answers] == ["prepared", "checked", "trained"]
    found = {Path(one).resolve() for one in files}
    # An empty __init__.py runs nothing.
    return {
        str(file.relative_to(registry.ROOT))
        for package in PACKAGES
        for file in found
        if file.is_relative_to(registry.ROOT / package) and file.stat().st_size
    }


@pytest.mark.parametrize("task", sorted(CONFIGS))
def test_what_a_task_loads_is_in_its_content_hash(task: str, tmp_path: Path) -> None:
    """Two nodes with one hash have the same of each file that works on the records; what is outside
    is named with the reason, and loaded."""
    sources = set(registry._ENTRIES[task].sources)
    outside = READS_THE_AGENTS_FILES | ANOTHER_TASKS[task]
    loaded = loaded_by(task, tmp_path)
    assert loaded - outside - sources == set()
    assert outside <= loaded
    assert not outside & sources
    # Nothing is listed that no process of the task loads.
    assert sources - loaded == set()
    assert {"privacy/releases.py", "node_agent/yaml_files/shapes.py"} <= sources


def test_a_change_of_how_rows_are_kept_apart_is_another_task(tmp_path: Path) -> None:
    """A steward who pinned the task has not allowed what another `privacy/blocks.py` does."""
    sources = registry._ENTRIES["tabular-classifier"].sources
    for name in sources:
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((registry.ROOT / name).read_bytes())
    before = registry.content_hash(sources, tmp_path)
    assert before == registry.installed()["tabular-classifier"].content_hash
    blocks = tmp_path / "privacy/blocks.py"
    blocks.write_text(blocks.read_text().replace("LANES: Final = 16", "LANES: Final = 3"))
    assert registry.content_hash(sources, tmp_path) != before
