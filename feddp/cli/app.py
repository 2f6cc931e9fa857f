"""The command `feddp`: one file per noun beside this one, and one place where errors end."""

import os
import sys
from typing import Annotated

import typer

from feddp.cli import agent, budget, coordinator, demo, job, model, node, profile, user
from feddp.cli.failures import exit_code_of, tell
from feddp.cli.groups import Group
from feddp.cli.options import json_wanted
from feddp.process import LONG_LIVED, become_long_lived

app = typer.Typer(
    cls=Group,
    name="feddp",
    help="Federated learning for hospitals with differential privacy on the node.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(node.app, name="node")
app.add_typer(user.app, name="user")
app.add_typer(profile.app, name="profile")
app.add_typer(agent.app, name="agent")
app.add_typer(job.app, name="job")
app.add_typer(model.app, name="model")
app.add_typer(budget.app, name="budget")


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    typer.echo(f"feddp {version('feddp')}")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federated learning for hospitals with differential privacy on the node."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code; no traceback reaches a user.

    Exit codes: 0 done; 1 the job or check failed; 2 wrong usage or configuration; 3 not found or
    not allowed; 4 budget refused; 5 the peer was not reached; 130 interrupted by Ctrl-C.
    """
    words = sys.argv[1:] if arguments is None else arguments
    json_wanted.set("--json" in words)
    os.umask(0o077)  # keys, databases, logs and reports are their owner's
    # gRPC's own lines come before our sentences and say less.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if words[:2] in LONG_LIVED:
        become_long_lived()
    try:
        code = app(args=words, prog_name="feddp", standalone_mode=False)
    except BrokenPipeError:
        # Whoever read our output has what they wanted; Python must not complain at exit either.
        sys.stdout = None
        code = 0
    except Exception as error:  # noqa: BLE001 - the one place where every error ends
        tell(error, words)
        code = exit_code_of(error)
    sys.exit(code if isinstance(code, int) else 0)
