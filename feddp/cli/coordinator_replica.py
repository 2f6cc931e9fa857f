"""`feddp coordinator copy-keys`: what each of several coordinators does before it starts."""

from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Json


def copy_keys(
    source: Annotated[
        Path,
        typer.Option(
            "--from",
            metavar="DIR",
            help="The files of the installation's pki folder, as a Secret is mounted: "
            "pki/ca-2/root.crt is named ca-2.root.crt.",
        ),
    ],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="This replica's folder.")],
    host: Annotated[str, typer.Option(help="Name or address by which nodes reach it.")],
    enrollment_host: Annotated[
        str, typer.Option(help="Another name, by which joining nodes do.")
    ] = "",
    trust_domain: Annotated[
        str, typer.Option(metavar="D", help="The trust domain that the keys must be of.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Give one of several coordinators the installation's keys, and a certificate of its own."""
    from cryptography.hazmat.primitives import hashes

    from coordinator.replicas import keys as replica_keys

    hosts = [host, enrollment_host] if enrollment_host else [host]
    done = replica_keys.copy_keys(source, folder, hosts, trust_domain)
    root = done.authority.root.fingerprint(hashes.SHA256()).hex(":").upper()
    if as_json:
        output.print_json(
            {
                "dir": str(folder),
                "trust_domain": done.authority.trust_domain,
                "root_fingerprint": root,
                "phase": done.phase,
                "ahead": done.is_ahead,
                "certificate_made": done.made_certificate,
            }
        )
        return
    output.line(f"keys of {done.authority.trust_domain} in {folder / 'pki'}")
    output.line(f"root certificate SHA-256 {root}")
    output.line(f"rollover of the authority: {done.phase}")
    if done.is_ahead:
        output.line(
            f"{source} is behind in that, and was not taken: make it anew from a folder that is "
            "not, or the other replicas stay behind"
        )
    made = "made anew" if done.made_certificate else "kept"
    output.line(f"the server's certificate: {made}")
