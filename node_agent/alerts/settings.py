"""What a hospital is told when its agent needs somebody, and `alerts` of `agent.yaml`."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from node_agent.yaml_files.shapes import shaped

Event = Literal[
    "CERTIFICATE",
    "DISK_LOW",
    "DISCONNECTED",
    "REFUSED",
    "DISPUTE",
    "BUDGET",
    "DATA_SET_UNAVAILABLE",
    "ROWS_LEFT_OUT",
    "PATIENTS_IN_TWO_ACCOUNTS",
    "POLICY_UNREADABLE",
    "LEDGER_ROLLED_BACK",
    "APPROVAL_WAITING",
]


MailAddress = Annotated[str, shaped(r"[^\s@]+@[^\s@]+", "a mail address", "it@hospital.example")]


_PORT: Final = (
    "0{0,4}(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of one that has the shape of it."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SyslogSink(_Section):
    """`/dev/log`, or "host:port" of a collector (UDP)."""

    address: Annotated[
        str,
        shaped(
            rf"/[^\s\0]+|[^\s/]+:{_PORT}",
            "the path of a socket, such as /dev/log, or host:port of a collector, port 1 to 65535",
            "collector.example:514",
        ),
    ] = "/dev/log"

    @property
    def target(self) -> str | tuple[str, int]:
        """A path, which may hold a colon, or host and port."""
        return self.address if self.address.startswith("/") else host_and_port(self.address)


class MailSink(_Section):
    """A mail server of the hospital.

    Attributes:
        tls: "starttls" on the server's usual port, "tls" from the first byte, or "none" for a relay
            on this machine.
        password_file: holds the password and nothing else; the variable FEDDP_MAIL_PASSWORD goes
            before it. Never in agent.yaml.
    """

    server: Annotated[
        str,
        shaped(
            rf"(?:[^\s:/]+|\[[0-9a-fA-F:]+\]):{_PORT}",
            "host:port of a mail server, port 1 to 65535",
            "mail.example:587",
        ),
    ]
    sender: MailAddress
    to: Annotated[list[MailAddress], Field(min_length=1)]
    tls: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_file: str = ""


class FileSink(_Section):
    """A file with what is wrong now, as JSON, rewritten whole; mode 0644 unless said.

    Attributes:
        path: absolute; its folder must be there, and outside the agent's, which others cannot read.
    """

    path: Annotated[
        str, shaped(r"/[^\0]*", "an absolute path, from / on", "/run/feddp/alerts.json")
    ]
    group_only: bool = False


class AlertsConfig(_Section):
    """`alerts` of `agent.yaml`.

    Attributes:
        disconnected_after_s: how long the coordinator may be away before somebody is told.
        disk_free_bytes_min: on the disk of the agent's folder.
        budget_share: of an account's limit, in its filter's units.
        digest_days: how often the steward is sent the digest; 0 for never.
    """

    syslog: SyslogSink | None = None
    mail: MailSink | None = None
    file: FileSink | None = None
    disconnected_after_s: float = Field(default=3600.0, ge=1, allow_inf_nan=False)
    disk_free_bytes_min: int = Field(default=2 << 30, ge=0)
    budget_share: float = Field(default=0.8, gt=0, le=1)
    digest_days: float = Field(default=7.0, ge=0, le=36_500)
    every_s: float = Field(default=60.0, ge=1, le=86_400)

    @property
    def is_used(self) -> bool:
        """Whether there is anybody to tell."""
        return any((self.syslog, self.mail, self.file))


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is wrong.

    Attributes:
        subject: which account, data set, job; empty for the agent as a whole. With `event` it says
            whether two alerts are the same one.
        text: a sentence.
        remedy: what to do.
    """

    event: Event
    subject: str
    text: str
    remedy: str

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same one as before."""
        return self.event, self.subject


def sentence(text: str) -> str:
    """With its full stop, unless it ends in one or in a question."""
    return text if text.endswith((".", "?", "!")) else f"{text}."
