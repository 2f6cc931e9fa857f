"""Keys of the files that people write: what a key means, and what to say when one is wrong."""

import difflib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

PORT: Final = (
    "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
"""A port as a regular expression has it: 1 to 65535."""

_WORDS = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "string": "must be text; put it in quotes",
    "model": "must be a mapping (`key: value` lines)",
    "dict": "must be a mapping (`key: value` lines)",
    "list": "must be a list",
    "tuple": "must be a list",
    "literal": "is not one of the allowed values",
    "finite": "must be a finite number",
    "greater": "is out of bounds",
    "less": "is out of bounds",
    "missing": "is missing",
}


class OutOfBoundsError(ValueError):
    """Bounds that follow from something else than the key; they are told in place of the key's own.

    Args:
        text: which bound is passed.
        allowed: the bounds in words.
    """

    def __init__(self, text: str, allowed: str) -> None:
        super().__init__(text)
        self.allowed = allowed


class Section(BaseModel):
    """A mapping whose keys are all known; a number is never taken from true or false."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_bool(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("must not be true or false")
        return value


def key(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    allowed: str = "",
    no_effect: str = "",
    secret: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    pattern: str | None = None,
    max_length: int | None = None,
) -> Any:
    """A pydantic field with what people must know about it.

    Args:
        default: `...` when the key must be given.
        allowed: its bounds in words, where the numbers do not say it.
        no_effect: why the key changes nothing in the coordinator; empty when it has an effect.
        secret: the value may hold a password; no error repeats it.
    """
    return Field(
        default,
        description=meaning,
        ge=ge,
        gt=gt,
        le=le,
        pattern=pattern,
        max_length=max_length,
        validate_default=True,
        json_schema_extra={
            "unit": unit,
            "allowed": allowed,
            "no_effect": no_effect,
            "secret": secret,
        },
    )


def beside_config(value: Path | None, info: ValidationInfo) -> Path | None:
    """A path, from the folder of the configuration file on."""
    folder: Any = (info.context or {}).get("folder")
    return value if value is None or folder is None else folder / value


def extra(field: FieldInfo, name: str) -> Any:
    """What `key` was given as `unit`, `allowed`, `no_effect` or `secret`."""
    kept = field.json_schema_extra
    return kept.get(name, "") if isinstance(kept, dict) else ""


def bounds(field: FieldInfo) -> str:
    """The allowed values in words; empty when the type says it all."""
    if words := extra(field, "allowed"):
        return str(words)
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    low = high = ""
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Ge):
            low = f"at least {_number(limit.ge)}" if limit.ge else "0 or more"
        elif isinstance(limit, annotated_types.Gt):
            low = f"above {_number(limit.gt)}"
        elif isinstance(limit, annotated_types.Le):
            high = f"at most {_number(limit.le)}"
    return ", ".join(part for part in (low, high) if part)


def _number(limit: Any) -> str:
    return str(int(limit)) if limit == int(limit) else f"{limit:g}"


def nearest(name: str, known: Collection[str]) -> str:
    """A question that names the known key closest to `name`; empty when none is close."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Every fault that `error` holds: (dotted key, sentence with the bounds)."""
    for fault in error.errors(include_url=False):
        path = [str(part) for part in fault["loc"]]
        yield ".".join(path), _sentence(fault, model, path)


def _sentence(fault: ErrorDetails, model: type[BaseModel], path: list[str]) -> str:
    owner, field = _find(model, path)
    if fault["type"] == "extra_forbidden":
        return _unknown(model, owner, path)
    stem = fault["type"].split("_")[0]
    if fault["type"] == "value_error":
        text = str(fault["ctx"]["error"])
    elif fault["type"].startswith(("string_pattern", "string_too")):
        text = "does not have the allowed form"
    else:
        text = _WORDS.get(stem, fault["msg"])
    if field is None:
        return text
    if shown := _shown(fault["input"], field):
        text += f", got {shown}"
    wrong = fault.get("ctx", {}).get("error")
    words = wrong.allowed if isinstance(wrong, OutOfBoundsError) else bounds(field)
    return f"{text} (allowed: {words})" if words else text


def _shown(value: object, field: FieldInfo) -> str:
    if value is None:
        return "nothing"
    if extra(field, "secret") or not isinstance(value, (str, int, float)):
        return ""
    text = repr(value) if isinstance(value, (str, float)) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."


def _find(model: type[BaseModel], path: list[str]) -> tuple[type[BaseModel], FieldInfo | None]:
    """The model that holds the last key of `path`, and the field; None for an unknown key."""
    owner, field = model, None
    for part in path:
        if field is not None and isinstance(field.annotation, type):
            if not issubclass(field.annotation, BaseModel):
                break
            owner = field.annotation
        field = owner.model_fields.get(part, field if part.isdigit() else None)
        if field is None:
            break
    return owner, field


def _unknown(model: type[BaseModel], owner: type[BaseModel], path: list[str]) -> str:
    name = path[-1]
    homes = [
        f"{section}.{name}"
        for section, field in model.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and name in field.annotation.model_fields
    ]
    hint = nearest(name, list(owner.model_fields))
    if homes and not hint:
        hint = f"did you mean {homes[0]}?"
    elif hint and owner is not model:
        hint = hint.replace("mean ", "mean " + ".".join(path[:-1]) + ".")
    return f"unknown key; {hint or 'known here: ' + ', '.join(owner.model_fields)}"
