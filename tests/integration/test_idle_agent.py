"""What an agent takes of its hospital's machine while it waits for work."""

import time
from pathlib import Path

import pytest
import yaml

from node_agent.footprint import SETTLED_S
from tests.integration.federation import Federation, wait_for

RESIDENT_MIB_MAX = 64.0
WATCHED_S = 12.0
"""Two heartbeats and more, which bring back the code that they run."""


def resident_mib(pid: int) -> float:
    """Memory that the process holds now, mapped files included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.parametrize("alerts", [False, True])
def test_an_idle_agent_holds_at_most_64_mib(coordinator: Federation, alerts: bool) -> None:
    """Connected and settled, and it stays so over heartbeats; also while it looks for alerts.

    The number does not depend on load or chance: it is the interpreter, the modules, which are the
    same at every start, and the code that a heartbeat runs. It was 51 MiB when this was written;
    the difference is for other versions of the libraries and kernels that map more around a page.
    """
    coordinator.add_node("alpha")
    told = coordinator.folder / "alerts.json"
    if alerts:
        path = coordinator.agent("alpha") / "agent.yaml"
        config = {**yaml.safe_load(path.read_text()), "alerts": {"file": {"path": str(told)}}}
        config["alerts"]["every_s"] = 2.0
        path.write_text(yaml.safe_dump(config))
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    pid = coordinator.pid("alpha")
    wait_for("the agent settles", lambda: resident_mib(pid) <= RESIDENT_MIB_MAX, 10 * SETTLED_S)
    until_s, most = time.monotonic() + WATCHED_S, 0.0
    while time.monotonic() < until_s:
        most = max(most, resident_mib(pid))
        time.sleep(0.2)
    assert most <= RESIDENT_MIB_MAX
    assert told.exists() is alerts
