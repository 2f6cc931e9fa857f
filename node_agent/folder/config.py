"""What an agent's folder holds, and `agent.yaml` in it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from certs.spiffe import check_name, check_trust_domain
from node_agent.alerts.settings import AlertsConfig
from node_agent.connection.proxy import ProxyConfig
from node_agent.folder.ownership import require_access, unreadable
from node_agent.folder.tracing_config import TracingConfig
from node_agent.joining.waiting_join import waiting_said
from node_agent.launchers.settings import LauncherSettings, LocalSettings
from node_agent.yaml_files.faults import counted, place_of, sentence, to_tell
from node_agent.yaml_files.shapes import shaped
from protos.errors import FeddpError, Malformed, NotFound
from protos.yaml_slips import Slip, refuse_slips

VALUE_CHARS_MAX: Final = 64
"""Of a value in a fault."""

FILE_BYTES_MAX: Final = 1 << 20

Model = TypeVar("Model", bound=BaseModel)

_ADDRESS: Final = r"(?:[^\s:\[\]]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
_HOST_PORT: Final = "host:port, as `feddp agent join` wrote it"


@dataclass(frozen=True, slots=True)
class Folder:
    """Names within an agent's DIR."""

    root: Path

    @property
    def agent_yaml(self) -> Path:
        """Where the coordinator is, and the agent's limits."""
        return self.root / "agent.yaml"

    @property
    def policy_yaml(self) -> Path:
        """The data steward's policy."""
        return self.root / "policy.yaml"

    @property
    def datasets_yaml(self) -> Path:
        """The data steward's data sets."""
        return self.root / "datasets.yaml"

    @property
    def identity(self) -> Path:
        """Keys, certificate chain and trust bundle."""
        return self.root / "identity"

    @property
    def state_db(self) -> Path:
        """Attempts and the node's own ledger."""
        return self.root / "state.db"

    @property
    def has_ledger(self) -> bool:
        """Whether `state.db` is there and holds anything: one of no bytes is a lost ledger. It must
        not be opened either, as SQLite then throws away the log beside it."""
        return self.state_db.exists() and self.state_db.stat().st_size > 0

    @property
    def former(self) -> Path:
        """The former coordinator's own part, while the node moves to another one."""
        return self.root / "former"

    @property
    def spool(self) -> Path:
        """Models that came in, updates that wait to go out."""
        return self.root / "spool"

    @property
    def logs(self) -> Path:
        """Logs of workers; never leave the hospital."""
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        """Held by the one agent that runs here."""
        return self.root / "agent.lock"


class WorkerLimits(BaseModel):
    """What a training worker may use; see `node_agent.launchers.base.Limits`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    threads: int = Field(default=1, ge=1, le=1024)
    nice: int = Field(default=5, ge=0, le=19)
    memory_bytes_max: int = Field(default=0, ge=0)


class AgentConfig(BaseModel):
    """`agent.yaml`.

    Attributes:
        coordinator: "host:port" of the coordinator's mTLS port.
        enrollment: "host:port" of its enrolment port, where a certificate that ended while the
            machine was off is replaced; empty from 0.1.0.
        node: this node's name; must be the one in its certificate.
        launcher: where workers run.
        model_bytes_max: a larger model is refused, not fetched.
        alerts: whom this hospital's IT and steward are told by; see `node_agent.alerts.settings`.
        tracing: the hospital's own collector; see `node_agent.folder.tracing_config`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    coordinator: Annotated[str, shaped(_ADDRESS, _HOST_PORT, "feddp.example:8443")]
    enrollment: Annotated[str, shaped(f"({_ADDRESS})?", _HOST_PORT, "feddp.example:8444")] = ""
    trust_domain: str = Field(examples=["hospitals.example"])
    node: str = Field(examples=["alpha"])
    node_class: Annotated[str, shaped("edge|hpc|cloud", "one of edge, hpc, cloud", "edge")]
    model_bytes_max: int = Field(default=8 << 30, ge=1)
    worker: WorkerLimits = WorkerLimits()
    alerts: AlertsConfig = AlertsConfig()
    launcher: LauncherSettings = LocalSettings()
    proxy: ProxyConfig = ProxyConfig()
    tracing: TracingConfig = TracingConfig()

    @field_validator("node")
    @classmethod
    def _node_name(cls, value: str) -> str:
        return _checked(check_name, value)

    @field_validator("trust_domain")
    @classmethod
    def _trust_domain(cls, value: str) -> str:
        return _checked(check_trust_domain, value)


