"""A Slurm cluster of one machine; where Slurm is not installed, what its commands answered.

The answers were recorded from slurm-wlm 22.05.8; the stand-in's jobs are processes here.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from feddp.demo.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
IS_INSTALLED = all(shutil.which(name) for name in PROGRAMS) and os.getuid() == 0
READY_S_MAX = 30.0


def version() -> str:
    """What the tests run against; stands in their names."""
    if not IS_INSTALLED:
        return "recorded-answers"
    said = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True)
    return f"slurmctld-{said.stdout.split()[-1]}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster.

    Attributes:
        variables: with which its commands find it.
        is_real: whether there is a slurmctld.
    """

    folder: Path
    variables: dict[str, str]
    is_real: bool

    def run(self, *arguments: str, said: str = "") -> str:
        """What one of its commands prints."""
        done = subprocess.run(
            arguments,
            input=said,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **self.variables},
        )
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """Ids of jobs that wait or run."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def control_stops(self) -> None:
        """Nobody answers its commands any more; jobs run on."""
        if self.is_real:
            os.kill(int((self.folder / "slurmctld.pid").read_text()), signal.SIGKILL)
        else:
            (self.folder / "down").touch()

    def control_starts(self) -> None:
        """It answers again."""
        if not self.is_real:
            (self.folder / "down").unlink()
            return
        _daemon(self, "slurmctld")
        until(lambda: "idle" in self._nodes() or "mix" in self._nodes() or "alloc" in self._nodes())

    def _nodes(self) -> str:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **self.variables},
        )
        return done.stdout


def until(holds: Any, limit_s: float = READY_S_MAX) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start one, and end it with all its jobs."""
    made = _real(folder) if IS_INSTALLED else _recorded(folder)
    try:
        yield made
    finally:
        if made.is_real:
            for name in ("slurmctld", "slurmd", "munged"):
                path = folder / f"{name}.pid"
                if path.exists():
                    _end(int(path.read_text()))
            # A job's last process asks a slurmctld that is gone for ever to note the job's end.
            for pid in _of(made):
                _end(pid)
        else:
            for path in folder.glob("job-*.pid"):
                _end(int(path.read_text()))


def _of(made: Cluster) -> list[int]:
    """Processes that were started for this cluster and no other."""
    mine = f"SLURM_CONF={made.variables['SLURM_CONF']}\0".encode()
    found = []
    for process in psutil.process_iter():
        try:
            # As it is: Slurm writes its title over the block's beginning.
            if process.name().startswith("slurm") and mine in _environment(process.pid):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _real(folder: Path) -> Cluster:
    name = socket.gethostname().partition(".")[0]
    control_port, node_port = free_ports(2)
    for each in ("state", "spool"):
        (folder / each).mkdir()
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(
        f"""\
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={control_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=2
MessageTimeout=5
SchedulerParameters=sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={name} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=600 State=UP OverSubscribe=FORCE:8
"""
    )
    made = Cluster(folder, {"SLURM_CONF": str(folder / "slurm.conf")}, is_real=True)
    # Its folder is root's alone above: munged is told not to mind where it is.
    subprocess.run(
        [
            *("munged", "--force", f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"),
        ],
        check=True,
        capture_output=True,
    )
    _daemon(made, "slurmctld")
    _daemon(made, "slurmd")
    until(lambda: "idle" in made._nodes())
    return made


def _daemon(made: Cluster, name: str) -> None:
    subprocess.run(
        [name],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **made.variables},
    )


STAND_IN = """#!{python}
import os, signal, subprocess, sys
from pathlib import Path
home, program = Path("{folder}"), Path(sys.argv[0]).name
options = dict(one[2:].partition("=")[::2] for one in sys.argv[1:] if one.startswith("--"))
def fail(text):
    sys.exit(sys.stderr.write(text + "\\n") and 1)
if (home / "down").exists():
    fail("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
def alive(number):
    try:
        return "Z" not in Path("/proc/" + (home / f"job-{{number}}.pid").read_text() + "/stat"
            ).read_text().rpartition(")")[2]
    except OSError:
        return False
if program == "sbatch":
    number = 1 + len(list(home.glob("job-*.pid")))
    script = home / f"job-{{number}}.sh"
    script.write_text(sys.stdin.read())
    with open(options["output"], "ab") as log:
        job = subprocess.Popen(["/bin/sh", str(script)], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True, cwd="/")
    (home / f"job-{{number}}.name").write_text(options.get("job-name", "sbatch"))
    (home / f"job-{{number}}.pid").write_text(str(job.pid))
    print(number)
elif program == "squeue":
    numbers = [int(path.name[4:-4]) for path in home.glob("job-*.pid")]
    if "jobs" in options:
        if int(options["jobs"]) not in numbers:
            fail("slurm_load_jobs error: Invalid job id specified")
        numbers = [int(options["jobs"])]
    for number in numbers:
        live = alive(number)
        if live or options.get("states") == "all":
            name = (home / f"job-{{number}}.name").read_text()
            state = "RUNNING" if live else "CANCELLED"
            shown = options["format"].replace("%i", str(number)).replace("%j", name)
            print(shown.replace("%T", state).replace("%r", "None"))
elif program == "scancel":
    path = home / f"job-{{sys.argv[1]}}.pid"
    if path.exists() and alive(int(sys.argv[1])):
        os.killpg(int(path.read_text()), signal.SIGKILL)
"""


def _recorded(folder: Path) -> Cluster:
    programs = folder / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (programs / name).write_text(STAND_IN.format(python=sys.executable, folder=folder))
        (programs / name).chmod(0o755)
    return Cluster(folder, {"PATH": f"{programs}:{os.environ['PATH']}"}, is_real=False)
