"""What YAML reads otherwise than the person who wrote it meant, or never comes to an end with.

A limit on privacy must be what is written: YAML 1.1 reads 1:5 as 65, 010 as 8 and 1_0 as 10. And a
file that nests without end, refers to itself or grows when its references are followed must be a
fault that names the line, not the end of an agent or a coordinator that reads it while it works.
"""

import re
from typing import Final

import yaml

DEPTH_MAX: Final = 32
VALUES_MAX: Final = 20_000
"""Most values of one file, counted after references are followed."""

EXPONENT: Final = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
"""A number to people, as 1e-5, and text to YAML 1.1, which wants a point in it: where a job file
has a number it is read as one, by who signs the job and by who runs it."""

_SHOWN_CHARS_MAX: Final = 40
TAG: Final = "tag:yaml.org,2002:"
_BUILT: Final = {f"{TAG}timestamp": "date", f"{TAG}bool": "truth value"} | dict.fromkeys(
    (f"{TAG}int", f"{TAG}float"), "number"
)
"""What can fail to be built from a text, and what that is called."""

_PLAIN: Final = {
    f"{TAG}int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    f"{TAG}float": re.compile(
        r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}


class Slip(Exception):
    """What is wrong, in words that go on after the file's name; and where.

    Attributes:
        line: counted from 1.
    """

    def __init__(self, text: str, place: yaml.Node | yaml.Event) -> None:
        super().__init__(text)
        self.line = place.start_mark.line + 1 if place.start_mark else 1


def refuse_slips(text: str) -> None:
    """Look through a document before any value of it is built.

    Raises:
        Slip: the first that is found.
        yaml.YAMLError: it is no YAML.
    """
    _refuse_depth(text)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        _Walk().count(root)


def _refuse_depth(text: str) -> None:
    """From the flat stream of events, as the composer would recurse into it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                raise Slip(f"nests deeper than {DEPTH_MAX} levels; write it plainly", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Walk:
    """Counts values with references followed; each node is looked at once."""

    def __init__(self) -> None:
        self._counted: dict[int, int] = {}
        self._open: set[int] = set()

    def count(self, node: yaml.Node) -> int:
        if id(node) in self._open:
            raise Slip("refers to itself (& and *); write it out", node)
        if id(node) not in self._counted:
            self._open.add(id(node))
            total = 1 + sum(self.count(one) for one in _children(node))
            self._open.discard(id(node))
            if total > VALUES_MAX:
                raise Slip(f"holds more than {VALUES_MAX} values; shorten it", node)
            self._counted[id(node)] = total
        return self._counted[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        _refuse_scalar(node)
        return []
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in seen:
            raise Slip(f"gives {key.value!r} again; keep one", key)
        seen.add(key.value)
    return [one for pair in node.value for one in pair]


def _refuse_scalar(node: yaml.ScalarNode) -> None:
    written = node.value
    # No file name can hold the first, and nothing can be made of the second.
    if "\0" in written or any("\ud800" <= one <= "\udfff" for one in written):
        raise Slip("holds a character that no name or text can hold; write it anew", node)
    if node.tag not in _BUILT:
        return
    shown = ascii(written)[1:-1][:_SHOWN_CHARS_MAX] or "an empty text"
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, LookupError):
        text = f"gives {shown}, which is no {_BUILT[node.tag]} that there is; write it anew"
        raise Slip(text, node) from None
    plain = _PLAIN.get(node.tag)
    if plain is None or plain.fullmatch(written) is not None:
        return
    meant = f", as {written.replace(':', '.')}" if _is_slipped_point(written) else ""
    raise Slip(
        f"gives {shown}, which YAML reads as {value}: write a number in plain digits{meant}, and a "
        "text in quotes",
        node,
    )


def _is_slipped_point(written: str) -> bool:
    """A colon lies on the key of the point on many keyboards."""
    return re.fullmatch(r"[-+]?[0-9]+:[0-9]+", written) is not None