def load_config(folder: Folder) -> AgentConfig:
    """Read `agent.yaml`.

    Raises:
        NotAllowed: OTHER_USER, the agent's files are another user's.
        NotFound: NOT_JOINED, there is none.
        Malformed: CONFIG_INVALID; the message names the key.
    """
    require_access(folder.root)
    if not folder.agent_yaml.exists():
        kept = (
            f". The ledger that it keeps: `feddp agent ledger export FILE --dir {folder.root}`, "
            "and `leave --forget-ledger NODE` removes it"
        )
        raise NotFound(
            "NOT_JOINED",
            (
                waiting_said(folder.root)
                or f"{folder.root} holds no agent; join with `feddp agent join TOKEN --dir "
                f"{folder.root}`"
            )
            + (kept if folder.state_db.exists() else ""),
        )
    value = read_yaml(folder.agent_yaml, "CONFIG_INVALID")
    return parse(AgentConfig, value, folder.agent_yaml, "CONFIG_INVALID")


def read_yaml(path: Path, reason: str) -> dict[str, Any]:
    """The mapping in a YAML file; a repeated key is refused, as its last value would win silently,
    and whatever else `refuse_slips` finds.

    Raises:
        Malformed: `reason`; the message names the file and the line.
    """
    try:
        data = path.read_bytes()
        if len(data) > FILE_BYTES_MAX:
            raise Malformed(reason, f"{path} is larger than {FILE_BYTES_MAX} bytes; shorten it")
        text = data.decode()
        refuse_slips(text)
        value = yaml.safe_load(text)
    except PermissionError:
        raise Malformed(reason, unreadable(path)) from None
    except FileNotFoundError:
        raise Malformed(
            reason, f"{path} is missing; write it, or restore it from a backup"
        ) from None
    except IsADirectoryError:
        raise Malformed(
            reason, f"{path} is a folder; move it away and put the file in its place"
        ) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Malformed(
            reason,
            f"{path} is not UTF-8 text near line {line}; write that line anew, or save the file as "
            "UTF-8 in the editor",
        ) from None
    except OSError as error:
        raise Malformed(
            reason, f"{path} cannot be read: {error.strerror}; look at its disk"
        ) from None
    except Slip as slip:
        raise Malformed(reason, f"{path} line {slip.line} {slip}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark is not None else ""
        raise Malformed(reason, f"{path} is not YAML{where}; mend it there") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(reason, f"{path} must hold `key: value` lines")
    return value


def parse(
    model: type[Model], value: dict[str, Any], path: Path, reason: str, *, tell_value: bool = False
) -> Model:
    """`value` as `model`.

    Args:
        tell_value: a fault says the value as well; for files that hold no secret.

    Raises:
        Malformed: `reason`; the message names each wrong key, those that are unknown first.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = to_tell(model, error.errors(include_url=False))
    texts = [_told(model, value, one, tell_value=tell_value) for one in faults]
    raise Malformed(reason, f"{path}: {counted(texts)}")


def _told(
    model: type[BaseModel], value: dict[str, Any], fault: ErrorDetails, *, tell_value: bool
) -> str:
    key, text = place_of(model, fault["loc"]).key, sentence(model, fault)
    if fault["type"] == "float_type" and _is_number_text(fault["input"]):
        text += "; YAML reads 1e-5 as text: write 1.0e-5"
    if not key:
        return text
    wrong = fault["input"]
    if tell_value and fault["type"] not in ("extra_forbidden", "missing") and _is_scalar(wrong):
        text += f"; it says {ascii(wrong)[:VALUE_CHARS_MAX]}"
    return f"key {key}{_name_at(value, fault['loc'])}: {text}"


def _name_at(value: Any, loc: tuple[int | str, ...]) -> str:
    """Which of several things a key is of: the innermost name on the way to it, in brackets."""
    name = ""
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            break
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            name = f" ({ascii(value['name'])[1:-1][:VALUE_CHARS_MAX]})"
    return name


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _is_number_text(value: object) -> bool:
    """Whether a person meant a number and YAML read text."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _checked(check: Any, value: str) -> str:
    """A check of ours as pydantic wants it."""
    try:
        return str(check(value))
    except FeddpError as error:
        raise ValueError(error.message) from None
