"""A federation over bad links: each process in a network namespace of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.points import ROOT
from tests.chaos.tun_switch import UNSHARE, why_not


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "case", ["test_slow_and_lossy", "test_one_way_partitions", "test_behind_a_gateway"]
)
def test_a_job_ends_well_on_links_that_are(case: str, tmp_path: Path) -> None:
    """The case itself, in `links_inside.py`, runs in a namespace without any other network."""
    if reason := why_not():
        pytest.skip(reason)
    inside = f"{Path(__file__).with_name('links_inside.py')}::{case}"
    # The namespace begins with its loopback down, which the coordinator's health port needs.
    script = 'ip link set lo up && exec "$@"'
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}"]
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", script, "sh", sys.executable, "-m", "pytest", *options, inside],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
