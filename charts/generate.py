"""Write what the chart holds twice: descriptions in its schema, the table in docs/helm.md, and
Grafana's dashboards, whose source is `charts/dashboards/`.

    python charts/generate.py            write all of them
    python charts/generate.py --check    exit code 1 if one is not current

The comments in values.yaml are the text, values.schema.json holds the forms, and the sections of
`coordinator.config` are those of the coordinator's own configuration class.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import annotated_types
import yaml
from pydantic.fields import FieldInfo

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from charts.dashboards import business, compliance, operational, privacy, security  # noqa: E402
from charts.dashboards.panels import build  # noqa: E402
from coordinator.config.keys import PORT, bounds, extra  # noqa: E402
from coordinator.config.sections import CoordinatorConfig, Storage  # noqa: E402
from coordinator.config.surroundings import Monitoring  # noqa: E402

VALUES: Final = ROOT / "charts/feddp/values.yaml"
SCHEMA: Final = ROOT / "charts/feddp/values.schema.json"
DASHBOARDS: Final = ROOT / "charts/feddp/dashboards"
DOCUMENT: Final = ROOT / "docs/helm.md"
BEGIN, END = "<!-- values: made by charts/generate.py -->\n", "<!-- end of values -->\n"

CHARTS_OWN: Final = frozenset({"server", "storage"})
"""Sections that the chart writes itself, from what it mounts and opens."""

_LABEL: Final = r"[^\s:/@?#\[\].]{1,63}"
WEBHOOK: Final = (
    rf"^(https://({_LABEL}(\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(:{PORT})?([/?][!-\"$-~]*)?)?$"
)
"""What the coordinator's own look at monitoring.alert_webhook lets through."""

NOTHING_TAKEN_AWAY: Final = (
    "a mapping that has all of its keys: null, or nothing after the colon, takes a default away; "
    "leave the line out to keep the default"
)

_KEY: Final = re.compile(r"( *)([A-Za-z0-9]+):(.*)")


def comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, comment above it) of every key that has a comment, in the file's order."""
    path: list[str] = []
    said: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            said.append(stripped.removeprefix("#").strip())
            continue
        match = _KEY.fullmatch(line)
        if match is None:
            said = []
            continue
        depth = len(match[1]) // 2
        path = [*path[:depth], match[2]]
        if said:
            yield tuple(path), " ".join(said)
        said = []


def at(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value under a path."""
    for part in path:
        tree = tree[part]
    return tree


def schema_at(schema: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The schema of the value under a path."""
    for part in path:
        schema = schema["properties"][part]
    return schema


def config_schema() -> dict[str, Any]:
    """What `coordinator.config` may hold: the keys of coordinator.yaml, with their bounds."""
    sections = {
        name: _section(field.annotation)
        for name, field in CoordinatorConfig.model_fields.items()
        if name not in CHARTS_OWN
    }
    limit = Storage.model_fields["model_bytes_max"]
    sections["storage"] = _closed({"model_bytes_max": _form(limit)})
    return _closed(sections)


def told(rule: dict[str, Any], words: str) -> dict[str, Any]:
    """A rule of which Helm says, where it is broken, what is allowed and not how that is matched:
    "value must be 'WORDS'". The words themselves are no value."""
    return {"if": rule, "else": {"const": words}, "not": {"const": words}}


def _whole(schema: dict[str, Any], values: dict[str, Any]) -> None:
    """Helm takes away the default of a value that is set to null, and templates would fall over
    what is missing: each mapping that values.yaml has must have all of its keys, but for resources,
    where null takes a limit away."""
    names = list(schema["properties"].keys() & values.keys())
    schema |= {"required": sorted(names), **told({"required": sorted(names)}, NOTHING_TAKEN_AWAY)}
    for name in names:
        if "properties" in schema["properties"][name] and values[name] and name != "resources":
            _whole(schema["properties"][name], values[name])


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _section(model: Any) -> dict[str, Any]:
    return _closed(
        {name: _form(field) for name, field in model.model_fields.items() if not _is_folder(field)}
    )


def _is_folder(field: FieldInfo) -> bool:
    """Where files lie in the pod is the chart's."""
    return "Path" in str(field.annotation)


def _form(field: FieldInfo) -> dict[str, Any]:
    form: dict[str, Any] = {}
    kind = field.annotation
    if get_origin(kind) is Literal:
        form["enum"] = list(get_args(kind))
    elif kind == tuple[str, ...]:
        form |= {"type": "array", "items": {"type": "string"}}
    else:
        names: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
        form["type"] = names[kind]
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Ge):
            form["minimum"] = limit.ge
        elif isinstance(limit, annotated_types.Gt):
            form["exclusiveMinimum"] = limit.gt
        elif isinstance(limit, annotated_types.Le):
            form["maximum"] = limit.le
        elif pattern := getattr(limit, "pattern", None):
            form |= told({"pattern": pattern}, bounds(field))
    if field is Monitoring.model_fields["alert_webhook"]:
        form |= told({"pattern": WEBHOOK}, f"{bounds(field)}, without user and fragment")
    if bounds(field) == "true":
        form = {"const": True}
    said = [str(field.description)]
    if unit := extra(field, "unit"):
        said.append(f"Unit: {unit}.")
    if words := bounds(field):
        said.append(f"Allowed: {words}.")
    form["description"] = " ".join(said)
    return form


def schema_text() -> str:
    """values.schema.json with the comments of values.yaml as its descriptions."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["coordinator"]["properties"]["config"] = config_schema()
    for path, said in comments(VALUES.read_text()):
        schema_at(schema, path)["description"] = said
    _whole(schema, yaml.safe_load(VALUES.read_text()))
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def table() -> str:
    """The values as rows of a table."""
    text = VALUES.read_text()
    values = yaml.safe_load(text)
    rows = ["| Value | Default | Meaning |", "|---|---|---|"]
    for path, said in comments(text):
        default = json.dumps(at(values, path))
        rows.append(f"| `{'.'.join(path)}` | `{default}` | {said.replace('|', ' or ')} |")
    return "\n".join(rows) + "\n"


def document_text() -> str:
    """docs/helm.md with the table in its place."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def made() -> dict[Path, str]:
    """Every file that is made here, and what it should hold."""
    pages = {
        module.__name__.rpartition(".")[2]: module.PAGE
        for module in (operational, privacy, security, compliance, business)
    }
    boards = {DASHBOARDS / f"{name}.json": build(page) for name, page in pages.items()}
    return {SCHEMA: schema_text(), DOCUMENT: document_text(), **boards}


def main() -> int:
    """Write, or compare."""
    stale = [path for path, text in made().items() if not path.exists() or path.read_text() != text]
    left_over = set(DASHBOARDS.glob("*")) - made().keys()
    if "--check" in sys.argv[1:]:
        for path in [*stale, *left_over]:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not current: run charts/generate.py\n")
        return 1 if stale or left_over else 0
    DASHBOARDS.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(made()[path])
    for path in left_over:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
