"""`feddp job`: submit, look at, follow and cancel training jobs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import job_key, output
from feddp.cli.groups import noun
from feddp.cli.options import Dir, Json, ProfileFolder, connect

if TYPE_CHECKING:
    from certs.mandates import Mandate
    from feddp.client import Client
    from protos.feddp.v1.jobs_pb2 import Job

app = noun("Submit, follow and cancel training jobs.")
app.add_typer(job_key.app, name="key")

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Where the HTML report goes. Default: feddp-report-ID.html in this folder.",
    ),
]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job, in YAML.")],
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Fixes the initial weights; never noise or sampling.")
    ] = 0,
    nodes: Annotated[
        str,
        typer.Option(
            metavar="A,B,C",
            help="Sign for these nodes. Default: all that publish the data set now.",
        ),
    ] = "",
    valid_days: Annotated[
        float, typer.Option("--valid", min=0.01, max=366, help="Days that the signature holds.")
    ] = 7.0,
    epsilon_max: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Sign for this much at one node in all. Default: the job's target, or its quote "
            "and a quarter.",
        ),
    ] = None,
    report: Report = None,
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Start a job. With --watch, and where it has ended at once because no budget can pay for it,
    the exit code is the job's: 0 done, 1 failed, 4 out of budget.

    A profile with a key (`feddp job key new`) signs it: nodes then take orders of this job as it
    was signed, until the signature ends, and nothing else in its name.
    """
    with connect(folder, profile) as client:
        from feddp.cli.traced import traced
        from feddp.signing import Caps

        named = tuple(filter(None, (one.strip() for one in nodes.split(","))))
        try:
            with traced("submit") as trace:
                job = client.submit(file, seed, Caps(named, int(valid_days * 86_400), epsilon_max))
                trace.about["job_id"] = job.job_id
        except KeyboardInterrupt:
            output.note(
                "stopped before the answer came, and the job may have begun: look at `feddp job "
                "list` before you submit it again; `feddp job cancel ID` ends it"
            )
            raise typer.Exit(130) from None
        if not as_json:
            output.line(f"job {job.job_id} submitted, {_signature(job, client.signed)}")
            if trace.trace_id:
                output.line(f"trace {trace.trace_id}")
            for warning in job.warnings:
                output.line(f"warning: {warning}")
        if watch:
            _follow(client, job.job_id, report, "json-end" if as_json else "people")
            return
    if as_json:
        traced_as = {"trace_id": trace.trace_id} if trace.trace_id else {}
        output.print_json({**output.as_dict(job), **traced_as})
    elif job.phase == "ended":
        why = f": {job.message}" if job.message else ""
        output.line(f"job {job.job_id} has ended: {job.status}{why}")
    else:
        output.line(f"follow it: feddp job watch {job.job_id}")
    if job.phase == "ended":
        from feddp.cli.following import code_of

        raise typer.Exit(code_of(job))


def _signature(job: "Job", signed: "Mandate | None") -> str:
    """How far the signature goes, by what was signed here: what the job file leaves open comes from
    the coordinator's quote."""
    if signed is None or not job.signed_by:
        return "not signed: nodes whose policy wants signatures refuse it (`feddp job key new`)"
    most = f"{signed.rounds_max} round{'' if signed.rounds_max == 1 else 's'}"
    if signed.epsilon_max:
        most += f" and epsilon {output.epsilon(signed.epsilon_max)} at one hospital in all"
    return f"signed until {output.moment(signed.expires_at_s)} for {most}"


@app.command()
def quote(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job, in YAML.")],
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """What a job would cost each hospital, before anything runs.

    Nothing is uploaded, reserved or changed. Exit code 4: budgets keep it from doing its rounds;
    1: it could not start now for another reason.
    """
    from feddp.cli.quotes import exit_code, lines, rows

    with connect(folder, profile) as client:
        found = client.quote(file)
    if as_json:
        output.print_json(output.as_dict(found))
    else:
        output.table(*rows(found))
        for line in lines(found):
            output.line(line)
    if code := exit_code(found):
        raise typer.Exit(code)


@app.command("list")
def list_(folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False) -> None:
    """Every job of your project, newest first; as operator or privacy officer, of all projects."""
    with connect(folder, profile) as client:
        jobs = client.jobs()
    if as_json:
        output.print_json({"jobs": [output.as_dict(job) for job in jobs]})
        return
    output.table(
        ("ID", "NAME", "PROJECT", "STATUS", "ROUNDS", "DATA SET", "SUBMITTED"),
        [
            (
                job.job_id,
                job.name,
                job.project,
                job.status,
                f"{job.rounds_done}/{job.rounds_planned}",
                job.data_set,
                output.moment(job.created_at),
            )
            for job in jobs
        ],
    )


@app.command()
def show(
    job_id: Id, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """One job: where it is, whom it waits for, what it has cost each node."""
    from feddp.evaluation import evaluation_of

    with connect(folder, profile) as client:
        job, spec = client.job_and_spec(job_id)
        found = evaluation_of(client.download, job, spec)
    if as_json:
        text = spec.decode("utf-8", errors="replace")
        evaluation = {"evaluation": asdict(found)} if found else {}
        output.print_json({**output.as_dict(job), **evaluation, "spec": text})
        return
    from feddp.cli.guarantees import GUARANTEE, RUNNING
    from feddp.cli.job_text import evaluation_facts, job_facts, node_rows

    output.facts([*job_facts(job), *(evaluation_facts(found) if found else ())])
    if job.nodes:
        output.line("")
        output.table(*node_rows(job))
        output.line(RUNNING)
        output.line(GUARANTEE)


@app.command()
def watch(
    job_id: Id,
    report: Report = None,
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Follow a job to its end; its exit code is the job's. With --json one line a change."""
    with connect(folder, profile) as client:
        _follow(client, job_id, report, "json-changes" if as_json else "people")


@app.command()
def cancel(
    job_id: Id, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """End a job; what it has spent stays booked."""
    with connect(folder, profile) as client:
        job = client.cancel(job_id)
    if as_json:
        output.print_json(output.as_dict(job))
    else:
        output.line(f"job {job_id} is {job.status}; what it has spent stays booked")


@app.command()
def resume(
    job_id: Id, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """Take a failed job up again, from its last published model and the updates that it holds."""
    with connect(folder, profile) as client:
        job = client.resume(job_id)
    if as_json:
        output.print_json(output.as_dict(job))
    elif job.phase == "ended":
        output.line(f"job {job_id} has ended again: {job.status}: {job.message}")
    else:
        output.line(
            f"job {job_id} is {job.status}, at round {job.round} of {job.rounds_planned}; "
            f"`feddp job watch {job_id}` follows it"
        )
    if job.phase == "ended":
        from feddp.cli.following import code_of

        raise typer.Exit(code_of(job))


def _follow(client: "Client", job_id: str, report: Path | None, how: str) -> None:
    from feddp.cli.following import code_of, follow, write_report

    try:
        job = follow(client, job_id, how)
    except KeyboardInterrupt:
        output.note(
            f"stopped watching; job {job_id} goes on. `feddp job watch {job_id}` follows it again, "
            f"`feddp job cancel {job_id}` ends it"
        )
        raise typer.Exit(130) from None
    if how == "people" and job.model_digest:
        from feddp.cli.job_text import evaluation_facts
        from feddp.evaluation import evaluation_of

        found = evaluation_of(client.download, *client.job_and_spec(job_id))
        if found:
            output.facts(evaluation_facts(found))
    path = report or Path(f"feddp-report-{job_id}.html")
    if write_report(client, job, path):
        output.note(f"report: {path}")
    raise typer.Exit(code_of(job))
