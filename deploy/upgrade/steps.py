"""Steps of a procedure: printed first, then done one by one, each checked before the next.

Nothing but the standard library, so that it runs wherever a Python is.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

LOOK_AGAIN_S: Final = 0.5
COMMAND_S_MAX: Final = 3600.0
ENDS_S_MAX: Final = 30.0
"""For a command that was told to end, as this script was; `helm` notes what became of a release."""
TOLD_CHARACTERS: Final = 2000
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Command = tuple[str, ...]
Expect = Callable[[Sequence[str]], str]
"""Is given what each of the step's commands printed; what is wrong with that, or ""."""


def anything(_: Sequence[str]) -> str:
    """Whatever it printed, it ended with 0."""
    return ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        says: what it is for.
        commands: run one after the other, without a shell.
        expect: what they must have printed.
        within_s: they are run again until all ended with 0 and printed what is expected.
        back: the commands that take back what was done up to here, should this step fail; None
            where there is no way back.
    """

    says: str
    commands: tuple[Command, ...]
    expect: Expect = anything
    within_s: float = 0.0
    back: tuple[Command, ...] | None = ()


@dataclass(slots=True)
class Ledger:
    """How many entries there were, so that none is missing afterwards."""

    entries: int = 0

    def before(self, printed: Sequence[str]) -> str:
        """Of `budget verify --json`: remember how many there are."""
        found = json.loads(printed[0])
        self.entries = int(found["entries"])
        return "" if found["verified"] else "the ledger does not verify"

    def after(self, printed: Sequence[str]) -> str:
        """Of `budget verify --json`: nothing was lost."""
        found = json.loads(printed[0])
        if not found["verified"]:
            return "the ledger does not verify"
        if found["entries"] < self.entries:
            return f"{self.entries} entries were there before, and now {found['entries']}"
        return ""

    def unchanged(self, printed: Sequence[str]) -> str:
        """Of `budget verify --json`: nothing was lost, and nothing booked."""
        found = json.loads(printed[0])
        if found["entries"] > self.entries:
            return f"{found['entries'] - self.entries} entries were booked meanwhile"
        return self.after(printed)

    def nothing_open(self, printed: Sequence[str]) -> str:
        """Of `budget ledger --json`: every reservation is posted or void."""
        entries = json.loads(printed[0])["entries"]
        reserved = {one["attempt_id"] for one in entries if one["kind"] == "reserve"}
        done = {one["attempt_id"] for one in entries if one["kind"] in ("post", "void")}
        if still := reserved - done:
            return f"{len(still)} reservations are still open at the hospitals"
        self.entries = len(entries)
        return ""


def no_job_runs(printed: Sequence[str]) -> str:
    """Of `job list --json`: none is under way."""
    found: Any = json.loads(printed[0])
    listed = found["jobs"] if isinstance(found, dict) else found
    running = [one["job_id"] for one in listed if not one.get("ended_at")]
    return f"jobs are not at their end: {', '.join(running)}" if running else ""


def may_roll(printed: Sequence[str]) -> str:
    """Of `coordinator upgrade --plan --json`: older coordinators may serve meanwhile."""
    found = json.loads(printed[-1])
    if not found["needs_stop"]:
        return ""
    stop = [one["revision"] for one in found["migrations"] if not one["older_may_serve"]]
    return f"the migrations {', '.join(stop)} need a stop: use blue_green.py instead"


def nobody_serves(printed: Sequence[str]) -> str:
    """Of `coordinator upgrade --plan --json`: no coordinator has this database."""
    if not (host := json.loads(printed[0])["served_by"]):
        return ""
    return (
        f"a coordinator on {host} serves from blue's database: green's coordinator.yaml or "
        "environment has to name the copy"
    )


def may_go_back(printed: Sequence[str]) -> str:
    """Of `coordinator upgrade --plan --json`, of the newer version and of the older one."""
    oldest = json.loads(printed[0])["oldest_that_serves"]
    newest = json.loads(printed[1])["newest"]
    if newest >= oldest:
        return ""
    return (
        f"the older version knows the tables up to {newest}, and they may be served from {oldest} "
        "on: go forward, or back to a backup (docs/upgrading.md)"
    )


def runs_pods(printed: Sequence[str]) -> str:
    """Of `helm get values`: the coordinator is not stopped."""
    values = json.loads(printed[0]) or {}
    if not (values.get("coordinator") or {}).get("stopped"):
        return ""
    return (
        "it has coordinator.stopped, as after a blue-green upgrade: after it no coordinator would "
        "run. Go back by `helm rollback` to the revision before that one, or to a backup "
        "(docs/upgrading.md)"
    )


def is_ready(printed: Sequence[str]) -> str:
    """Of /ready."""
    return "" if json.loads(printed[0]).get("ready") else "it is not ready"


def one_leads(printed: Sequence[str]) -> str:
    """Of the /metrics of every replica."""
    leading = sum(LEADS in page for page in printed)
    return "" if leading == 1 else f"{leading} of them lead"


NOT_FOUND: Final = 3
NO_ACCOUNT: Final = json.dumps({"verified": True, "entries": 0})

LEADS: Final = "feddp_leading 1.0"


class Interrupted(BaseException):
    """Somebody ended the script, or the session that it ran in; str() is the signal's name."""


