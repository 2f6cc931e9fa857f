"""A job file as far as the engineer's side reads it; the coordinator judges the rest."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from protos.errors import Malformed
from protos.yaml_slips import EXPONENT, Slip, refuse_slips

SPEC_BYTES_MAX = 64 << 10


def read_spec(spec: Path | bytes) -> bytes:
    """The bytes of a job file.

    Raises:
        Malformed: FILE_UNREADABLE, JOB_INVALID.
    """
    if isinstance(spec, Path):
        try:
            spec = spec.read_bytes()
        except OSError as error:
            raise Malformed(
                "FILE_UNREADABLE", f"{error.filename} cannot be read: {error.strerror}"
            ) from None
    if len(spec) > SPEC_BYTES_MAX:
        raise Malformed(
            "JOB_INVALID", f"the job file has {len(spec)} bytes; {SPEC_BYTES_MAX} is the most"
        )
    return spec


def read_task(spec: Path | bytes) -> tuple[bytes, str, Mapping[str, Any]]:
    """(the bytes of a job file, its task's name and configuration); what is wrong with the file
    is told with its name.

    Raises:
        Malformed: FILE_UNREADABLE, JOB_INVALID.
    """
    data = read_spec(spec)
    try:
        return data, *task_of(data)
    except Malformed as fault:
        if not isinstance(spec, Path):
            raise
        raise Malformed(fault.reason, f"{spec}: {fault.message}") from None


def task_of(spec: bytes) -> tuple[str, Mapping[str, Any]]:
    """The task's name and configuration.

    Raises:
        Malformed: JOB_INVALID.
    """
    content = _mapping(spec)
    if not isinstance(content.get("task"), str):
        raise Malformed("JOB_INVALID", "the job file names no task: write `task: NAME`")
    task_config = content.get("task_config", {})
    if not isinstance(task_config, dict):
        raise Malformed("JOB_INVALID", "task_config in the job file must be a mapping")
    return content["task"], task_config


def data_set_of(spec: bytes) -> str:
    """The data set that the job names; empty if it names none (the coordinator says so)."""
    return str(_mapping(spec).get("dataset", ""))


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a job file itself fixes of the work; the coordinator fills in what it leaves out."""

    content: Mapping[str, Any]
    task: str
    task_config: Mapping[str, Any]

    @property
    def project(self) -> str:
        """Whose job it is."""
        return str(self.content.get("project", "default"))

    @property
    def data_set(self) -> str:
        """The data set that the job names."""
        return str(self.content.get("dataset", ""))

    @property
    def without_noise(self) -> bool:
        """Whether it asks for releases without noise."""
        return self._section("privacy").get("mechanism") == "none"

    @property
    def rounds(self) -> int | None:
        """The number of rounds, if it is fixed."""
        value = self._section("federation").get("rounds")
        return value if type(value) is int else None

    def privacy(self, name: str) -> float | None:
        """A number of the section `privacy`."""
        return _number(self._section("privacy").get(name))

    def federation(self, name: str) -> float | None:
        """A number of the section `federation`."""
        return _number(self._section("federation").get(name))

    def _section(self, name: str) -> Mapping[str, Any]:
        value = self.content.get(name)
        return value if isinstance(value, dict) else {}


def facts_of(spec: bytes) -> JobFacts:
    """What the job file fixes. Whether it is a valid one is the coordinator's to say.

    Raises:
        Malformed: JOB_INVALID.
    """
    task, task_config = task_of(spec)
    return JobFacts(_mapping(spec), task, task_config)


def _number(value: object) -> float | None:
    """None also for what the coordinator will refuse, with a sentence of its own."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and EXPONENT.fullmatch(value)):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _mapping(spec: bytes) -> dict[str, Any]:
    try:
        text = spec.decode("utf-8")
        refuse_slips(text)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise Malformed(
            "JOB_INVALID", f"byte {error.start} of the job file is not UTF-8 text"
        ) from None
    except Slip as slip:
        raise Malformed("JOB_INVALID", f"job file: line {slip.line} {slip}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Malformed(
            "JOB_INVALID", f"the job file is not valid YAML{place}: {error.problem}"
        ) from None
    except (yaml.YAMLError, ValueError, LookupError):
        raise Malformed("JOB_INVALID", "the job file is not YAML that can be read") from None
    if not isinstance(content, dict):
        what = {type(None): "nothing", list: "a list"}.get(type(content), "a single value")
        raise Malformed(
            "JOB_INVALID",
            f"the job file holds {what} and no keys: write them as `task: NAME`, one on a line "
            "(docs/jobs.md)",
        )
    return content
