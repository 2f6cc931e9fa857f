"""YAML that people write, read so that nothing in it can surprise.

Only plain values come out: mappings with text keys, lists, text, numbers, booleans and null.
"""

from collections.abc import Iterator

import yaml

from protos.errors import Malformed
from protos.yaml_slips import TAG, Slip, refuse_slips

_PLAIN_TAGS = frozenset(
    f"{TAG}{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
)


def read_mapping(data: bytes, *, reason: str, where: str, bytes_max: int) -> dict[str, object]:
    """The mapping that `data` holds; an empty document is an empty mapping.

    Args:
        reason: the stable reason of the error that a bad document gets.
        where: what the document is, for people: a path, or "job file".

    Raises:
        Malformed: too large, not UTF-8, not YAML, not one mapping, holds other than plain values,
            or what `refuse_slips` finds.
    """
    if len(data) > bytes_max:
        raise Malformed(
            reason, f"{where}: {len(data)} bytes are above the limit of {bytes_max}; shorten it"
        )
    try:
        text = data.decode("utf-8")
        refuse_slips(text)
        _refuse_others(text)
        value = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise Malformed(reason, f"{where}: byte {error.start} is not UTF-8 text") from None
    except Slip as slip:
        raise Malformed(reason, f"{where}: line {slip.line} {slip}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise Malformed(reason, f"{where}:{place} not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, LookupError):
        raise Malformed(reason, f"{where}: not valid YAML; check quotes and indents") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(reason, f"{where}: the document must be a mapping (`key: value` lines)")
    return value


def _refuse_others(text: str) -> None:
    """Refuse values and keys that are not plain; of a document that comes to an end."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    seen: set[int] = set()
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.tag not in _PLAIN_TAGS:
            raise Slip(f"gives {_short(node)}, which would be read as {node.tag}; quote it", node)
        waiting += _values(node)


def _values(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in (f"{TAG}str", f"{TAG}merge"):
                raise Slip(f"has the key {_short(key)}, which is not text; quote it", key)
            yield value


def _short(node: yaml.Node) -> str:
    return repr(node.value)[:60] if isinstance(node, yaml.ScalarNode) else "a value"
