"""Which holder of a lease need not be waited for."""

import os
import subprocess
import sys

from coordinator.replicas.leadership import is_gone, this_process


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for() -> None:
    """After kill -9 the next coordinator begins at once; one that lives, or is elsewhere, is."""
    me = this_process()
    assert not is_gone(me)
    host, boot, pid, started = me.split(" ")
    assert is_gone(f"{host} {boot} {pid} 1")  # the number went to another process since
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    assert is_gone(f"{host} {boot} {ended.pid} {started}")
    assert not is_gone(f"{host} another-boot {ended.pid} {started}")
    # A container of the same machine: its processes cannot be seen from here.
    assert not is_gone(f"another-host {boot} {ended.pid} {started}")
    assert not is_gone("nonsense")
    assert os.getpid() == int(pid)
