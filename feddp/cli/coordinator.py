"""`feddp coordinator`: make an installation, check its configuration, run it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import (
    coordinator_authority,
    coordinator_backup,
    coordinator_gateway,
    coordinator_pause,
    coordinator_replica,
    coordinator_restore,
    coordinator_upgrade,
    output,
)
from feddp.cli.coordinator_place import Config, Folder, config_path
from feddp.cli.failures import FAILED
from feddp.cli.groups import noun
from feddp.cli.options import Json
from feddp.process import loading

app = noun("Make, check and run a coordinator.")
app.add_typer(coordinator_authority.app, name="ca-rollover")


@app.command()
def init(
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="A new folder.")],
    trust_domain: Annotated[
        str, typer.Option(metavar="D", help="Trust domain of every certificate.")
    ] = "feddp.local",
    host: Annotated[
        str, typer.Option(help="Name or address by which nodes reach this machine.")
    ] = "localhost",
    enrollment_host: Annotated[
        str,
        typer.Option(
            help="Another name, by which joining nodes do; a gateway that has one port for "
            "everything tells them apart by it."
        ),
    ] = "",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="For nodes and people, mutual TLS.")
    ] = 8443,
    enrollment_port: Annotated[
        int, typer.Option(min=1, max=65535, help="For those who join.")
    ] = 8444,
    health_port: Annotated[
        int, typer.Option(min=1, max=65535, help="For /health, /ready and /metrics.")
    ] = 8080,
    database_url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="An empty PostgreSQL database instead of a SQLite file; written into "
            "coordinator.yaml, unless it comes from $FEDDP_STORAGE__DATABASE_URL.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Write coordinator.yaml, the certificate authority and an operator's profile."""
    from coordinator.installation import init as init_installation

    kept = os.environ.get("FEDDP_STORAGE__DATABASE_URL", "")
    url = database_url or (kept if kept.startswith("postgresql") else "")

    made = init_installation(
        folder,
        trust_domain,
        host=host,
        enrollment_host=enrollment_host,
        port=port,
        enrollment_port=enrollment_port,
        health_port=health_port,
        database_url=url,
        keep_url=bool(database_url),
    )
    if as_json:
        output.print_json(
            {
                "dir": str(made.folder),
                "config": str(made.config),
                "profile": str(made.profile),
                "trust_domain": made.trust_domain,
                "root_fingerprint": made.root_fingerprint,
            }
        )
        return
    output.line(f"coordinator of {made.trust_domain} initialised in {made.folder}")
    output.line(f"root certificate SHA-256 {made.root_fingerprint}")
    output.line(f"start it:      feddp coordinator serve --config {made.config}")
    output.line(f"invite a node: feddp node token NAME --dir {made.folder}")


@app.command()
def serve(config: Config = None, folder: Folder = None) -> None:
    """Run the coordinator until SIGTERM; then it lets go of its sessions and ends."""
    with loading():
        from coordinator.config.config import load_config
        from coordinator.server import serve as serve_installation
        from feddp.logging import configure_logging, json_asked

    path = config_path(config, folder)
    monitoring = load_config(path, os.environ).monitoring
    configure_logging(monitoring.log_level, json=json_asked(monitoring.log_format))
    serve_installation(path)


@app.command()
def check(config: Config = None, folder: Folder = None, as_json: Json = False) -> None:
    """Check a configuration and what it refers to, without starting anything."""
    from coordinator.checking.check import check as check_installation

    findings = check_installation(config_path(config, folder))
    failed = any(finding.level == "error" for finding in findings)
    if as_json:
        found = [{"level": f.level, "subject": f.subject, "text": f.text} for f in findings]
        output.print_json({"ok": not failed, "findings": found})
    else:
        for finding in findings:
            output.line(f"{finding.level:<7}  {finding.subject}: {finding.text}")
        output.line("the check failed" if failed else "the check found no error")
    if failed:
        raise typer.Exit(FAILED)


# After those above, so that the help lists them in the order of an installation's life.
app.command()(coordinator_pause.pause)
app.command()(coordinator_pause.resume)
app.command()(coordinator_backup.backup)
app.command()(coordinator_restore.restore)
app.command()(coordinator_upgrade.upgrade)
app.command()(coordinator_authority.reissue)
app.command()(coordinator_gateway.gateway)
app.command("copy-keys")(coordinator_replica.copy_keys)
