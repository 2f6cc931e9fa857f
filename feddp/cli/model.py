"""`feddp model`: what jobs made."""

from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Dir, Json, ProfileFolder, connect

app = typer.Typer(help="List and download trained models.", no_args_is_help=True)

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
