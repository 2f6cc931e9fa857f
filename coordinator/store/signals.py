"""That something has changed, told to the other replicas at once by PostgreSQL's LISTEN and NOTIFY.

A signal makes a look come sooner, and nothing depends on it: whoever waits for one looks from time
to time as well, so that a signal that is lost costs that time and lets nobody in. On SQLite there
is nobody to tell.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from coordinator.store.engines import CONNECTING, is_sqlite

log = structlog.get_logger(__name__)

WHO_MAY_CALL: Final = "feddp_who_may_call"
WORK: Final = "feddp_work"
"""There is something that any replica may do for the one that leads."""

AGAIN_S: Final = 5.0
"""Between two tries to listen."""


def announce(connection: Connection, channel: str = WHO_MAY_CALL) -> None:
    """Tell every listener, once this transaction has committed."""
    if connection.dialect.name == "postgresql":
        connection.execute(_NOTIFY, {"channel": channel})


_NOTIFY: Final = text("SELECT pg_notify(:channel, '')")


async def listen(url: str, told: Mapping[str, asyncio.Event]) -> None:
    """Set a channel's event at each announcement, for ever, over a connection of its own.

    All are also set whenever listening begins: what was announced before that is not heard.

    Args:
        url: as SQLAlchemy has it; returns at once for SQLite.
    """
    if is_sqlite(url):
        return
    import psycopg

    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(
                address, autocommit=True, **CONNECTING
            )
            async with connection:
                for channel in told:
                    await connection.execute(f"LISTEN {channel}")
                for event in told.values():
                    event.set()
                async for heard in connection.notifies():
                    told[heard.channel].set()
        except (psycopg.Error, OSError) as error:
            log.info("signals_not_heard", fault=type(error).__name__)
        await asyncio.sleep(AGAIN_S)
