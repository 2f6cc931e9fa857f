"""`feddp coordinator upgrade`: the tables, and what upgrading them asks of older coordinators."""

from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.coordinator_place import Config, Folder, config_path
from feddp.cli.options import Json

if TYPE_CHECKING:
    from coordinator.upgrading import UpgradePlan


def upgrade(
    config: Config = None,
    folder: Folder = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done, and change nothing.")
    ] = False,
    revision: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="REVISION",
            help="With --plan: from tables of this revision, wherever they are.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Upgrade the tables to this version, as a start does; for good: make a backup first.

    Migrations that let coordinators of older versions serve meanwhile run beneath them; others are
    refused until all of them have been stopped.
    """
    import os

    from coordinator import upgrading
    from coordinator.config.config import load_config
    from coordinator.store.database import Database
    from protos.errors import Malformed

    if revision and not plan:
        raise Malformed("USAGE", "--from goes with --plan")
    if revision:
        found = upgrading.plan_from(revision)
    else:
        loaded = load_config(config_path(config, folder), os.environ)
        found = upgrading.plan(loaded)
        if not plan:
            database = Database(loaded.storage.database_url)
            try:
                database.migrate()
            finally:
                database.close()
    _show(found, as_json, done=not plan)


def _show(found: "UpgradePlan", as_json: bool, *, done: bool) -> None:
    if as_json:
        output.print_json(
            {
                "done": done,
                "revision": found.revision,
                "newest": found.newest,
                "needs_stop": found.needs_stop,
                "served_by": found.served_by,
                "oldest_that_serves": found.oldest_that_serves,
                "migrations": [
                    {
                        "revision": one.revision,
                        "title": one.title,
                        "older_may_serve": one.older_may_serve,
                    }
                    for one in found.migrations
                ],
            }
        )
        return
    for one in found.migrations:
        how = "older versions may serve" if one.older_may_serve else "needs a stop"
        output.line(f"{one.revision}  {how:<24}  {one.title}")
    if not found.migrations:
        output.line(f"the tables are at {found.revision}: there is nothing to upgrade")
    elif done:
        output.line(f"the tables were at {found.revision} and are at {found.newest}")
    else:
        served = f"; {found.served_by} serves them now" if found.served_by else ""
        output.line(
            f"the tables are at {found.revision}, this version's are {found.newest}{served}"
        )
        output.line(
            "stop every coordinator of an older version first"
            if found.needs_stop
            else "coordinators of the older version may serve until they are replaced"
        )
