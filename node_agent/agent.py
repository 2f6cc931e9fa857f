"""Run an agent until it is told to stop. Nothing here loads what training needs."""

import asyncio
import contextlib
import errno
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
import structlog

from node_agent.background import keep_up
from node_agent.connection.channels import Channels
from node_agent.connection.clock import watch_clock
from node_agent.connection.proxy import route_to
from node_agent.data.header_watch import FIRST_LOOK_S, HeaderWatch
from node_agent.data.overlap_watch import OverlapWatch
from node_agent.failures import keep_short
from node_agent.folder.config import AgentConfig, Folder
from node_agent.folder.installation import locked, read_folder
from node_agent.folder.service import weaknesses
from node_agent.footprint import keep_small
from node_agent.joining.identity import Identity
from node_agent.joining.renewal import Renewal
from node_agent.launchers.base import Limits, StartWorker
from node_agent.launchers.choice import launcher_of
from node_agent.ledger.lost_ledger import is_damage, ledger_damaged, ledger_missing
from node_agent.policy.admission import Admission
from node_agent.policy.steward import Steward, require_known_names
from node_agent.session.driver import Driver
from node_agent.session.ledger_thread import LedgerThread
from node_agent.session.parts import Parts
from node_agent.session.traces import AttemptTraces
from node_agent.state.spool import Spool
from node_agent.state.state import State
from node_agent.tasks.registry import installed
from protos import tracing
from protos.allocation import keep_freed
from protos.errors import FeddpError, Limited

log = structlog.get_logger(__name__)

DISK_THREADS: Final = 4
"""Each costs a stack and keeps what it was last at; the default is up to 32, by the cores."""

FREED_BYTES_KEPT: Final = 4 << 20
"""Room for the messages of one transfer."""


def run(path: Path) -> None:
    """Run the agent of a folder until SIGTERM or SIGINT.

    Raises:
        NotFound: NOT_JOINED, LEDGER_MISSING.
        Malformed: CONFIG_INVALID, PROXY_INVALID, IDENTITY_INVALID, POLICY_INVALID, ...
        Conflict: AGENT_RUNNING.
        Limited: DISK_FULL.
    """
    folder = Folder(path.absolute())
    config, identity = read_folder(folder)
    if not folder.has_ledger:
        raise ledger_missing(folder.state_db)
    # A steward's mistake is told before anything starts; later ones refuse every order.
    require_known_names(Steward(folder).rules())
    keep_freed(FREED_BYTES_KEPT)
    with locked(folder):
        try:
            asyncio.run(_reap_and_serve(folder, config, identity))
        except ExceptionGroup as group:
            if group.subgroup(_is_full) is None:
                raise plain(group, folder.state_db) from None
            raise Limited(
                "DISK_FULL",
                f"the disk under {folder.root} takes no more; free room there and start the agent "
                "again: it goes on where it was",
            ) from None


async def _reap_and_serve(folder: Folder, config: AgentConfig, identity: Identity) -> None:
    launcher = launcher_of(folder, config)
    await launcher.reap()
    await serve(folder, config, identity, launcher.start, asyncio.Event())


def plain(group: ExceptionGroup, ledger: Path) -> Exception:
    """The first of what ended the agent, where all of it is what the command says in plain words;
    else the group, which is a fault of ours.

    Args:
        ledger: the folder's, told by its name where it is damaged.
    """
    known, others = group.split((FeddpError, OSError, sqlite3.Error))
    if known is None or others is not None:
        return group
    found: Exception = known
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    is_damaged = isinstance(found, sqlite3.Error) and is_damage(found)
    return ledger_damaged(ledger) if is_damaged else found


def _is_full(error: BaseException) -> bool:
    name = getattr(error, "sqlite_errorname", "")
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or name == "SQLITE_FULL"


async def serve(
    folder: Folder,
    config: AgentConfig,
    identity: Identity,
    start_worker: StartWorker,
    stop: asyncio.Event,
) -> None:
    """Work until `stop` is set or a signal comes."""
    if config.tracing.endpoint:
        from protos import otlp  # most agents need none of it in memory

        ca_file = folder.root / config.tracing.ca_file if config.tracing.ca_file else None
        otlp.begin(
            *("feddp-agent", config.tracing.endpoint), ca_file=ca_file, instance=identity.node
        )
    route = route_to(config.coordinator, config.proxy, folder.root, os.environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_default_executor(ThreadPoolExecutor(DISK_THREADS, "disk"))
    folder.logs.mkdir(mode=0o700, exist_ok=True)
    ledger = LedgerThread()
    state = State(folder.state_db, identity.node, identity.ledger_key)
    channels = Channels(
        route,
        identity,
        lambda address: route_to(address, config.proxy, folder.root, os.environ),
    )
    steward = Steward(folder)
    headers = HeaderWatch(folder, steward)
    overlaps = OverlapWatch(folder, steward)
    log.info(
        "agent_started",
        node=identity.node,
        coordinator=config.coordinator,
        reached=route.said(),
    )
    with contextlib.suppress(TimeoutError):  # a disk that does not answer must not keep it away
        await asyncio.wait_for(headers.look(), FIRST_LOOK_S)
    for text in weaknesses(folder):
        log.warning("stewards_files_not_apart", do=text)
    works: dict[str, Callable[[], Awaitable[None]]] = {
        "memory": keep_small,
        "headers": headers.run,
        "overlaps": overlaps.run,
        "logs": lambda: keep_short(folder.logs),
        "clock": lambda: watch_clock(identity.chain, lambda: channels.current),
    }
    if config.alerts.is_used:
        from node_agent.alerts.watch import AlertWatch  # most agents need none of it in memory

        watch = AlertWatch(
            *(folder, identity, config.alerts, state, ledger, steward, headers.texts),
            overlaps=overlaps.warnings,
        )
        works["alerts"] = watch.run
    beside = [asyncio.create_task(keep_up(name, work)) for name, work in works.items()]
    try:
        driver = Driver(
            Parts(
                channel=channels.current,
                open_apart=channels.apart,
                address=config.coordinator,
                state=state,
                ledger=ledger,
                steward=steward,
                admission=Admission(
                    identity.node, state, steward, installed, config.model_bytes_max
                ),
                spool=Spool(folder.spool),
                start_worker=start_worker,
                logs=folder.logs,
                limits=Limits(**config.worker.model_dump()),
                tasks=installed,
                unavailable=headers.reasons,
                traces=AttemptTraces(identity.node, times_of_work=config.tracing.times_of_work),
            )
        )

        def adopt(newer: Identity) -> grpc.aio.Channel:
            channel = channels.renewed(newer)
            driver.renewed(channel)
            return channel

        there = config.enrollment or config.coordinator
        renewal = Renewal(
            folder.identity,
            identity,
            channels.current,
            adopt,
            config.enrollment,
            route_to(there, config.proxy, folder.root, os.environ).options(),
            driver.note_refused,
        )
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(renewal.run())
            await driver.run(stop)
            renewing.cancel()
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await channels.close()
        ledger.close()
        state.close()
        await asyncio.to_thread(tracing.end)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    log.info("agent_stopped", node=identity.node)
