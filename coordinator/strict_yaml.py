"""YAML that people write, read so that nothing in it can surprise.

Only plain values come out: mappings with text keys, lists, text, numbers, booleans and null. A
document that repeats a key, refers to itself, or is small on the wire and huge once its aliases
are followed is refused before any value is built; so is a number that YAML 1.1 reads as another one
than is written (1:30 as 90, 010 as 8).
"""

import re

import yaml

from protos.errors import Malformed

DEPTH_MAX = 32
VALUES_MAX = 20_000
"""Most values in one document, counted after aliases are followed."""

_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
)

_SLIPPED_POINT = re.compile(r"[-+]?[0-9]+:[0-9]+")
"""A colon lies on the key of the point on many keyboards."""

_AS_WRITTEN = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}


def read_mapping(data: bytes, *, reason: str, where: str, bytes_max: int) -> dict[str, object]:
    """The mapping that `data` holds; an empty document is an empty mapping.

    Args:
        reason: the stable reason of the error that a bad document gets.
        where: what the document is, for people: a path, or "job file".

    Raises:
        Malformed: too large, not UTF-8, not YAML, not one mapping, or one of the traps above.
    """
    if len(data) > bytes_max:
        raise Malformed(
            reason, f"{where}: {len(data)} bytes are above the limit of {bytes_max}; shorten it"
        )
    try:
        text = data.decode("utf-8")
        _check_depth(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise _TrapError("the document must be a mapping (`key: value` lines)", _line(root))
        _Walk().count(root)
        value = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise Malformed(reason, f"{where}: byte {error.start} is not UTF-8 text") from None
    except _TrapError as trap:
        raise Malformed(reason, f"{where}: line {trap.line + 1}: {trap}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise Malformed(reason, f"{where}:{place} not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, LookupError):
        raise Malformed(reason, f"{where}: not valid YAML; check quotes and indents") from None
    if not isinstance(value, dict):
        raise Malformed(reason, f"{where}: the document must be a mapping (`key: value` lines)")
    return value


class _TrapError(Exception):
    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.line = line


def _check_depth(text: str) -> None:
    """Refuse deep nesting from the flat event stream: the composer would recurse into it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                raise _TrapError(f"nested deeper than {DEPTH_MAX} levels", _line(event))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Walk:
    """Counts values with aliases followed; each node once, so that a bomb costs nothing here."""

    def __init__(self) -> None:
        self._counted: dict[int, int] = {}
        self._open: set[int] = set()

    def count(self, node: yaml.Node) -> int:
        line = _line(node)
        if id(node) in self._open:
            raise _TrapError("an alias refers to a value that it stands in", line)
        if id(node) not in self._counted:
            if node.tag not in _PLAIN_TAGS:
                raise _TrapError(
                    f"{_short(node)} would be read as {node.tag}; put it in quotes", line
                )
            _check_number(node, line)
            self._open.add(id(node))
            total = 1 + sum(self.count(child) for child in _children(node))
            self._open.discard(id(node))
            if total > VALUES_MAX:
                raise _TrapError(f"more than {VALUES_MAX} values once aliases are followed", line)
            self._counted[id(node)] = total
        return self._counted[id(node)]


def _check_number(node: yaml.Node, line: int) -> None:
    pattern = _AS_WRITTEN.get(node.tag)
    if pattern is None or pattern.fullmatch(node.value):
        return
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, LookupError):
        raise _TrapError(f"{_short(node)} is no number", line) from None
    meant = f", as {node.value.replace(':', '.')}" if _SLIPPED_POINT.fullmatch(node.value) else ""
    raise _TrapError(
        f"{_short(node)} would be read as {value}; write a number in plain digits{meant}, and a "
        "text in quotes",
        line,
    )


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[str] = set()
    for name, _ in node.value:
        if name.tag == "tag:yaml.org,2002:merge":
            continue
        if name.tag != "tag:yaml.org,2002:str":
            raise _TrapError(f"the key {_short(name)} is not text; quote it", _line(name))
        if name.value in seen:
            raise _TrapError(f"the key {_short(name)} is given twice", _line(name))
        seen.add(name.value)
    return [value for _, value in node.value]


def _line(place: yaml.Node | yaml.Event) -> int:
    return place.start_mark.line if place.start_mark else 0


def _short(node: yaml.Node) -> str:
    return repr(node.value)[:60] if isinstance(node, yaml.ScalarNode) else "this value"
