"""`feddp coordinator gateway`: a certificate for a gateway that ends TLS in front."""

from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Json


def gateway(
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The installation.")],
    host: Annotated[list[str], typer.Option(help="Name that nodes dial; may be given again.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where key and certificate go.")],
    as_json: Json = False,
) -> None:
    """Issue the certificate of a gateway that ends TLS in front of the coordinator (deploy/envoy).

    Whoever has its key can speak for every node and person: it is as secret as the coordinator's.
    """
    from coordinator.gateway_certificate import issue

    ends_at = issue(folder, host, out)
    if as_json:
        output.print_json({"dir": str(out), "expires_at": ends_at.timestamp()})
        return
    output.line(f"{out} holds gateway.key, gateway.crt and bundle.pem for deploy/envoy")
    output.line(f"certificate until {output.moment(ends_at.timestamp())}")
    output.line("restart the coordinator, so that it knows the certificate")
