"""Which holder of a lease need not be waited for."""

import os
import subprocess
import sys

import pytest

from coordinator.replicas import leadership
from coordinator.replicas.leadership import is_gone, is_lost, this_process
from coordinator.store import leases
from protos.errors import Unavailable


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
    assert not is_gone(f"{host} {boot} {ended.pid} {started} more")
    assert os.getpid() == int(pid)


@pytest.mark.parametrize("pid", ["", "self", "-1", "1e3"])
def test_what_names_no_process_is_not_gone(pid: str) -> None:
    """It is another release's, or a slip: nobody can tell, so that it is waited for."""
    host, boot, _, started = this_process().split(" ")
    assert not is_gone(f"{host} {boot} {pid} {started}")


def test_a_machine_that_does_not_say_when_it_was_started_cannot_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of them, or one before and after a restart, look the same there."""
    host, _, pid, _ = this_process().split(" ")
    monkeypatch.setattr(leadership, "_boot_id", lambda: "")
    assert not is_gone(f"{host}  {pid} 1")


def test_only_another_holder_is_a_reason_to_end() -> None:
    """A database that is away may come back, and whoever leads is to be there then."""
    assert is_lost(Unavailable(leases.LOST, "another coordinator has taken over"))
    assert not is_lost(Unavailable("DATABASE_UNREACHABLE", "the database does not answer"))
    assert not is_lost(OSError("a disk"))
