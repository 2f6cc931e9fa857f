"""A noun of the command line, and how its help lists its commands."""

from typing import Any, Final

import typer
from typer.core import TyperGroup

SENTENCE_MAX: Final = 1000
"""Characters of a command's first sentence; lines are broken, and nothing is cut off."""


class Group(TyperGroup):
    """A noun whose help says the whole first sentence of each command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Name and sentence, which goes on in the next lines where it is longer than one."""
        shown = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(SENTENCE_MAX))
                    for name, command in shown
                    if command is not None and not command.hidden
                ]
            )


def noun(text: str) -> typer.Typer:
    """An empty noun; `text` is its help. By itself it shows the help."""
    return typer.Typer(cls=Group, help=text, no_args_is_help=True)
