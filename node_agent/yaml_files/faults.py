"""What is wrong with one key of a YAML file: a sentence and an example, never pydantic's own words.

The examples come from the types: a field's default or `examples`, a text's shape, a choice's first.
"""

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from node_agent.yaml_files.known_keys import advice, nearest
from node_agent.yaml_files.shapes import Shape

_TAGS: Final = ("<number>", "<category>")
"""Of the two forms of a column's type, see `node_agent.data.datasets`."""

FAULTS_TOLD_MAX: Final = 20

_KINDS: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number that is finite",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path, as text",
    "list_type": "a list",
    "dict_type": "a group of `key: value` lines",
    "model_type": "a group of `key: value` lines",
    "model_attributes_type": "a group of `key: value` lines",
}
_BOUNDS: Final = {
    "greater_than": ("gt", "above {}"),
    "greater_than_equal": ("ge", "{} or more"),
    "less_than": ("lt", "below {}"),
    "less_than_equal": ("le", "{} or less"),
    "string_too_short": ("min_length", "text of at least {} characters"),
    "string_too_long": ("max_length", "text of at most {} characters"),
    "too_short": ("min_length", "of at least {} entries"),
    "too_long": ("max_length", "of at most {} entries"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fault is.

    Attributes:
        key: as a person would write it, "accounts.0.delta".
        name, field: of the field that it is or is within, as "withdrawn" of "withdrawn.0"; empty
            and None of the whole file.
    """

    key: str
    name: str
    field: FieldInfo | None


def to_tell(model: type[BaseModel], faults: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Those of one file that say something: a mistyped key is also missing under its own name, and
    says more. Unknown keys come first."""
    unknown = [one for one in faults if one["type"] == "extra_forbidden"]
    meant = {(one["loc"][:-1], nearest(model, one["loc"])) for one in unknown}
    others = [
        one
        for one in faults
        if one["type"] != "extra_forbidden"
        and not (one["type"] == "missing" and (one["loc"][:-1], str(one["loc"][-1])) in meant)
    ]
    return unknown + others


def counted(texts: Sequence[str]) -> str:
    """Several faults in one line, each with its number; one as it is."""
    if len(texts) == 1:
        return texts[0]
    told = texts[:FAULTS_TOLD_MAX]
    listed = "; ".join(f"({number}) {text}" for number, text in enumerate(told, start=1))
    return f"{len(texts)} faults{f', the first {len(told)}' * (told != texts)}: {listed}"


def place_of(model: type[BaseModel], loc: Sequence[str | int]) -> Place:
    """Follow a fault's place through the types; what pydantic puts between the keys is left out."""
    annotation: Any = model
    field: FieldInfo | None = None
    keys: list[str] = []
    name = ""
    for step in loc:
        inner = _bare(annotation)
        if step == "[key]":
            keys.pop()
            annotation = get_args(inner)[0] if get_args(inner) else None
        elif (choice := _tagged(inner, step)) is not None or step in _TAGS:
            annotation = choice
        else:
            keys.append(str(step))
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                field = inner.model_fields.get(str(step))
                name, annotation = str(step), _typed(field) if field is not None else None
            else:
                annotation = get_args(inner)[-1] if get_args(inner) else None
    return Place(".".join(keys), name, field)


def sentence(model: type[BaseModel], fault: ErrorDetails) -> str:
    """What is wrong and how it may be written, without its full stop."""
    kind, place = fault["type"], place_of(model, fault["loc"])
    if kind == "extra_forbidden":
        return advice(model, fault["loc"])
    told = _told(kind, fault)
    # Where a group was found wrong as a whole, its own words say what does not go together.
    example = "" if kind == "value_error" and _is_group(place) else _shown(place)
    return f"{told}, for instance `{example}`" if example and "instance" not in told else told


def _told(kind: str, fault: ErrorDetails) -> str:
    context = fault.get("ctx", {})
    if kind == "value_error":
        return fault["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return "it is missing"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"must be {words.format(_number(context[bound]))}"
    if kind in ("literal_error", "union_tag_invalid", "union_tag_not_found"):
        return _choices(kind, context, fault["input"])
    return "is not what belongs here"


def _choices(kind: str, context: Mapping[str, Any], given: object) -> str:
    listed = str(context.get("expected") or context.get("expected_tags") or "").replace("'", "")
    known = listed.replace(" or ", ", ").split(", ")
    tag = str(context.get("tag", given))
    near = difflib.get_close_matches(tag, known, n=1, cutoff=0.5)
    if kind == "union_tag_not_found":
        return f"{str(context['discriminator']).strip(chr(39))} is missing in it"
    subject = str(context["discriminator"]).strip("'") + " " if "tag" in context else ""
    said = f"{subject}must be {'one of ' if len(known) > 1 else ''}{', '.join(known)}"
    return f"{said}; did you mean {near[0]}?" if near else said


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(place: Place) -> str:
    """`key: example`, of one line and of a whole field; empty where nothing is known of it."""
    if place.field is None:
        return ""
    found = example_of(_typed(place.field), place.field)
    if found is None:
        return ""
    group = isinstance(found, list | dict)
    text = yaml.safe_dump(
        {place.name: found}, default_flow_style=group, sort_keys=False, width=10_000
    ).strip()
    return text[1:-1] if group else text


def _is_group(place: Place) -> bool:
    found = example_of(_typed(place.field), place.field) if place.field is not None else {}
    return isinstance(found, dict) or (isinstance(found, list) and isinstance(found[0], dict))


def _typed(field: FieldInfo) -> Any:
    """A field's type with what pydantic has taken out of it."""
    return Annotated[field.annotation, *(field.metadata or [None])]


def example_of(annotation: Any, field: FieldInfo | None = None) -> Any:
    """A value that belongs at a place, in YAML's own types; None where none is known."""
    if field is not None and field.examples:
        return field.examples[0]
    shapes = [
        one.func.example
        for one in _metadata(annotation)
        if isinstance(one, AfterValidator) and isinstance(one.func, Shape)
    ]
    if shapes:
        return shapes[0]
    if field is not None and _is_plain(field.default):
        return field.default
    inner = _bare(annotation)
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        required = {
            name: example_of(_typed(one), one)
            for name, one in inner.model_fields.items()
            if one.is_required()
        }
        return required or _first_field(inner)
    arguments = get_args(inner)
    if get_origin(inner) is list:
        return [example_of(arguments[0])]
    if get_origin(inner) is dict:
        return {example_of(arguments[0]): example_of(arguments[1])}
    if get_origin(inner) is Literal:
        return arguments[0]
    if get_origin(inner) in (Union, types.UnionType):
        return next((one for one in map(example_of, arguments) if one is not None), None)
    return _simple(inner, annotation)


def _first_field(model: type[BaseModel]) -> dict[str, Any]:
    """One key of a group that needs none."""
    name, field = next(iter(model.model_fields.items()))
    return {name: example_of(_typed(field), field)}


def _simple(kind: Any, annotation: Any) -> Any:
    if kind is bool:
        return True
    if kind in (int, float):
        least = [getattr(one, "ge", None) for one in _metadata(annotation)]
        return kind(next((one for one in least if one), 1))
    return "text" if kind is str else None


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and value not in ("", 0)


def _metadata(annotation: Any) -> list[Any]:
    found: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        found += more
    for one in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ():
        found += _metadata(one)
    return found


def _bare(annotation: Any) -> Any:
    """Without its metadata, and without None beside it."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        others = [one for one in get_args(annotation) if one is not type(None)]
        if len(others) == 1:
            return _bare(others[0])
    return annotation


def _tagged(annotation: Any, tag: str | int) -> Any:
    """Of several groups that differ by `kind`, the one of this kind; None where there are none."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    groups = [one for one in map(_bare, get_args(annotation)) if hasattr(one, "model_fields")]
    if tag == "<category>":
        return groups[0]
    kinds = [(one, one.model_fields.get("kind")) for one in groups]
    return next((one for one, kind in kinds if kind and tag in get_args(kind.annotation)), None)
