"""What somebody who mistyped a key of a YAML file may have meant."""

import difflib
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def advice(model: type[BaseModel], place: Sequence[str | int]) -> str:
    """What to say of an unknown key: the nearest known one, or all of them.

    Args:
        place: where it stands, its own name last, as pydantic gives it.
    """
    if near := nearest(model, place):
        return f"there is no such key; did you mean {near}?"
    known = sorted(_model_at(model, place[:-1]).model_fields)
    return f"there is no such key; known here: {', '.join(known)}"


def nearest(model: type[BaseModel], place: Sequence[str | int]) -> str:
    """The known key that an unknown one is most like; empty where none is."""
    known = list(_model_at(model, place[:-1]).model_fields)
    near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
    return near[0] if near else ""


def _model_at(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel]:
    for step in place:
        field = model.model_fields.get(str(step))
        inner = _model_in(field.annotation) if field is not None else None
        if inner is not None:
            model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, alone or in a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, dict, Union, UnionType, Annotated):
        found = (_model_in(one) for one in get_args(annotation))
        return next((one for one in found if one is not None), None)
    return None
