"""`feddp agent install-service`: a hardened systemd unit, and files with their rightful owners."""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node_agent.folder.handover import Owner

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]


def install_service(
    folder: Folder,
    user: Annotated[str, typer.Option(help="Whom the agent runs as; not root.")] = "feddp",
    group: Annotated[str, typer.Option(help="Default: as the user.")] = "",
    steward: Annotated[
        str,
        typer.Option(help="Who owns policy.yaml and datasets.yaml; the agent cannot write them."),
    ] = "root",
    gpu: Annotated[bool, typer.Option("--gpu", help="Workers may use the GPU.")] = False,
    unit_folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where systemd reads units.")
    ] = Path("/etc/systemd/system"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the unit on stdout; change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the systemd unit of this folder's agent, and give its files to their owners.

    The data steward owns policy.yaml and datasets.yaml and gets into the folder by its access list,
    at once and without the service's group; root owns the folder, the service's user the rest: run
    commands on it as that user. Run it again for another --steward. Starting it stays with you, as
    the last line says.
    """
    from node_agent.folder.handover import owners
    from node_agent.folder.service import Service, install, require_fit
    from node_agent.folder.service_advice import advice

    service = Service(folder.absolute(), user, group or user, _command(), gpu)
    if dry_run:
        text = service.unit()
        require_fit(service, steward)
        given = owners(service.folder, user, service.group, steward)
        warnings = advice(service, steward)
        if as_json:
            _print(unit_folder / service.name, text, given, warnings, written=False)
            return
        output.note(f"would write {unit_folder / service.name}:")
        sys.stdout.write(text)
        for one in given:
            output.note(f"would be given: {one}")
        for sentence in warnings:
            output.note(f"WARNING: {sentence}")
        return
    path = install(service, steward, unit_folder)
    if as_json:
        given = owners(service.folder, user, service.group, steward)
        _print(path, service.unit(), given, advice(service, steward), written=True)
        return
    output.line(f"wrote {path}; policy.yaml and datasets.yaml belong to {steward}, who edits them")
    if steward != "root":
        output.line(f"{steward} checks them: feddp agent policy check --dir {folder}")
    for sentence in advice(service, steward):
        output.note(f"WARNING: {sentence}")
    output.line(f"check it: systemd-analyze verify {path}")
    output.line(f"commands on {folder} from now on: sudo -u {user} feddp agent ...")
    output.line(f"start it: systemctl daemon-reload && systemctl enable --now {path.name}")


def _print(
    path: Path, unit: str, given: "Sequence[Owner]", warnings: "Sequence[str]", *, written: bool
) -> None:
    output.print_json(
        {
            "unit_file": str(path),
            "unit": unit,
            "written": written,
            "owners": [
                asdict(one) | {"path": str(one.path), "mode": f"{one.mode:04o}" if one.mode else ""}
                for one in given
            ],
            "warnings": list(warnings),
        }
    )


def _command() -> Path:
    """The `feddp` that runs now, else the one beside this interpreter or on the path."""
    for one in (Path(sys.argv[0]), Path(sys.executable).with_name("feddp")):
        if one.name == "feddp" and one.is_file():
            return one.absolute()
    return Path(shutil.which("feddp") or Path(sys.executable).with_name("feddp")).absolute()