class Log:
    """What is said, on the screen and in a file: the screen may be gone before the last word."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a")

    def say(self, text: str) -> None:
        """A line, at once."""
        print(text, file=self._file, flush=True)
        try:
            print(text, flush=True)
        except OSError:  # the terminal was closed
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def script(main: Callable[[], int]) -> int:
    """Run a script's `main`, so that what ends it from outside is `Interrupted`; the exit code."""
    for one in SIGNALS:
        # nohup and the like have it ignored.
        if signal.getsignal(one) is not signal.SIG_IGN:
            signal.signal(one, _interrupt)
    try:
        return main()
    except Interrupted as error:
        print(f"nothing was done: interrupted by {error}")
        return 1


def _interrupt(number: int, _: FrameType | None) -> None:
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # what is said then is said to its end
    raise Interrupted(signal.Signals(number).name)


def carry_out(title: str, steps: Sequence[Step], *, run: bool, backup: str, anew: str) -> int:
    """Print the plan and, if so asked, do it; the exit code.

    Args:
        backup: the file that a backup goes to; what is said goes to one beside it, with `.log`.
        anew: what has to be another one, or gone, before the same script can be run again.
    """
    print(title)
    for number, step in enumerate(steps, 1):
        print(f"{number:>2}. {step.says}")
        for command in step.commands:
            print(f"      {shlex.join(command)}")
    if not run:
        print("nothing was done: --run does it")
        return 0
    missing = sorted(
        {one[0] for step in steps for one in step.commands if not shutil.which(one[0])}
    )
    if missing:
        print(f"nothing was done: not found here: {', '.join(missing)}")
        return 2
    try:
        log = Log(Path(f"{backup}.log"))
    except OSError as error:
        print(f"nothing was done: {backup}.log cannot be written ({error.strerror})")
        return 2
    log.say(f"{title}; {log.path} keeps what is said from here on")
    # From its beginning to that of the next one, a step's way back is the one to go.
    at, wrong = 0, ""
    try:
        for at, step in enumerate(steps, 1):
            log.say(f"{at:>2}. {step.says} ...")
            began_s = time.monotonic()
            if wrong := _until(step):
                break
            log.say(f"    done after {time.monotonic() - began_s:.1f} s")
    except Interrupted as error:
        wrong = f"interrupted by {error}; its commands may have done their work, or a part of it"
    if wrong:
        return _stopped(log, at, steps[max(at, 1) - 1], wrong, anew)
    log.say("done: every step was checked")
    return 0


def _until(step: Step) -> str:
    """Do it, again where it is waited for; what is wrong, or ""."""
    deadline_s = time.monotonic() + step.within_s
    while True:
        wrong = _once(step)
        if not wrong or time.monotonic() >= deadline_s:
            return wrong
        time.sleep(LOOK_AGAIN_S)


def _once(step: Step) -> str:
    printed = []
    for command in step.commands:
        try:
            done = _ran(command)
        except subprocess.TimeoutExpired:
            return f"{shlex.join(command)} did not end within {COMMAND_S_MAX:.0f} s"
        if _has_no_account(command, done):
            printed.append(NO_ACCOUNT)
            continue
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-TOLD_CHARACTERS:]
            return f"{shlex.join(command)} ended with {done.returncode}:\n{said}"
        printed.append(done.stdout)
    try:
        return step.expect(printed)
    except (ValueError, KeyError, TypeError):
        return f"{shlex.join(step.commands[-1])} printed something else than expected"


def _has_no_account(command: Command, done: subprocess.CompletedProcess[str]) -> bool:
    """Whether `budget verify` found nothing that it could verify, as before the first account is
    opened. Where there had been entries, they are then missing, which is seen."""
    return (
        {"budget", "verify"} <= set(command)
        and done.returncode == NOT_FOUND
        and any(word in done.stderr for word in ("NOTHING_TO_VERIFY", "there is no account"))
    )


def _ran(command: Command) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`; one that is under way when the script is ended is told to end, too."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            printed, error = process.communicate(timeout=COMMAND_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        except Interrupted:
            process.terminate()
            try:
                process.wait(ENDS_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, printed, error)


def _stopped(log: Log, number: int, step: Step, wrong: str, anew: str) -> int:
    log.say(f"stopped at step {number}: {wrong}")
    if step.back is None:
        log.say("there is no way back from here: docs/upgrading.md says how to go on")
        return 1
    if step.back:
        log.say("to go back:")
        for command in step.back:
            log.say(f"      {shlex.join(command)}")
    else:
        log.say("nothing was changed: there is nothing to take back")
    log.say(f"to begin again after that: {anew}")
    return 1


def replies(commands: Sequence[Command]) -> list[str]:
    """What each command printed; "" for one that failed."""
    found = []
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        found.append(done.stdout if done.returncode == 0 else "")
    return found
