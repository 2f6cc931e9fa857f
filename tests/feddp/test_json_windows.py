"""JSON that is read in windows is what `json.loads` reads whole, and nothing else is read."""

import io
import json
import random
from typing import Any

import pytest

from feddp.cli.verify import json_windows
from feddp.cli.verify.json_windows import JsonWindow


def read(text: str, value_chars_max: int = 10_000) -> dict[str, Any]:
    """An object's members; the elements of those whose name begins with an a, one by one."""
    window = JsonWindow(io.StringIO(text), value_chars_max)
    found = {
        name: list(window.elements()) if name.startswith("a") else window.value()
        for name in window.members()
    }
    window.end()
    return found


VALUES: list[Any] = [
    3,
    -12.5e-7,
    12345678901234567890,
    1e300,
    True,
    None,
    "",
    'quotes " and \\ and ] } , { [',
    "\u2603 \U0001f600 \u0000",
    [],
    {},
    [[1, [2]], {"a": {"b": "]"}}],
    {"seq": 1, "hash": "ab" * 40},
]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_any_cut_of_the_text_gives_the_same_values(
    monkeypatch: pytest.MonkeyPatch, window: int, indent: int | None
) -> None:
    """Whatever stands at a window's end: a number, a word, an escape, a bracket in a name."""
    monkeypatch.setattr(json_windows, "WINDOW", window)
    g = random.Random(f"{window}{indent}")
    for _ in range(20):
        value = {
            "a-list": g.choices(VALUES, k=g.randrange(5)),
            "one": g.choice(VALUES),
            "another-list": g.choices(VALUES, k=3),
        }
        for ascii_only in (True, False):
            assert read(json.dumps(value, indent=indent, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"a": [1 2]}',
        '{"a": [1,]}',
        '{"a": [,1]}',
        '{"a": [1}',
        '{"a": {"b": 1}}',
        '{"a": [{"b": 1}',
        '{"a": 1]',
        '{"b": 1,}',
        '{"b" 1}',
        "{3: 1}",
        '{"b": 1} x',
        '{"b": 1, "b": 1}',
        '{"a": [1, {"b": 1, "b": 1}, 2, 3]}',
        '{"a": [1, {"b" : 1, "b": 1}, 2, 3]}',
        '{"a": [1, {"b": ":", "b": 1}, 2, 3]}',
        '{"a": [1, {"b": NaN, "c": 01}, 2, 3]}',
        '{"a": [], "b": tru}',
    ],
)
@pytest.mark.parametrize("window", [1, 1 << 20])
def test_what_is_no_such_json_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str, window: int
) -> None:
    """A missing comma or bracket, something after the end, one name twice."""
    monkeypatch.setattr(json_windows, "WINDOW", window)
    with pytest.raises(ValueError, match=r".+"):
        read(text)


SPLINTERS = (
    *'":{},\\0-e1.\n\x00',
    "\\ud83d\\ude00",
    "1e400",
    "1e-400",
    "-0",
    "\xe9",
    '"b":1,',
    "9" * 25,
)


def test_flat_objects_are_read_as_any_others_are() -> None:
    """Objects after the first are read by another, faster reader, many at once; 20,000 pairs that
    were bent at random give what `json.loads` gives, number for number, or are left to it."""
    g = random.Random(1)
    taken = 0
    for _ in range(20_000):
        text = '{"b":1,"c":-2.5,"d":"x"}, {"b":2,"c":"}","d":null}'
        for _ in range(g.randrange(3)):
            at = g.randrange(1, len(text) + 1)
            text = text[:at] + g.choice(SPLINTERS) + text[at + g.randrange(3) :]
        end = text.rfind("}") + 1
        found = json_windows._flat(text, 0, end)
        if found is not None:
            taken += 1
            alike = json.loads(f"[{text[:end]}]", object_pairs_hook=json_windows.once)
            assert repr(found) == repr(alike)
    assert taken > 5_000


@pytest.mark.parametrize("together", [1, 30, 100, 1 << 16])
@pytest.mark.parametrize("window", [1, 50, 1 << 20])
def test_flat_objects_among_others_are_read_in_their_order(
    monkeypatch: pytest.MonkeyPatch, window: int, together: int
) -> None:
    """Nothing is left out, or read twice, where many at once end and one by one begins."""
    monkeypatch.setattr(json_windows, "WINDOW", window)
    monkeypatch.setattr(json_windows, "_TOGETHER", together)
    g = random.Random(together)
    kinds = [{"b": 1}, {"b": "}"}, {"b": {"c": 1}}, {"b": [{"c": ":"}]}, {}, [], 17, "},{", None]
    for _ in range(50):
        values = g.choices(kinds, [20, 2, 1, 1, 1, 1, 1, 1, 1], k=40)
        for indent in (None, 2):
            content = {"a": values, "z": {"b": 1}}
            assert read(json.dumps(content, indent=indent)) == content


@pytest.mark.parametrize("value", [{"b": ":"}, {"b": {"c": 1}}, {"b": [{}]}, 17])
def test_what_is_not_flat_is_tried_together_once(
    monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    """A file of a hundred megabytes that is made of such values took hours: each was read with
    all that stood in the 64 KiB after it, once for each of these."""
    tried, together = [], json_windows._flat

    def counted(text: str, at: int, end: int) -> list[dict[str, Any]] | None:
        tried.append(end - at)
        return together(text, at, end)

    monkeypatch.setattr(json_windows, "_flat", counted)
    content = {"a": [value] * 20_000}
    text = json.dumps(content)
    assert read(text) == content
    assert sum(tried) <= len(text)


def test_a_value_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded: what is no entry is refused after the longest that one may be."""
    monkeypatch.setattr(json_windows, "WINDOW", 64)
    file = io.StringIO('{"a": [' + '"' + "x" * 100_000)
    window = JsonWindow(file, value_chars_max=1000)
    assert next(window.members()) == "a"
    with pytest.raises(ValueError, match="too long"):
        next(window.elements())
    assert file.tell() < 5000
