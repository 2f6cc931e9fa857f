"""Following a job to its end: live in a terminal, a line a change in a pipe, or JSON."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from feddp.cli.failures import BUDGET, FAILED
from feddp.cli.guarantees import GUARANTEE, RUNNING
from feddp.cli.job_text import Changes, drift_text, node_rows, target_text, waiting_text
from feddp.cli.output import as_dict, clean, line, note, print_json, rich_table
from protos.errors import FeddpError, Internal
from protos.feddp.v1.jobs_pb2 import Job

if TYPE_CHECKING:
    from feddp.client import Client

_CODES = {"converged": 0, "completed": 0, "budget_exhausted": BUDGET}


class View(Protocol):
    """What is told while a job goes on."""

    def job(self, job: Job) -> None:
        """The job as it is now."""

    def away(self, message: str) -> None:
        """The coordinator was lost; it is being waited for."""


def code_of(job: Job) -> int:
    """The exit code that an ended job stands for."""
    return _CODES.get(job.status, FAILED)


def follow(client: "Client", job_id: str, how: str, each: Callable[[], None] = lambda: None) -> Job:
    """Tell how a job goes until it has ended, and return it.

    Args:
        how: "people" (live in a terminal, else lines), "json-changes" (one line a change) or
            "json-end" (the ended job).
        each: called at every sign of the job, at least every 10 s; may raise to stop.

    Raises:
        FeddpError: what the coordinator answered, or it stayed away.
    """
    with _view(how) as view:
        last: Job | None = None
        for job in client.watch(job_id, view.away):
            each()
            # The stream repeats itself every 10 s, which is no change.
            if job != last:
                view.job(job)
            last = job
    if last is None:
        raise Internal("JOB_LOST", f"nothing was heard of job {job_id}; ask `feddp job show` again")
    if how == "json-end":
        print_json(as_dict(last))
    return last


def write_report(
    client: "Client", job: Job, path: Path, metrics: dict[str, Any] | None = None
) -> bool:
    """Write the HTML report of an ended job; False, and a note why, if that could not be done."""
    from feddp.evaluation import evaluation_of
    from feddp.report import render
    from protos.content import write_durable

    try:
        whole, spec = client.job_and_spec(job.job_id)
        accounts = client.accounts(job.data_set)
        found = evaluation_of(client.download, whole, spec)
        text = render(whole, metrics=metrics, accounts=accounts, spec=spec, evaluation=found)
        write_durable(path, text.encode(), mode=0o644)
    except (FeddpError, OSError) as error:
        why = error.message if isinstance(error, FeddpError) else (error.strerror or "not written")
        note(f"no report at {path}: {why}")
        return False
    return True


@contextmanager
def _view(how: str) -> Iterator[View]:
    if how != "people":
        yield _Json(changes=how == "json-changes")
    elif sys.stdout.isatty():
        from rich.live import Live

        with Live(refresh_per_second=4, transient=False) as live:
            yield _Screen(live)
    else:
        yield _Lines()


class _Json:
    def __init__(self, *, changes: bool) -> None:
        self._changes = changes

    def job(self, job: Job) -> None:
        if self._changes:
            print_json(as_dict(job), one_line=True)

    def away(self, message: str) -> None:
        note(f"waiting for the coordinator: {message}")


class _Lines:
    def __init__(self) -> None:
        self._changes = Changes()

    def job(self, job: Job) -> None:
        for text in self._changes.of(job):
            line(text)

    def away(self, message: str) -> None:
        note(f"waiting for the coordinator: {message}")


class _Screen:
    def __init__(self, live: Any) -> None:
        self._live = live
        self._last: Job | None = None

    def job(self, job: Job) -> None:
        self._last = job
        self._live.update(_screen(job))

    def away(self, message: str) -> None:
        from rich.console import Group
        from rich.text import Text

        parts = [] if self._last is None else [_screen(self._last)]
        text = Text(clean(f"waiting for the coordinator: {message}"), style="yellow")
        self._live.update(Group(*parts, text))


def _screen(job: Job) -> Any:
    from rich import box
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    total = max(1, job.rounds_planned)
    rounds = Table.grid(padding=(0, 1))
    rounds.add_row(
        Text(clean(job.name), style="bold"),
        ProgressBar(total=total, completed=job.rounds_done, width=40),
        Text(f"{job.rounds_done}/{job.rounds_planned} rounds, {clean(job.status)}, {job.phase}"),
    )
    parts: list[Any] = [rounds, Text(f"target: {target_text(job)}", style="dim")]
    if drift := drift_text(job):
        parts.append(Text(f"drift of the global model: {drift}", style="dim"))
    parts.append(rich_table(*node_rows(job), frame=box.SIMPLE_HEAD))
    parts.append(Text(f"{RUNNING} {GUARANTEE}", style="dim"))
    parts += [
        Text(clean(f"waiting for {waiting_text(one)}"), style="yellow") for one in job.waiting
    ]
    if job.message:
        parts.append(Text(clean(job.message)))
    return Group(*parts)
