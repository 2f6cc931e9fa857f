"""`feddp agent approve`: jobs that wait for somebody at the hospital, and the answers to them."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.failures import FAILED
from feddp.cli.options import Json

if TYPE_CHECKING:
    from node_agent.policy.letting_in import Asking, JobAsked

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]


def approve(
    folder: Folder,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job to let in.")] = "",
    list_: Annotated[
        bool, typer.Option("--list", help="Show what waits, what was answered, and what is let in.")
    ] = False,
    rejected: Annotated[
        str,
        typer.Option("--reject", metavar="JOB", help="Refuse this job until it is let in."),
    ] = "",
    project: Annotated[
        str,
        typer.Option("--withdraw", metavar="PROJECT", help="Take back that this one was let in."),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")] = False,
    as_json: Json = False,
) -> None:
    """Let in a project's first job, which waits where policy.yaml says `approve_first_job: true`.

    Shows first what the job is. It lets in its project: later jobs need no approval, until
    `--withdraw`. The agent may run; it asks for the order within seconds. Exit code 1 if nothing
    was done.
    """
    if sum(map(bool, (list_, job_id, rejected, project))) != 1:
        raise typer.BadParameter("give one of: a JOB, --list, --reject JOB, --withdraw PROJECT")
    if list_:
        _list(folder, as_json=as_json)
    elif project:
        _withdraw(folder, project, as_json=as_json)
    else:
        _answer(folder, job_id or rejected, ask=not yes, refuse=bool(rejected), as_json=as_json)


def _list(folder: Path, *, as_json: bool) -> None:
    from node_agent.policy.letting_in import asked_for_approval

    found = asked_for_approval(folder)
    if as_json:
        output.print_json(asdict(found))
        return
    _tables(found)


def _tables(found: "Asking") -> None:
    headers = ("JOB", "PROJECT", "SIGNED BY", "UNTIL", "TASK", "DATA SET", "EPSILON", "ROUNDS")
    output.table(
        (*headers, "ASKED", "ANSWER"),
        [
            (
                *(one.job_id, one.project, one.signed_by or "nobody", _until(one)),
                *(_task(one), one.data_set, _epsilon(one), _rounds(one)),
                *(output.moment(one.asked_at_s), _answered(one)),
            )
            for one in found.jobs
        ],
    )
    for known in found.projects:
        since = f"since {output.moment(known.since_s)}" if known.since_s else "it has worked here"
        output.line(f"project {known.project} is let in: {since}")


def _answer(folder: Path, job_id: str, *, ask: bool, refuse: bool, as_json: bool) -> None:
    from node_agent.policy.letting_in import let_in, reject, seen

    asks = ask and not as_json and is_terminal()
    if asks:
        output.note(_said(seen(folder, job_id)))
        question = "Refuse it?" if refuse else "Let in this job, and with it its project?"
        if not typer.confirm(question, err=True):
            output.line("nothing was changed")
            raise typer.Exit(FAILED)
    found = (reject if refuse else let_in)(folder, job_id)
    if not asks and not as_json:
        output.note(_said(found))
    if as_json:
        output.print_json({"jobs": [asdict(found)]})
    elif refuse:
        output.line(f"job {job_id} is refused here; `feddp agent approve {job_id}` lets it in")
    else:
        output.line(
            f"job {job_id} is let in, and so is every later job of project {found.project}; "
            f"`feddp agent approve --withdraw {found.project}` takes that back"
        )


def is_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


def _withdraw(folder: Path, project: str, *, as_json: bool) -> None:
    from node_agent.policy.letting_in import withdraw

    withdraw(folder, project)
    if as_json:
        output.print_json({"withdrawn": project})
    else:
        output.line(f"project {project} is let in no more: its next order waits for approval")


def _said(one: "JobAsked") -> str:
    lines = [
        ("job", f"{one.job_id} of project {one.project}"),
        ("signed by", one.signed_by or "nobody: all of this is the coordinator's word"),
        ("signed until", _until(one)),
        ("task", one.task),
        ("data set", one.data_set),
        ("epsilon", _epsilon(one)),
        ("rounds", _rounds(one)),
        ("asked", output.moment(one.asked_at_s)),
    ]
    return "\n".join(f"{name:<12}  {value}" for name, value in lines)


def _until(one: "JobAsked") -> str:
    return output.moment(one.signed_until_s) if one.signed_until_s is not None else "-"


def _task(one: "JobAsked") -> str:
    """Short enough for a table; the hash is `allow`'s, or the job would have been refused."""
    return one.task.partition("@")[0]


def _epsilon(one: "JobAsked") -> str:
    if one.mechanism == "no_data":
        return "reads no data"
    if one.mechanism == "none":
        return "WITHOUT NOISE"
    return f"at most {output.epsilon(one.epsilon)}" if one.epsilon else "not said"


def _rounds(one: "JobAsked") -> str:
    return f"at most {one.rounds}" if one.rounds is not None else "not said"


def _answered(one: "JobAsked") -> str:
    at_s = one.approved_at_s or one.rejected_at_s
    return f"{one.state} {output.moment(at_s)}" if at_s else one.state
