"""Whether those who are to be told of alerts could be: a look at each sink, and nothing is sent."""

import ipaddress
import os
import socket
from pathlib import Path
from typing import Final

from node_agent.alerts.mail_password import PasswordUnusable, mail_password
from node_agent.alerts.settings import AlertsConfig, FileSink, MailSink, SyslogSink, host_and_port
from node_agent.doctor.report import Check

CONNECT_S_MAX: Final = 5.0
_RUN: Final = Path("/run")


def check_alerts(config: AlertsConfig) -> Check:
    """What each configured sink lacks; a UDP collector does not tell whether it listens."""
    if not config.is_used:
        found = "nobody is told of what goes wrong: agent.yaml has no `alerts`"
        return Check("alerts", "skipped", found)
    faults: list[str] = []
    named: list[str] = []
    if config.syslog is not None:
        named.append(f"syslog {config.syslog.address}")
        faults += _syslog(config.syslog)
    if config.mail is not None:
        named.append(f"mail by {config.mail.server}")
        faults += _mail(config.mail)
    if config.file is not None:
        named.append(f"file {config.file.path}")
        faults += _file(config.file)
    if faults:
        do = "correct `alerts` in agent.yaml and restart the agent, or put right what it names"
        return Check("alerts", "failed", "; ".join(faults), do)
    if config.mail is not None and (text := _in_clear(config.mail)):
        return Check("alerts", "warning", text, "give `tls: starttls`, or `tls: tls` and its port")
    return Check("alerts", "ok", f"{', '.join(named)}; nothing was sent")


def _syslog(sink: SyslogSink) -> list[str]:
    target = sink.target
    try:
        if isinstance(target, tuple):
            socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)
            return []
        _connect_as_the_agent(target)
    except (OSError, OverflowError, ValueError) as error:
        return [f"syslog: {sink.address} takes nothing ({_why(error)})"]
    return []


def _connect_as_the_agent(path: str) -> None:
    """By datagrams, or else by a stream.

    Raises:
        OSError: neither.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.connect(path)
    except OSError:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)


def _mail(sink: MailSink) -> list[str]:
    faults = []
    try:
        socket.create_connection(host_and_port(sink.server), timeout=CONNECT_S_MAX).close()
    except (OSError, OverflowError, ValueError) as error:
        faults.append(f"mail: {sink.server} cannot be reached ({_why(error)})")
    try:
        if sink.user or sink.password_file:
            mail_password(sink)
    except PasswordUnusable as error:
        faults.append(f"mail: {error}")
    if sink.password_file and not sink.user:
        faults.append("mail: `password_file` is given and no `user`, so nobody logs in")
    return faults


def _in_clear(sink: MailSink) -> str:
    """That a password leaves this machine for everybody on the way to read; empty if not."""
    host, _ = host_and_port(sink.server)
    if sink.tls != "none" or not sink.user or host == "localhost":
        return ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = False
    return "" if is_here else f"mail: `tls: none` sends the password to {host} in clear"


def _file(sink: FileSink) -> list[str]:
    folder = Path(sink.path).parent
    if Path(sink.path).is_dir():
        return [f"file: {sink.path} is a folder; name a file in it"]
    if not folder.is_dir():
        # systemd makes it with the service, and takes it away with it.
        hint = " (RuntimeDirectory= in a drop-in of the unit)" if _RUN in folder.parents else ""
        return [f"file: the folder {folder} is not there{hint}"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"file: this user may not write in {folder}"]
    return []


def _why(error: Exception) -> str:
    said = getattr(error, "strerror", None)
    if not said and isinstance(error, OSError):
        said = str(error)
    return said or "no such host and port"
