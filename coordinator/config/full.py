"""The configuration file that shows every key."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from coordinator.config.keys import bounds, extra
from coordinator.config.sections import CoordinatorConfig

_INTRODUCTION = """\
Every key of the coordinator's configuration, with its default.
Made by `python -m coordinator.config_full`; a test compares it with the code.
A file may leave out whatever keeps its default. FEDDP_SECTION__KEY in the environment goes before
the file. Relative paths start at the folder of the file."""


def render_full() -> str:
    """YAML text with every section and key: meaning, unit, bounds, default, and lack of effect."""
    lines = [f"# {line}" for line in _INTRODUCTION.splitlines()]
    for section, holder in CoordinatorConfig.model_fields.items():
        model: Any = holder.annotation
        lines += ["", *_comment(str(model.__doc__), ""), f"{section}:"]
        for name, field in model.model_fields.items():
            lines += [*_key(name, field), ""]
        lines.pop()
    return "\n".join(lines) + "\n"


def _key(name: str, field: FieldInfo) -> Iterator[str]:
    facts = [
        f"Unit: {unit}." if (unit := extra(field, "unit")) else "",
        f"Allowed: {words}." if (words := bounds(field)) else "",
        f"No effect: {why}." if (why := extra(field, "no_effect")) else "",
    ]
    yield from _comment(str(field.description), "  ")
    for fact in facts:
        if fact:
            yield from _comment(fact, "  ")
    yield f"  {name}: {_scalar(field.default)}"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 98, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _scalar(value: object) -> str:
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, BaseModel):
        return "{}"
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()


def main() -> None:
    """Write config/full.yaml of this checkout."""
    target = Path(__file__).resolve().parents[2] / "config" / "full.yaml"
    target.write_text(render_full(), encoding="utf-8")


if __name__ == "__main__":
    main()
