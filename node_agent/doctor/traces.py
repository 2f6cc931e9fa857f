"""Whether the hospital's trace collector takes spans: its name, its port, TLS, and an empty export.

The export goes the way that the agent's own go, through the same library and settings of the
environment. Only where it is not answered is the way looked at step by step, to name what is wrong.
"""

import contextlib
import os
import socket
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import grpc

from node_agent.doctor.network import CONNECT_S_MAX, Blocked, looked_up
from node_agent.doctor.report import Check
from node_agent.folder.tracing_config import TracingConfig
from protos import otlp
from protos.errors import Malformed

NAME: Final = "traces"
_HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
_CORRECT: Final = "correct `tracing` in agent.yaml and restart the agent"
_OF_THE_COLLECTOR: Final = "ask who runs the collector; orders go on without traces meanwhile"


def check_traces(config: TracingConfig, root: Path) -> Check:
    """One line. Nothing of a round is sent: the export has no span in it.

    Args:
        root: the agent's folder, from which `ca_file` starts.
    """
    if not config.endpoint:
        return Check(NAME, "skipped", "no spans go anywhere: agent.yaml has no `tracing`")
    if not otlp.is_installed():
        return Check(NAME, "failed", otlp.MISSING, "install it, or take `tracing` out")
    ca_file = root / config.ca_file if config.ca_file else None
    try:
        otlp.export_nothing(config.endpoint, ca_file=ca_file)
    except Malformed as error:
        return Check(NAME, "failed", error.message, _CORRECT)
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return _unknown_here(config.endpoint, code)
        return _way(urlsplit(config.endpoint), ca_file) or Check(
            NAME,
            "failed",
            f"{config.endpoint} is reached and does not take an export of OTLP over gRPC "
            f"({code.name})",
            "check that the port is the collector's for OTLP over gRPC (4317 as a rule, 4318 is "
            f"for HTTP); {_OF_THE_COLLECTOR}",
        )
    return Check(NAME, "ok", f"{config.endpoint} takes spans; an empty export was answered")


def _unknown_here(endpoint: str, code: grpc.StatusCode) -> Check:
    if os.environ.get(_HEADERS):
        found = f"{endpoint} refuses what {_HEADERS} says ({code.name})"
        do = f"correct it, in the environment of the agent's service, too; {_OF_THE_COLLECTOR}"
        return Check(NAME, "failed", found, do)
    return Check(
        NAME,
        "warning",
        f"{endpoint} wants to know who sends ({code.name}), and {_HEADERS} is not set here",
        "the agent's service needs it in its environment; run the doctor with it to be sure",
    )


def _way(endpoint: SplitResult, ca_file: Path | None) -> Check | None:
    """Where the way to the collector ends; None if it does not."""
    host, port = endpoint.hostname or "", endpoint.port or 0
    try:
        looked_up(host, port, "the collector's name", "check `tracing` in agent.yaml")
    except Blocked as blocked:
        return Check(NAME, "failed", blocked.check.found, blocked.check.do)
    try:
        connection = socket.create_connection((host, port), timeout=CONNECT_S_MAX)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or "refused"
        return Check(
            NAME,
            "failed",
            f"the collector's port {host}:{port} cannot be reached ({why})",
            "start the collector, or have the firewall let this machine through to it",
        )
    with contextlib.closing(connection):
        return _tls(connection, host, ca_file) if endpoint.scheme == "https" else None


def _tls(connection: socket.socket, host: str, ca_file: Path | None) -> Check | None:
    trusted = f"`ca_file` ({ca_file})" if ca_file else "the usual authorities"
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(connection, server_hostname=host) as secured:
            if secured.selected_alpn_protocol() == "h2":
                return None
        found, do = f"{host} does not agree on HTTP/2 (ALPN h2)", _OF_THE_COLLECTOR
    except ssl.SSLCertVerificationError as error:
        found = f"the certificate of {host} does not hold by {trusted}: {error.verify_message}"
        do = "`ca_file` of `tracing` is to hold the collector's authority, PEM"
    except ssl.SSLError as error:
        found = f"{host} does not speak TLS here ({error.reason or 'no answer that is TLS'})"
        do = "give http:// in `tracing`, if it has none, or the port that has"
    except OSError:
        found = f"the connection to {host} is cut during the TLS handshake"
        do = _OF_THE_COLLECTOR
    return Check(NAME, "failed", found, do)
