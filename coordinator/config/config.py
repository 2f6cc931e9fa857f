"""The coordinator's configuration: one YAML file, checked whole before anything starts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from coordinator.config.effects import Finding, effects
from coordinator.config.full import render_full
from coordinator.config.keys import nearest, problems
from coordinator.config.sections import CoordinatorConfig
from coordinator.config.strict_yaml import read_mapping
from coordinator.store.engines import is_sqlite
from protos.errors import Malformed

__all__ = ["CoordinatorConfig", "Finding", "config_from", "effects", "load_config", "render_full"]

REASON = "CONFIG_INVALID"
FILE_BYTES_MAX = 1 << 20
ENVIRONMENT_PREFIX = "FEDDP_"


def load_config(path: Path, environ: Mapping[str, str]) -> CoordinatorConfig:
    """Read `path`, put the variables `FEDDP_SECTION__KEY` of `environ` over it, and check all.

    Returns:
        The configuration; relative paths in it are resolved against the file's folder.

    Raises:
        Malformed: CONFIG_INVALID, with a line for every fault, not only the first.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Malformed(
            REASON, f"{path}: cannot be read ({error.strerror}); `feddp coordinator init` makes one"
        ) from None
    return config_from(data, path, environ)


def config_from(data: bytes, path: Path, environ: Mapping[str, str]) -> CoordinatorConfig:
    """As `load_config`, of a file that is not written yet.

    Raises:
        Malformed: CONFIG_INVALID.
    """
    raw: dict[str, Any] = {
        # A section whose keys are all commented out is null in YAML.
        name: {} if value is None else value
        for name, value in read_mapping(
            data, reason=REASON, where=str(path), bytes_max=FILE_BYTES_MAX
        ).items()
    }
    origin, faults = _override(raw, environ)
    _default_blob_dir(raw)
    folder = path.absolute().parent
    try:
        config = CoordinatorConfig.model_validate(
            {name: raw.get(name, {}) for name in [*CoordinatorConfig.model_fields, *raw]},
            context={"folder": folder},
        )
    except ValidationError as error:
        for name, text in problems(error, CoordinatorConfig):
            faults.append(f"{origin.get(name, path)}: {name}: {text}")
    else:
        for name, text in _apart(config):
            faults.append(f"{origin.get(name, path)}: {name}: {text}")
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise Malformed(REASON, f"{count} in the configuration, nothing was started:\n{lines}")
    return config


def _apart(config: CoordinatorConfig) -> Iterator[tuple[str, str]]:
    """Keys that need another one."""
    storage = config.storage
    if config.server.replica_host and is_sqlite(storage.database_url):
        yield (
            "server.replica_host",
            "several coordinators share one PostgreSQL (storage.database_url); a SQLite file has "
            "one machine",
        )
    if config.server.replica_host and not storage.blob_url:
        yield (
            "server.replica_host",
            "several coordinators share one store of models (storage.blob_url): with a folder each "
            "the next leader would not find what the one before it acknowledged",
        )
    if storage.blob_endpoint and not storage.blob_url:
        yield "storage.blob_endpoint", "it belongs to storage.blob_url, which is not given"


def _override(raw: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Write the environment's values into `raw`; return where each key came from, and faults."""
    origin: dict[str, str] = {}
    faults: list[str] = []
    sections = {
        name: field.annotation
        for name, field in CoordinatorConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    for variable in sorted(environ):
        section, parts, name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if not variable.startswith(ENVIRONMENT_PREFIX) or not parts:
            continue
        if section not in sections:
            hint = nearest(section, list(sections)) or "sections: " + ", ".join(sections)
            faults.append(f"environment {variable}: no section {section}; {hint}")
            continue
        body = raw.setdefault(section, {})
        if not isinstance(body, dict):
            continue
        field = sections[section].model_fields.get(name)
        is_list = field is not None and field.annotation == tuple[str, ...]
        body[name] = _list_in(environ[variable]) if is_list else environ[variable]
        origin[f"{section}.{name}"] = f"environment {variable}"
    return origin, faults


def _list_in(text: str) -> list[str]:
    """`a, b` and `["a", "b"]` alike."""
    return [part.strip(" '\"") for part in text.strip("[] ").split(",") if part.strip()]


def _default_blob_dir(raw: dict[str, Any]) -> None:
    """Without storage.blob_dir, models live in federation.model_registry if that is given."""
    federation, storage = raw.get("federation"), raw.setdefault("storage", {})
    if isinstance(federation, dict) and isinstance(storage, dict):
        registry = federation.get("model_registry")
        if isinstance(registry, str):
            storage.setdefault("blob_dir", registry)
