"""`feddp coordinator gateway`: a certificate for a gateway that ends TLS in front."""

from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Json
from protos.errors import Malformed


def gateway(
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The installation.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where key and certificate go.")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Name that nodes dial; may be given again.")
    ] = None,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="Replace what is in FOLDER, under the same names, if a third of its life or less "
            "is left or another authority issues; else do nothing. For a daily timer.",
        ),
    ] = False,
    revoke: Annotated[
        bool,
        typer.Option(
            "--revoke",
            help="Shut out every certificate that a gateway ever got, for good and within "
            "seconds: its key was copied, or there is no such gateway any more.",
        ),
    ] = False,
    keep: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="With --revoke: whose certificate stays. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Issue the certificate of a gateway that ends TLS in front of the coordinator (deploy/envoy).

    Whoever has its key can speak for every node and person: it is as secret as the coordinator's.
    """
    from coordinator.gateway import certificate as gateway_certificate

    if revoke or out is None:
        if renew or host or out is not None or not revoke:
            raise Malformed(
                "USAGE",
                "give --out FOLDER for a certificate, or --revoke alone (with --keep FOLDER) to "
                "shut out the others",
            )
        count = gateway_certificate.revoke(folder, keep or [])
        if as_json:
            output.print_json({"revoked": count, "kept": [str(one) for one in keep or []]})
            return
        output.line(f"{count} certificates of gateways are shut out from now on")
        return
    if keep:
        raise Malformed("USAGE", "--keep FOLDER goes with --revoke")
    if renew == bool(host):
        raise Malformed(
            "USAGE",
            "give --host NAME for the first certificate, or --renew for the next one, which has "
            "the names of the present one",
        )
    if renew:
        ends_at, is_new = gateway_certificate.renew(folder, out)
    else:
        ends_at, is_new = gateway_certificate.issue(folder, host or [], out), True
    if as_json:
        output.print_json({"dir": str(out), "expires_at": ends_at.timestamp(), "is_new": is_new})
        return
    output.line(f"{out} holds gateway.key, gateway.crt and bundle.pem for deploy/envoy")
    output.line(f"certificate until {output.moment(ends_at.timestamp())}")
    if not is_new:
        output.line("nothing was done: it is not due yet")
