"""Custom resources against the schemas of their definitions, with unknown fields refused.

A cluster drops a field that it does not know without a word; here it is a fault.
"""

import functools
import json
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

from tests.charts.rendering import Object

FOLDER: Final = Path(__file__).parent / "crds"
GROUPS: Final = (
    "istio.io",
    "gateway.networking.k8s.io",
    "monitoring.coreos.com",
    "cert-manager.io",
    "external-secrets.io",
)


def is_custom(one: Object) -> bool:
    """Whether Kubernetes itself does not know the kind."""
    group: str = one["apiVersion"].partition("/")[0]
    return group.endswith(GROUPS)


def faults(one: Object) -> list[str]:
    """What its definition does not allow; also a version that there is no definition of."""
    definition = _definition(one["apiVersion"].partition("/")[0], one["kind"])
    wanted = f"{definition['group']}/{definition['version']}"
    if one["apiVersion"] != wanted:
        return [f"apiVersion: {one['apiVersion']} is not {wanted}"]
    validator = Draft202012Validator(_closed(definition["schema"], is_root=True))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(one)]


@functools.cache
def _definition(group: str, kind: str) -> dict[str, Any]:
    # A kind's name that the chart has of another group, too.
    own = FOLDER / group / f"{kind}.json"
    path = own if own.exists() else FOLDER / f"{kind}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _closed(schema: dict[str, Any], *, is_root: bool = False) -> dict[str, Any]:
    """The schema with every object limited to its properties.

    Only where a definition has its structure; within `oneOf` and the like stand conditions.
    """
    closed = dict(schema)
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        closed["properties"] = {name: _closed(one) for name, one in schema["properties"].items()}
        if is_root:
            names = {key: {"type": "string"} for key in ("apiVersion", "kind")}
            closed["properties"] |= names | {"metadata": {"type": "object"}}
        open_ = schema.get("x-kubernetes-preserve-unknown-fields") is True
        if "additionalProperties" not in schema and not open_:
            closed["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        closed["items"] = _closed(schema["items"])
    return closed
