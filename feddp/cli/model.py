"""`feddp model`: what jobs made."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.groups import noun
from feddp.cli.options import Dir, Json, ProfileFolder, connect
from protos.errors import Malformed

app = noun("List, download and evaluate trained models.")

Id = Annotated[
    str, typer.Argument(metavar="ID", help="A model's digest, or a job's id for its answer.")
]


@app.command("list")
def list_(
    job: Annotated[str, typer.Option("--job", metavar="ID", help="Only models of this job.")] = "",
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Every model: the global one of each round, and each job's answer."""
    with connect(folder, profile) as client:
        models = client.models(job)
        if job and not models:
            client.job(job)  # there may be no such job, and then it says so
    if as_json:
        output.print_json({"models": [output.as_dict(model) for model in models]})
        return
    output.table(
        ("DIGEST", "JOB", "KIND", "ROUND", "SIZE", "MADE"),
        [
            (
                model.digest,
                model.job_id,
                model.kind,
                str(model.round),
                output.bytes_text(model.bytes),
                output.moment(model.created_at),
            )
            for model in models
        ],
    )


@app.command()
def show(
    model_id: Id, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """One model."""
    with connect(folder, profile) as client:
        model = client.model(model_id)
    if as_json:
        output.print_json(output.as_dict(model))
        return
    output.facts(
        [
            ("digest", model.digest),
            ("job", model.job_id),
            ("kind", model.kind),
            ("round", str(model.round)),
            ("size", output.bytes_text(model.bytes)),
            ("made", output.moment(model.created_at)),
        ]
    )


@app.command()
def download(
    model_id: Id,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")],
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Write a model as safetensors: whole, and checked against its digest, or not at all."""
    with connect(folder, profile) as client:
        model = client.download(model_id, out, force=force)
    if as_json:
        output.print_json({"path": str(out), "digest": model.digest, "bytes": model.bytes})
    else:
        output.line(f"{out}: {output.bytes_text(model.bytes)}, digest {model.digest}")


@app.command()
def evaluate(
    model_id: Id,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Public rows, CSV.")],
    label: Annotated[
        str, typer.Option("--label", metavar="COLUMN", help="The column that holds 0 or 1.")
    ],
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """A tabular classifier on public rows, on this machine: nothing is uploaded, nothing is spent.

    On hospitals' records a job does it: task tabular-evaluation.
    """
    from feddp import public_rows
    from feddp.jobfile import task_of

    with connect(folder, profile) as client, tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.safetensors"
        model = client.download(model_id, path)
        _, spec = client.job_and_spec(model.job_id)
        task, task_config = task_of(spec)
        if task != "tabular-classifier":
            raise Malformed("TASK_UNSUITED", f"{model_id} is a model of {task}, no classifier")
        found = public_rows.evaluate(path, dict(task_config), data, label)
    if as_json:
        output.print_json({"model": model.digest, **found})
        return
    output.facts(
        [("model", model.digest), ("rows", str(found["rows"]))]
        + (
            [("left out", f"{found['rows_left_out']} rows lack a value")]
            * bool(found["rows_left_out"])
        )
        + [
            (name, "only one class is there" if found[name] is None else f"{found[name]:.3f}")
            for name in ("accuracy", "auc", "brier")
        ]
    )
