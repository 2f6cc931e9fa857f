"""What documents may name, as the code has it: commands, keys, values, reasons, headings."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
NOUNS: Final = (
    *("agent", "budget", "coordinator", "demo", "job", "model", "node", "profile", "user"),
)
PACKAGES: Final = ("certs", "coordinator", "feddp", "node_agent", "privacy", "protos")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (made := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(made)
    return found


def links(text: str) -> set[str]:
    """Targets of a page's links that lie in the repository."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return {one for one in found if not re.match(r"[a-z]+:", one)}


def commands(text: str) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(words, options) of each `feddp ...` in a page, in a block or between backticks."""
    found = set()
    pattern = rf"(?:^|[\s`(/\"])feddp ((?:{'|'.join(NOUNS)})\b[^`\n|;&]*)"
    text = text.replace("\\\n", " ")
    inner = re.findall(r"\$\((feddp [^)]*)\)", text)
    text = "\n".join([re.sub(r"\$\(feddp [^)]*\)", "VALUE", text), *inner])
    for line in re.findall(pattern, text, re.MULTILINE):
        shown = line.partition("  #")[0]
        try:
            words = shlex.split(shown, comments=True)
        except ValueError:  # a quote that is closed behind a placeholder
            words = shown.split()
        noun: list[str] = []
        for word in words:
            if not re.fullmatch(r"[a-z][a-z-]*", word) or not _is_command((*noun, word)):
                break
            noun.append(word)
        options = {
            word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z][\w=-]*", word)
        }
        found.add((tuple(noun), tuple(sorted(options))))
    return found


@cache
def _tree() -> dict[str, Any]:
    """Every command as nested names; a leaf is empty."""
    from feddp.cli.app import app

    def names(group: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            (one.name or one.callback.__name__): {} for one in group.registered_commands
        }
        for inner in group.registered_groups:
            made[inner.name] = names(inner.typer_instance)
        return made

    return names(app)


def _is_command(words: tuple[str, ...]) -> bool:
    here = _tree()
    for word in words:
        if word not in here:
            return False
        here = here[word]
    return True


def is_whole(words: tuple[str, ...]) -> bool:
    """Whether words name a command or a group of commands."""
    return bool(words) and _is_command(words)


@cache
def help_of(words: tuple[str, ...]) -> str:
    """What `--help` of a command prints."""
    return subprocess.run(
        [sys.executable, "-m", "feddp", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def _dotted(tree: Any, before: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {before}
    return {before} | {
        key for name, inner in tree.items() for key in _dotted(inner, f"{before}.{name}".strip("."))
    }


@cache
def configuration_keys() -> set[str]:
    """Every key of coordinator.yaml, with its section."""
    return _dotted(yaml.safe_load((ROOT / "config/full.yaml").read_text()))


@cache
def chart_values() -> set[str]:
    """Every value of the chart."""
    return _dotted(yaml.safe_load((ROOT / "charts/feddp/values.yaml").read_text()))


def is_key(name: str) -> bool:
    """Whether it is a key of the configuration or a value of the chart, also a value that is told
    among its siblings without what they all begin with."""
    values = chart_values()
    return name in configuration_keys() | values or any(v.endswith(f".{name}") for v in values)


@cache
def literals() -> set[str]:
    """Words in capitals with an underscore, in any string of the programs."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.update(re.findall(r"[A-Z]+(?:_[A-Z0-9]+)+_?", node.value))
    return found


def is_reason(name: str) -> bool:
    """Whether the programs say it; where a word is put in, only the beginning stands there."""
    return any(one == name or (one.endswith("_") and name.startswith(one)) for one in literals())


def is_module(name: str) -> bool:
    """Whether dots separate a package, a module and what is in it."""
    package, module, *_ = name.split(".")
    return (ROOT / package / f"{module}.py").exists()
