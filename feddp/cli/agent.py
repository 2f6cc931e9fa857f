"""`feddp agent`: join a federation, run the node agent, see how it is."""

from pathlib import Path
from typing import Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Json

app = typer.Typer(help="Join a federation and run the node agent.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The agent's folder.")]


@app.command()
def join(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="As `feddp node token` gave it.")],
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Redeem a join token: makes the node's keys here and brings its certificate."""
    from node_agent.enrol import join as join_federation

    join_federation(token, folder)
    if as_json:
        output.print_json({"dir": str(folder), "joined": True})
        return
    output.line(f"joined; the node's identity is in {folder / 'identity'}")
    output.line(f"say what may be learned in policy.yaml and datasets.yaml in {folder}, then:")
    output.line(f"  feddp agent run --dir {folder}")


@app.command()
def run(
    folder: Folder,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Run the agent until SIGTERM. It opens connections to the coordinator and accepts none."""
    from feddp.logging import configure_logging
    from node_agent.agent import run as run_agent

    configure_logging(log_level)
    run_agent(folder)


@app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """What the agent on this machine knows: identity, policy, budgets by its own ledger."""
    from node_agent.agent import status as agent_status

    found = agent_status(folder)
    output.print_json(found)
