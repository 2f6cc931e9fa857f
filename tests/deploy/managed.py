"""What systemd would do, for tests: starts and stops real processes by name, each of the version
that its link names, and ends before they do.

    python managed.py start|stop NAME FOLDER

FOLDER holds `NAME.json` ({"config", "environment", "log"}), `run/NAME` (a link to a version's
folder) and, while it runs, `NAME.pid`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STOP_S_MAX = 40.0


def start(name: str, folder: Path) -> None:
    """As a service: in a session of its own, its output to its log."""
    about = json.loads((folder / f"{name}.json").read_text())
    program = (folder / "run" / name).resolve() / "bin/feddp"
    with Path(about["log"]).open("ab") as log:
        process = subprocess.Popen(
            [program, "coordinator", "serve", "--config", about["config"]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **about["environment"]},
        )
    (folder / f"{name}.pid").write_text(str(process.pid))


def stop(name: str, folder: Path) -> None:
    """SIGTERM, and wait for its end; nothing where it does not run."""
    pid_file = folder / f"{name}.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    deadline_s = time.monotonic() + STOP_S_MAX
    if runs(pid):
        os.kill(pid, signal.SIGTERM)
    while runs(pid):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{name} did not end")
        time.sleep(0.05)
    pid_file.unlink()


def runs(pid: int) -> bool:
    """Whether it has not ended; a zombie has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    {"start": start, "stop": stop}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
