"""JSON read from a file value by value: a window of its text is in memory, never all of it."""

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, TextIO

from pydantic_core import from_json

WINDOW: Final = 1 << 20
"""Characters that are read at once."""

_TOGETHER: Final = 1 << 16
"""Characters of flat objects that are read at one stroke."""

_AHEAD: Final = 3
"""Characters that must follow a value before it is over: "1" may go on as 1e+5."""

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_COMMA: Final = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


def once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these members; for `object_pairs_hook`.

    Raises:
        ValueError: a name is there twice: of two values, no reader takes both.
    """
    found = dict(members)
    if len(found) != len(members):
        raise ValueError("a member is there twice")
    return found


_decode: Final = JSONDecoder(object_pairs_hook=once).raw_decode


def _flat(text: str, at: int, end: int) -> list[dict[str, Any]] | None:
    """The objects, with commas between, from `at` to `end`; or None. In a third of the time.

    Only of objects within which there is no other. None also where they are no such objects, are
    cut off, or may have a name twice: each member has a colon, so that as many members as colons
    are all that there are.
    """
    some = text[at:end]
    try:
        found: list[Any] = from_json(f"[{some}]", allow_inf_nan=False)
    except ValueError:
        return None
    if all(type(one) is dict for one in found) and sum(map(len, found)) == some.count(":"):
        return found
    return None


def _is_cut_off(text: str, at: int) -> bool:
    """Whether an object stands here whose end does not; told without the decoder, whose error
    counts the lines of all that is before it."""
    return text.startswith("{", at) and text.find("}", at) < 0


class JsonWindow:
    """A place in a JSON text, which only goes forward.

    Every method raises ValueError where the text is not JSON, and RecursionError where it is
    nested too deeply.
    """

    def __init__(self, file: TextIO, value_chars_max: int) -> None:
        """Begin at the beginning.

        Args:
            value_chars_max: a single value that is longer is refused. It bounds the memory.
        """
        self._file = file
        self._value_chars_max = value_chars_max
        self._text = ""
        self._at = 0

    def members(self) -> Iterator[str]:
        """The names in the object that stands here; its caller reads each value before the next.

        Raises:
            ValueError: also where a name is there twice: of two values, no reader takes both.
        """
        self._take("{")
        if self._next() == "}":
            self._take("}")
            return
        seen = set()
        while True:
            name = self.value()
            if not isinstance(name, str) or name in seen:
                raise ValueError("a member's name is no text, or there twice")
            seen.add(name)
            self._take(":")
            yield name
            if self._next() == "}":
                self._take("}")
                return
            self._take(",")

    def elements(self) -> Iterator[Any]:
        """The values in the array that stands here."""
        self._take("[")
        if self._next() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            # What follows in the window is done here, without the calls: it is most of the time.
            text, one_by_one_to = self._text, 0
            while between := _COMMA.match(text, self._at):
                at = between.end()
                # What was tried together in vain is over before the next try: each value is tried
                # once, also in a file that somebody wrote to make this long.
                if at >= one_by_one_to:
                    to = min(at + _TOGETHER, len(text) - _AHEAD)
                    end = text.rfind("}", at, to) + 1
                    found = _flat(text, at, end) if end else None
                    if found:
                        self._at = end
                        yield from found
                        continue
                    one_by_one_to = end or to
                if _is_cut_off(text, at):
                    break
                try:
                    value, end = _decode(text, at)
                except JSONDecodeError:
                    break  # cut off by the window, or no JSON: `value` tells
                if end + _AHEAD > len(text):
                    break
                self._at = end
                yield value
            if self._next() == "]":
                self._take("]")
                return
            self._take(",")

    def value(self) -> Any:
        """The value that stands here, whole."""
        self._next()
        while True:
            if _is_cut_off(self._text, self._at) and self._more():
                continue
            try:
                value, at = _decode(self._text, self._at)
            except JSONDecodeError:
                if not self._more():
                    raise
                continue
            if at + _AHEAD <= len(self._text) or not self._more():
                self._at = at
                return value

    def end(self) -> None:
        """Nothing but space may follow."""
        if self._next():
            raise ValueError("something follows the value")

    def _next(self) -> str:
        """The first character here that is not space; empty at the end of the text."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise ValueError(f"{character} is missing")
        self._at += 1

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        kept = self._text[self._at :]
        if len(kept) > self._value_chars_max:
            raise ValueError("a value is too long")
        # As much again, so that a long value is not begun anew at each window.
        added = self._file.read(max(WINDOW, len(kept)))
        if added:
            self._text, self._at = kept + added, 0
        return bool(added)
