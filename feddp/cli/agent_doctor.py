"""`feddp agent doctor`: what is wrong between this machine and its coordinator, and what to do."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feddp.cli import output
from feddp.cli.failures import FAILED
from feddp.cli.options import Json

if TYPE_CHECKING:
    from node_agent.connection.proxy import ProxyConfig
    from node_agent.doctor.examine import Patient
    from node_agent.doctor.report import Check

Proxy = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="http://HOST:PORT of the proxy to go through, or `direct`; goes into agent.yaml. "
        "Default: https_proxy and no_proxy.",
    ),
]
ProxyTried = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="With --token: http://HOST:PORT of the proxy to try, or `direct`; nothing is written. "
        "Default: https_proxy and no_proxy. After joining, agent.yaml says it.",
    ),
]
CredentialsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Holds USER:PASSWORD for the proxy, in one line."),
]

_SHOWN = {"ok": "ok", "warning": "WARNING", "failed": "FAILED", "skipped": "skipped"}


def proxy_of(url: str, credentials_file: Path | None) -> "ProxyConfig | None":
    """The options as agent.yaml has them; None where none is given."""
    from pydantic import ValidationError

    from node_agent.connection.proxy import ProxyConfig
    from protos.errors import Malformed

    if not url and credentials_file is None:
        return None
    file = (
        {} if credentials_file is None else {"credentials_file": str(credentials_file.absolute())}
    )
    try:
        return ProxyConfig.model_validate({"url": url, **file})
    except ValidationError:
        # The library's own text would show what was typed, and that may be a password.
        raise Malformed(
            "PROXY_INVALID",
            "--proxy takes http://HOST:PORT or direct, and no credentials: those go into the file "
            "of --proxy-credentials-file",
        ) from None


def doctor(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder."),
    ] = None,
    token: Annotated[
        str, typer.Option(metavar="TOKEN", help="Before joining: check the way that it would take.")
    ] = "",
    hold: Annotated[
        float, typer.Option(min=0, max=540, metavar="S", help="Seconds to hold a stream; 0: not.")
    ] = 20.0,
    data: Annotated[
        bool | None,
        typer.Option(
            "--data/--no-data",
            help="Count missing values and labels in the records. Default: at a terminal only; "
            "never with --json.",
        ),
    ] = None,
    firewall_request: Annotated[
        bool, typer.Option("--firewall-request", help="Print the rules to ask the firewall for.")
    ] = False,
    proxy: ProxyTried = "",
    proxy_credentials_file: CredentialsFile = None,
    as_json: Json = False,
) -> None:
    """Check what the agent needs, one line each: network, proxy, TLS, clock, machine, data, policy.

    Works while the agent runs, and while the coordinator does not. Exit code 1 if a check failed;
    warnings leave it at 0."""
    from node_agent.doctor.firewall import ENROLLMENT, SESSION, request_for

    patient = _patient(folder, token, proxy_of(proxy, proxy_credentials_file))
    config = patient.config
    request = (
        request_for(patient.route, other_is=SESSION)
        if config is None
        else request_for(patient.route, config.enrollment, ENROLLMENT)
    )
    if firewall_request:
        if as_json:
            output.print_json(request.as_dict())
        else:
            for text in request.text().splitlines():
                output.line(text)
        return
    from node_agent.doctor.examine import examine
    from node_agent.doctor.report import is_in_order

    shown = sys.stdout.isatty() if data is None else data
    made: list[Check] = []
    for check in examine(patient, hold_s=hold, rows=shown and not as_json, say=output.note):
        made.append(check)
        if not as_json:
            _show(check)
    if as_json:
        output.print_json(_as_dict(patient, made) | {"firewall_request": request.as_dict()})
    else:
        failed = sum(one.result == "failed" for one in made)
        warned = sum(one.result == "warning" for one in made)
        output.line(f"{len(made)} checks: {failed} failed, {output.counted(warned, 'warning')}")
    if not is_in_order(made):
        raise typer.Exit(FAILED)


def _patient(folder: Path | None, token: str, proxy: "ProxyConfig | None") -> "Patient":
    from node_agent.doctor.examine import joined, joining
    from protos.errors import Malformed

    if (folder is None) == (not token):
        raise Malformed(
            "USAGE", "give --dir DIR of an agent that has joined, or --token TOKEN before joining"
        )
    if folder is None:
        return joining(token, proxy)
    if proxy is not None:
        raise Malformed("USAGE", "--proxy goes with --token; an agent's is in its agent.yaml")
    return joined(folder)


def _as_dict(patient: "Patient", made: "list[Check]") -> dict[str, Any]:
    from dataclasses import asdict

    from node_agent.doctor.report import is_in_order

    return {
        "node": patient.identity.node if patient.identity is not None else None,
        "coordinator": patient.route.address,
        "reached": patient.route.said(),
        "in_order": is_in_order(made),
        "checks": [asdict(one) for one in made],
    }


def _show(check: "Check") -> None:
    output.line(f"{_SHOWN[check.result]:<8} {check.name}: {check.found}")
    if check.do and check.result != "ok":
        output.line(f"         -> {check.do}")
    elif check.do:
        output.line(f"         note: {check.do}")
