"""`python -m tests.chaos.shim ARGUMENTS`: the command `feddp` with kill points woven into it.

Environment:
    FEDDP_KILL_AT: the point at which the process sends itself SIGKILL.
    FEDDP_KILL_PASS: at which passing of it; 1 unless set.
    FEDDP_KILL_FILE: a file that may name such points at any time, one a line; each is taken out
        before the kill, so that the next life is not killed too.
    FEDDP_POINTS_SEEN: a file; each point is appended when it is passed.
    FEDDP_COMMIT_FAULT: a file; while it says "before" or "after", each commit fails: undone, or
        done without the process hearing of it, as when the connection to a database breaks.

`--nursery ROLE` loads what a role needs once and then starts a process for each request line on
stdin: a fork takes a twentieth of the time that imports take. Each is a process of its own.
"""

import builtins
import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final

from tests.chaos import points

PR_SET_PDEATHSIG: Final = 1

ROLES: Final = {"coordinator": "coordinator.server", "agent": "node_agent.agent"}


class Points:
    """What this process does at its points."""

    def __init__(self) -> None:
        self._left = 0
        self._target = ""
        self._kill_file = ""
        self._seen_file = ""
        self._fault_file = ""

    def arm(self, environment: dict[str, str]) -> None:
        """Take up what the environment asks for."""
        self._target = environment.get("FEDDP_KILL_AT", "")
        self._left = int(environment.get("FEDDP_KILL_PASS", "1"))
        self._kill_file = environment.get("FEDDP_KILL_FILE", "")
        self._seen_file = environment.get("FEDDP_POINTS_SEEN", "")
        self._fault_file = environment.get("FEDDP_COMMIT_FAULT", "")

    def passing(self, point: str) -> None:
        """Note the point; die if it is the one."""
        if self._seen_file:
            self._note(point)
        if point == self._target:
            self._left -= 1
            if self._left == 0:
                die()
        if self._kill_file and self._disarmed(point):
            die()

    def check_commit(self, moment: str) -> None:
        """Raise what a database raises whose disk is gone, if that is asked for."""
        try:
            with open(self._fault_file) as file:
                wanted = file.read()
        except FileNotFoundError:
            return
        if wanted == moment:
            raise sqlite3.OperationalError("disk I/O error")

    def _disarmed(self, point: str) -> bool:
        """Whether the file names the point; it does so no more afterwards."""
        try:
            with open(self._kill_file) as file:
                named = file.read().split()
        except FileNotFoundError:
            return False
        if point not in named:
            return False
        named.remove(point)
        with open(f"{self._kill_file}.new", "w") as file:
            file.write("\n".join(named))
        os.replace(f"{self._kill_file}.new", self._kill_file)
        return True

    def _note(self, point: str) -> None:
        descriptor = os.open(self._seen_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, f"{point}\n".encode())
        finally:
            os.close(descriptor)


def die() -> None:
    """kill -9 of this very process; nothing of it runs after this."""
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # another thread may be told first


POINTS: Final = Points()


def reply(name: str, value: Any, context: Any) -> Any:
    """A service method's answer: it leaves after the method has returned."""
    POINTS.passing(f"{name}:before")
    context.add_done_callback(lambda _: POINTS.passing(f"{name}:after"))
    return value


class Transaction:
    """A transaction that passes its points just before and just after its commit."""

    def __init__(self, name: str, inner: AbstractContextManager[Any]) -> None:
        self._name = name
        self._inner = inner
        self._journal: list[str] = []

    def __enter__(self) -> Any:
        entered = self._inner.__enter__()
        info = getattr(entered, "info", None)
        if isinstance(info, dict):
            self._journal = info["chaos_journal"] = []
        return entered

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if error is not None:
            return self._inner.__exit__(kind, error, traceback)
        names = [self._name, *(f"{points.JOURNAL}:{one}:journal" for one in self._journal)]
        for name in names:
            POINTS.passing(f"{name}:before")
        try:
            POINTS.check_commit("before")
        except sqlite3.OperationalError as fault:
            self._inner.__exit__(type(fault), fault, None)
            raise
        answer = self._inner.__exit__(None, None, None)
        POINTS.check_commit("after")
        for name in names:
            POINTS.passing(f"{name}:after")
        return answer


def watch_journal() -> None:
    """Note in each transaction which steps of jobs it writes."""
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "before_cursor_execute")
    def before(
        connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        journal = connection.info.get("chaos_journal")
        if journal is None or not statement.startswith("INSERT INTO journal"):
            return
        for row in parameters if many else [parameters]:
            values = row.values() if isinstance(row, dict) else row
            for value in values:
                if isinstance(value, (bytes, memoryview)):
                    journal.append(json.loads(bytes(value))["kind"])


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with its points in it; never from a cache."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree, _ = points.weave(fullname, self.get_data(path), path)
        return compile(tree, path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of a role."""

    def __init__(self, role: str) -> None:
        self._paths = dict(points.modules(role))

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        path = self._paths.get(fullname)
        if path is None or path.name == "__init__.py":
            return None
        loader = Loader(fullname, str(path))
        return importlib.util.spec_from_file_location(fullname, path, loader=loader)


def install(role: str) -> None:
    """Make every import of the role's code pass its points."""
    names: dict[str, Callable[..., Any]] = {
        points.PASS: POINTS.passing,
        points.REPLY: reply,
        points.TRANSACTION: Transaction,
    }
    for name, value in names.items():
        setattr(builtins, name, value)
    sys.meta_path.insert(0, Finder(role))
    if role == "coordinator":
        watch_journal()


def run(arguments: list[str]) -> None:
    """Be the command."""
    POINTS.arm(dict(os.environ))
    from feddp.cli.app import main

    main(arguments)


def nursery(role: str) -> None:
    """Start a process for each line on stdin; end with it.

    A request is {"arguments", "environment", "log"}, the answer {"pid"}.
    """
    install(role)
    importlib.import_module(ROLES[role])
    importlib.import_module("feddp.cli.app")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _born(request)
        print(json.dumps({"pid": pid}), flush=True)  # noqa: T201


def _born(request: dict[str, Any]) -> None:
    """Be one of its processes; does not return."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed test leaves nothing
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    descriptor = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, descriptor), (2, descriptor)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    code = 1
    try:
        run(request["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    # The module that the woven code calls must be the one that is armed, not `__main__`.
    from tests.chaos import shim

    words = sys.argv[1:]
    if words[:1] == ["--nursery"]:
        shim.nursery(words[1])
    else:
        shim.install("agent" if words[:1] == ["agent"] else "coordinator")
        shim.run(words)
