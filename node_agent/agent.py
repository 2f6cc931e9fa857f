"""Run an agent, or tell how it stands. Nothing here loads what training needs."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import grpc
import structlog

from node_agent.admission import Admission
from node_agent.allowed import dead_entries, usable_tasks
from node_agent.channels import Channels
from node_agent.config import AgentConfig, Folder, load_config
from node_agent.datasets import DataSetSpec
from node_agent.failures import keep_short
from node_agent.footprint import keep_small
from node_agent.header_watch import FIRST_LOOK_S, HeaderWatch
from node_agent.headers import WrongHeader, check_header
from node_agent.identity import Identity, load_identity
from node_agent.judgement import filter_of, not_raised
from node_agent.launchers.base import Limits, StartWorker
from node_agent.launchers.choice import launcher_of
from node_agent.overlap_watch import watch_overlaps
from node_agent.overlaps import overlaps
from node_agent.own_ledger import KeptAccount
from node_agent.payers import require_kept
from node_agent.policy import AccountPolicy, above_limit
from node_agent.proxy import route_to
from node_agent.renewal import Renewal
from node_agent.service import weaknesses
from node_agent.session.driver import CONNECTED_NOTE, Driver, Parts
from node_agent.session.ledger_thread import LedgerThread
from node_agent.share_balances import balances_within
from node_agent.spool import Spool
from node_agent.state import REFUSED_NOTE, ROLLED_BACK_NOTE, State, ledger_missing
from node_agent.steward import Rules, Steward, in_force, require_known_names, unknown_names
from node_agent.tasks.registry import installed
from privacy.ledger import verify
from privacy.stages import stage_of
from protos.allocation import keep_freed
from protos.errors import Conflict, FeddpError, Limited, Malformed

log = structlog.get_logger(__name__)

LOCK_TRIES: Final = 10
LOCK_WAIT_S: Final = 0.1
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
    if not folder.state_db.exists():
        raise ledger_missing(folder)
    # A steward's mistake is told before anything starts; later ones refuse every order.
    require_known_names(Steward(folder).rules())
    keep_freed(FREED_BYTES_KEPT)
    with locked(folder):
        try:
            asyncio.run(_reap_and_serve(folder, config, identity))
        except ExceptionGroup as group:
            if group.subgroup(_is_full) is None:
                raise
            raise Limited(
                "DISK_FULL",
                f"the disk under {folder.root} takes no more; free room there and start the agent "
                "again: it goes on where it was",
            ) from None


async def _reap_and_serve(folder: Folder, config: AgentConfig, identity: Identity) -> None:
    launcher = launcher_of(folder, config)
    await launcher.reap()
    await serve(folder, config, identity, launcher.start, asyncio.Event())


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
    route = route_to(config.coordinator, config.proxy, folder.root, os.environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_default_executor(ThreadPoolExecutor(DISK_THREADS, "disk"))
    folder.logs.mkdir(mode=0o700, exist_ok=True)
    ledger = LedgerThread()
    state = State(folder.state_db, identity.node, identity.ledger_key)
    channels = Channels(route, identity)
    steward = Steward(folder)
    headers = HeaderWatch(folder, steward)
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
    beside = [
        asyncio.create_task(keep_small()),
        asyncio.create_task(headers.run()),
        asyncio.create_task(watch_overlaps(folder, steward)),
        asyncio.create_task(keep_short(folder.logs)),
    ]
    if config.alerts.is_used:
        from node_agent.alert_watch import AlertWatch  # most agents need none of it in memory

        watch = AlertWatch(folder, identity, config.alerts, state, ledger, steward, headers.texts)
        beside.append(asyncio.create_task(watch.run()))
    try:
        driver = Driver(
            Parts(
                channel=channels.current,
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
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    log.info("agent_stopped", node=identity.node)


def status(path: Path) -> dict[str, Any]:
    """How the agent of a folder stands, whether it runs or not; JSON-ready.

    Raises:
        NotFound: NOT_JOINED.
        Malformed: CONFIG_INVALID, IDENTITY_INVALID.
    """
    folder = Folder(path.absolute())
    config, identity = read_folder(folder)
    running = is_locked(folder)
    answer: dict[str, Any] = {
        "node": identity.node,
        "node_class": config.node_class,
        "coordinator": config.coordinator,
        "enrollment": config.enrollment,
        "certificate_expires_at": identity.expires_at.timestamp(),
        "certificate_renews_at": identity.renews_at.timestamp(),
        "running": running,
        "connected": False,
        "connected_since": None,
        "refused": None,
        "rules": {"ok": True, "message": ""},
        "installed_tasks": sorted(f"{i.name}@{i.content_hash}" for i in installed().values()),
        "data_sets": [],
        "shares_failure_class": False,
        "overlaps": [],
        "accounts": [],
        "attempts": {},
        "ledger": {
            "verified": True,
            "entries": 0,
            "problems": [],
            "disputes": [],
            "rolled_back": "",
            "missing": "",
        },
    }
    rules = None
    try:
        rules = Steward(folder).rules()
        answer["data_sets"] = [_data_set(spec, rules) for spec in rules.data_sets]
        answer["shares_failure_class"] = rules.policy.share_failure_class
        answer["overlaps"] = [
            {"data_sets": list(one.data_sets), "warning": one.is_warning, "message": one.said()}
            for one in overlaps(rules.data_sets)
        ]
        if slip := unknown_names(rules):
            answer["rules"] = {"ok": False, "message": f"{slip}. The rest is in force"}
    except FeddpError as error:
        message = f"{error.message}. {in_force(folder, running=running)}"
        answer["rules"] = {"ok": False, "message": message}
    kept: list[KeptAccount] = []
    raises: dict[str, tuple[int, int]] = {}
    guarantees: dict[str, float] = {}
    shares: dict[str, list[dict[str, Any]]] = {}
    if folder.state_db.exists():
        state = State(folder.state_db, identity.node, identity.ledger_key)
        try:
            kept = state.ledger.accounts()
            answer["rules"] = _kept(rules, state) or answer["rules"]
            for spec, one in zip(
                rules.data_sets if rules else (), answer["data_sets"], strict=True
            ):
                one["message"] = state.payers.moved(spec) or one["message"]
            raises = _raises(state)
            guarantees = {one.account: state.epsilon_guarantee(one) for one in kept}
            shares = balances_within(state, rules, kept)
            since = state.note(CONNECTED_NOTE)
            refused = state.note(REFUSED_NOTE)
            answer["refused"] = json.loads(refused) if refused else None
            answer["attempts"] = state.counts()
            answer["ledger"] = _verified(state, kept, identity)
            answer["ledger"]["rolled_back"] = state.note(ROLLED_BACK_NOTE)
            if running and since:
                answer |= {"connected": True, "connected_since": float(since)}
        except sqlite3.DatabaseError:
            answer["ledger"] = {
                "verified": False,
                "entries": 0,
                "problems": [f"{folder.state_db} cannot be read"],
                "disputes": [],
                "rolled_back": "",
            }
        finally:
            state.close()
        answer["ledger"]["missing"] = ""
    else:
        answer["ledger"] |= {"verified": False, "missing": ledger_missing(folder).message}
    answer["accounts"] = [
        one | {"shares": shares.get(one["name"], [])}
        for one in _accounts(identity.node, rules, kept, raises, guarantees)
    ]
    answer["files_in_order"] = answer["rules"]["ok"] and not any(
        one["message"] for one in answer["data_sets"] + answer["accounts"]
    )
    ledger = answer["ledger"]
    sound = ledger["verified"] and not ledger["disputes"] and not ledger["rolled_back"]
    answer["in_order"] = answer["files_in_order"] and sound and answer["refused"] is None
    return answer


def _kept(rules: Rules | None, state: State) -> dict[str, Any] | None:
    """What is wrong with a policy that leaves an account out."""
    try:
        if rules is not None:
            require_kept(rules.policy, state.accounts_kept())
    except FeddpError as error:
        return {"ok": False, "message": error.message}
    return None


def read_folder(folder: Folder) -> tuple[AgentConfig, Identity]:
    """Configuration and identity, which belong together.

    Raises:
        NotFound: NOT_JOINED.
        Malformed: CONFIG_INVALID, IDENTITY_INVALID, IDENTITY_MISMATCH.
    """
    config, identity = load_config(folder), load_identity(folder.identity)
    if (config.node, config.trust_domain) != (identity.node, identity.spiffe_id.trust_domain):
        raise Malformed(
            "IDENTITY_MISMATCH",
            f"{folder.agent_yaml} is for node {config.node} of {config.trust_domain} and the "
            f"certificate for {identity.spiffe_id}; restore the one that does not belong here",
        )
    return config, identity


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Hold the folder; the kernel lets go of it when the process ends, however it ends.

    Raises:
        Conflict: AGENT_RUNNING.
    """
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if left == 0:
                    raise Conflict(
                        "AGENT_RUNNING",
                        f"an agent runs on {folder.root} already; stop it first, or use it",
                    ) from None
                # Someone may only be looking, as `status` does.
                time.sleep(LOCK_WAIT_S)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Folder) -> bool:
    """Whether an agent runs on the folder."""
    try:
        descriptor = os.open(folder.lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _data_set(spec: DataSetSpec, rules: Rules) -> dict[str, Any]:
    message = ""
    try:
        check_header(spec)
    except WrongHeader as error:
        message = str(error)
    return {
        "name": spec.name,
        "account": spec.account,
        "declared_n": spec.declared_n,
        "version": spec.version,
        "tasks": usable_tasks(rules, installed())[spec.name],
        "not_installed": [
            str(one) for one in dead_entries(rules, installed()) if one.data_set == spec.name
        ],
        "withdrawn": spec.name in rules.policy.withdrawn,
        "message": message,
    }


def _verified(state: State, kept: list[KeptAccount], identity: Identity) -> dict[str, Any]:
    entries = state.ledger.entries()
    filters = {one.account: one.filter(one.epsilon_limit_highest) for one in kept}
    found = verify(entries, filters, {identity.node: identity.ledger_public_key})
    problems = [f"{one.account} entry {one.seq}: {one.text}" for one in found.problems]
    for one in kept:
        balance = found.balances.get(one.account)
        if found.ok and balance is not None and balance.posted_units != one.posted_units:
            problems.append(f"{one.account}: the balance kept is not what its entries add up to")
    heads = {name: {"seq": seq, "hash": digest} for name, (seq, digest) in found.heads.items()}
    return {
        "verified": not problems,
        "entries": len(entries),
        "problems": problems,
        "heads": heads,
        "disputes": [{**asdict(one), "do": one.advice} for one in state.witnessed.disputes()],
    }


def _raises(state: State) -> dict[str, tuple[int, int]]:
    """account -> how many raises it has, and how many of them the coordinator's chain lacks."""
    unseen = Counter(change.account for change, _ in state.ledger.unseen_raises())
    return {name: (count, unseen[name]) for name, count in state.ledger.raise_counts().items()}


def _accounts(
    node: str,
    rules: Rules | None,
    kept: list[KeptAccount],
    raises: Mapping[str, tuple[int, int]],
    guarantees: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Accounts of the policy and of the ledger; figures at the limit that is in force."""
    by_name = {one.account.removeprefix(f"{node}/"): one for one in kept}
    policies = {one.name: one for one in rules.policy.accounts} if rules else {}
    return [
        _account(
            name, policies.get(name), by_name.get(name), rules, guarantees.get(f"{node}/{name}")
        )
        | dict(zip(("raises", "raises_unseen"), raises.get(f"{node}/{name}", (0, 0)), strict=True))
        for name in sorted({*by_name, *policies})
    ]


def _account(
    name: str,
    policy: AccountPolicy | None,
    kept: KeptAccount | None,
    rules: Rules | None,
    highest: float | None,
) -> dict[str, Any]:
    """One account.

    Args:
        highest: the highest limit that was ever in force; None for an account without entries.
    """
    answer: dict[str, Any] = {"name": name, "message": "", "not_raised": ""}
    if policy is not None and kept is not None:
        answer["not_raised"] = not_raised(policy, kept.fixed)
    try:
        if policy is not None and rules is not None:
            filter_ = filter_of(policy, rules.data_sets, kept.fixed if kept else None)
        elif kept is not None:
            filter_ = kept.filter(kept.epsilon_limit)
        else:
            return answer
    except FeddpError as error:
        answer["message"] = error.message
        if kept is None:
            return answer
        filter_ = kept.filter(kept.epsilon_limit)
    posted = kept.posted_units if kept else 0
    guarantee = kept.guarantee if kept else True
    spent = filter_.epsilon_of(posted)
    limit, units = filter_.epsilon_limit, filter_.limit_units
    return answer | {
        "shares_above": above_limit(policy, limit) if policy is not None else "",
        "filter": filter_.kind,
        "rdp_order": filter_.order,
        "delta": filter_.delta,
        "epsilon_limit": filter_.epsilon_limit,
        "epsilon_start": filter_.epsilon_start,
        "epsilon_spent": spent if guarantee else None,
        "epsilon_remaining": max(0.0, filter_.epsilon_limit - spent) if guarantee else None,
        "epsilon_guarantee": max(limit, highest or limit) if guarantee else None,
        "guarantee": guarantee,
        "stage": stage_of(posted, posted, units, spent if guarantee else None, limit),
        "posted_units": posted,
        "limit_units": filter_.limit_units,
    }
