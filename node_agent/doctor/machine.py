"""This machine: whose account runs, disk, memory, GPU, and what training needs installed."""

import contextlib
import errno
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from node_agent.doctor.report import Check, size
from node_agent.folder.config import AgentConfig, Folder
from node_agent.launchers.base import WORKER_BYTES_MIN

WRITTEN_BYTES: Final = 4 << 20
"""About what the agent writes for one small job: rows of its ledger, a model and an update."""

FREE_BYTES_WARNED: Final = 2 << 30
MEMORY_BYTES_WARNED: Final = 1 << 30
CHILD_S_MAX: Final = 60.0
_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")


def check_account(folder: Folder) -> Check:
    """Whether this process sees the folder as the agent does."""
    # Not the folder's owner: root owns it where the steward's files are apart from the agent's.
    kept = folder.state_db if folder.state_db.exists() else folder.identity
    owner, own = kept.stat().st_uid, os.geteuid()
    if owner == own:
        return Check("account", "ok", f"this runs as {_name(own)}, who owns {kept}")
    return Check(
        "account",
        "warning",
        f"this runs as {_name(own)}, and {kept} is {_name(owner)}'s: what one may read and "
        "write, the other may not",
        f"run it as the agent does: sudo -u {_name(owner)} feddp agent doctor --dir {folder.root}",
    )


def check_disk(folder: Folder) -> Check:
    """Whether the agent can write, by writing; and how much more it could."""
    place = folder.root
    try:
        free = shutil.disk_usage(folder.root).free
        if folder.spool.is_dir() and (there := shutil.disk_usage(folder.spool).free) < free:
            place, free = folder.spool, there  # another disk may be mounted there
        _write(folder.spool if folder.spool.is_dir() else folder.root)
    except OSError as error:
        found = f"{size(WRITTEN_BYTES)} cannot be written under {folder.root}: {error.strerror}"
        do = "free room on that disk, or let the agent's account write there"
        if error.errno == errno.EROFS:
            do = (
                "have it made writable again (a disk that fails is made so by the kernel: see "
                "`dmesg`), and save the folder to another disk: `feddp agent backup FILE`"
            )
        return Check("disk", "failed", found, f"{do}; until then it takes no work")
    found = f"{size(free)} free under {place}"
    if free < FREE_BYTES_WARNED:
        do = "free some room: models and updates wait there, each as large as the model"
        return Check("disk", "warning", found, do)
    return Check("disk", "ok", found)


def check_memory(config: AgentConfig | None) -> Check:
    """What a worker could get now."""
    available = _available_bytes()
    if available is None:
        return Check("memory", "skipped", "this system does not say how much is available")
    limit = config.worker.memory_bytes_max if config is not None else 0
    found = f"{size(available)} available"
    if limit:
        found += f", {size(limit)} allowed to a worker (worker.memory_bytes_max)"
    least = min(available, limit) if limit else available
    if least < WORKER_BYTES_MIN:
        do = f"training needs {size(WORKER_BYTES_MIN)} at least: free memory, or raise the limit"
        return Check("memory", "failed", found, do)
    if least < MEMORY_BYTES_WARNED:
        return Check("memory", "warning", found, "1 GiB leaves room for training beside the rest")
    return Check("memory", "ok", found)


def check_training() -> Check:
    """Whether a worker could load what it trains with; in a child, as it takes 300 MiB here."""
    code = "import torch, opacus; print(torch.__version__, opacus.__version__)"
    ran = _child([sys.executable, "-P", "-W", "ignore", "-c", code])
    if ran is None:
        found = f"torch did not load within {CHILD_S_MAX:.0f} s"
        return Check("training", "warning", found, "the disk or the machine is very slow")
    if ran.returncode != 0:
        return Check(
            "training",
            "failed",
            "torch and opacus cannot be loaded",
            "install them into the agent's environment: pip install 'feddp[agent]'",
        )
    torch, opacus = ran.stdout.split()[:2]
    return Check("training", "ok", f"torch {torch}, opacus {opacus}")


def check_gpu() -> Check:
    """What graphics processors there are; none is needed."""
    try:
        ran = _child(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    except OSError:  # also where a folder of PATH may not be entered
        return Check("gpu", "ok", "none found (no nvidia-smi); the installed tasks need none")
    if ran is None or ran.returncode != 0:
        do = "the driver does not answer; the installed tasks train without it"
        return Check("gpu", "warning", "nvidia-smi reports an error", do)
    listed = "; ".join(one.strip() for one in ran.stdout.splitlines() if one.strip())
    return Check("gpu", "ok", f"{listed or 'none'}; the installed tasks train on the CPU")


def _write(folder: Path) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".doctor.", suffix=".partial", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Not zeros: some file systems keep them for nothing.
            file.write(os.urandom(WRITTEN_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        os.unlink(name)


def _available_bytes() -> int | None:
    """MemAvailable, or what a container may have if that is less."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(
            int(next(one for one in lines if one.startswith("MemAvailable")).split()[1]) << 10
        )
    with contextlib.suppress(OSError, ValueError):
        found.append(int(_CGROUP.read_text()))
    return min(found, default=None)


def _child(words: list[str]) -> subprocess.CompletedProcess[str] | None:
    """A child that has ended; None for one that did not in time."""
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=CHILD_S_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
