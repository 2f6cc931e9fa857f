"""Where a hospital is told that its agent needs somebody: syslog, mail, a file that Zabbix reads.

Each sink is told of the same things, and one that fails stops neither the others nor the agent.
Nothing is sent that comes from records: what names data are the names that the steward has given.
"""

import asyncio
import contextlib
import json
import logging
import logging.handlers
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from node_agent.alerts.settings import (
    Alert,
    AlertsConfig,
    FileSink,
    MailSink,
    SyslogSink,
    sentence,
)
from protos.content import write_durable

log = structlog.get_logger(__name__)

MAIL_TIMEOUT_S: Final = 60.0


class Sink(Protocol):
    """Takes what changed.

    Attributes:
        remedy: what to do where it cannot be told.
    """

    remedy: str

    async def tell(
        self, node: str, began: Sequence[Alert], ended: Sequence[Alert], now: Sequence[Alert]
    ) -> None:
        """Tell of it.

        Raises:
            OSError: it cannot be told.
        """

    async def digest(self, node: str, text: str) -> None:
        """Pass on the steward's digest."""


class _Raising(logging.handlers.SysLogHandler):
    """The library's handler prints what goes wrong; who calls here must know it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        error = sys.exc_info()[1]
        if error is not None:
            raise error


class Syslog:
    """One line each, facility daemon."""

    remedy = "check `alerts.syslog.address` in agent.yaml; `feddp agent doctor` looks at it"

    def __init__(self, config: SyslogSink) -> None:
        self._config = config

    def _lines(self, lines: Sequence[tuple[int, str]]) -> None:
        facility = logging.handlers.SysLogHandler.LOG_DAEMON
        handler = _Raising(self._config.target, facility=facility)
        handler.ident = "feddp-agent: "
        # Collectors of datagrams show it as a blank; on a stream nothing else ends a message.
        handler.append_nul = handler.socktype == socket.SOCK_STREAM
        try:
            for level, text in lines:
                handler.emit(logging.LogRecord("feddp", level, "", 0, text, None, None))
        finally:
            handler.close()

    async def tell(
        self, node: str, began: Sequence[Alert], ended: Sequence[Alert], now: Sequence[Alert]
    ) -> None:
        """See `Sink`."""
        lines = [
            (logging.ERROR, f"{node} {_line(one)} What to do: {sentence(one.remedy)}")
            for one in began
        ]
        lines += [(logging.INFO, f"{node} over: {_line(one)}") for one in ended]
        await asyncio.to_thread(self._lines, lines)

    async def digest(self, node: str, text: str) -> None:
        """See `Sink`."""
        await asyncio.to_thread(
            self._lines, [(logging.INFO, f"{node} digest: {line}") for line in text.splitlines()]
        )


class Mail:
    """One message for all that changed; sent by a process of its own, as the agent loads no second
    TLS library."""

    remedy = (
        "check `alerts.mail` in agent.yaml: server, port, tls, user and password; `feddp agent "
        "doctor` looks at the server"
    )

    def __init__(self, config: MailSink) -> None:
        self._config = config

    async def tell(
        self, node: str, began: Sequence[Alert], ended: Sequence[Alert], now: Sequence[Alert]
    ) -> None:
        """See `Sink`."""
        lines = [f"{_line(one)}\n  What to do: {sentence(one.remedy)}" for one in began]
        lines += [f"Over: {_line(one)}" for one in ended]
        first = began[0].event if began else f"over: {ended[0].event}"
        await self._send(f"feddp node {node}: {first}", "\n\n".join(lines))

    async def digest(self, node: str, text: str) -> None:
        """See `Sink`."""
        await self._send(f"feddp node {node}: digest for the data steward", text)

    async def _send(self, subject: str, text: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "node_agent.alerts.mail"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # whatever goes wrong there, no secret is logged
            env=dict(os.environ),
        )
        body = {"config": self._config.model_dump(mode="json"), "subject": subject, "text": text}
        try:
            async with asyncio.timeout(MAIL_TIMEOUT_S):
                said, _ = await process.communicate(json.dumps(body).encode())
        except TimeoutError:
            raise OSError("the mail server did not take it in time") from None
        finally:
            if process.returncode is None:  # also where the agent stops
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            raise OSError(f"the process that sends mail ended with {process.returncode}")
        answer = json.loads(said)
        if answer["fault"]:
            raise OSError(answer["fault"])
        if answer["refused"]:
            log.warning(
                "alert_mail_refused",
                recipients=answer["refused"],
                do="the mail server took the mail, but not for these: correct `alerts.mail.to` in "
                "agent.yaml",
            )


class File:
    """What is wrong now, and when that was looked at: an agent that has stopped leaves an old
    `at_s`, for which Zabbix has `nodata` and `fuzzytime`."""

    remedy = (
        "make the folder of `alerts.file.path`, writable by the agent's user (RuntimeDirectory= in "
        "a drop-in of the unit does), or name another path in agent.yaml"
    )

    def __init__(self, config: FileSink) -> None:
        self._config = config

    async def tell(
        self, node: str, began: Sequence[Alert], ended: Sequence[Alert], now: Sequence[Alert]
    ) -> None:
        """See `Sink`."""
        body: dict[str, Any] = {
            "node": node,
            "at_s": round(time.time(), 3),
            "count": len(now),
            "alerts": [asdict(one) for one in now],
        }
        mode = 0o640 if self._config.group_only else 0o644
        await asyncio.to_thread(_write, Path(self._config.path), json.dumps(body), mode)

    async def digest(self, node: str, text: str) -> None:
        """See `Sink`: beside the alerts, and not for every account of the machine: it tells which
        attempts failed after data was opened."""
        path = Path(self._config.path)
        await asyncio.to_thread(_write, path.with_name(f"{path.stem}.digest.txt"), text, 0o640)


def sinks(config: AlertsConfig) -> list[Sink]:
    """Those that are configured."""
    found: list[Sink] = []
    if config.syslog is not None:
        found.append(Syslog(config.syslog))
    if config.mail is not None:
        found.append(Mail(config.mail))
    if config.file is not None:
        found.append(File(config.file))
    return found


def _write(path: Path, text: str, mode: int) -> None:
    try:
        write_durable(path, f"{text}\n".encode(), mode)
        path.chmod(mode)  # whatever the umask
    except OSError as error:
        # Not the name of the file that was to be renamed over it, which nobody has written down.
        raise OSError(error.errno, error.strerror, str(path)) from None


def _line(one: Alert) -> str:
    text = f"{one.event}{f' {one.subject}' if one.subject else ''}: {sentence(one.text)}"
    # A coordinator chooses a project's name: no line of a log may be made with it.
    return "".join(letter if letter.isprintable() else "?" for letter in text)
