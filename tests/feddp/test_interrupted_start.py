"""Ctrl-C while a command still loads."""

import signal
import subprocess
import sys

LOADING = """
import importlib.abc, os, signal, sys
from feddp.__main__ import main

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "feddp.cli.budget":
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupting())
sys.argv = ["feddp", "budget", "verify", "--help"]
main()
"""


def test_an_interrupted_start_ends_without_a_traceback() -> None:
    """As of any command that the shell ends. (A run in a shell's background ignores interrupts.)"""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + LOADING
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_who_starts_it_with_interrupts_ignored_is_not_interrupted() -> None:
    """As `nohup` or a shell's background does."""
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + LOADING
    ended = subprocess.run([sys.executable, "-c", ignoring], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Usage: feddp budget verify" in ended.stdout
