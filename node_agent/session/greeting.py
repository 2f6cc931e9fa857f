"""What an agent says first: declared by the steward, nothing computed from records."""

import functools
import importlib.metadata
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import structlog

from node_agent.data.datasets import DataSetSpec, schema_json
from node_agent.ledger.account_filters import FixedFilter, filter_of, not_raised
from node_agent.ledger.own_ledger import KeptAccount
from node_agent.ledger.payers import REASON as MOVED
from node_agent.policy.policy import Policy, ShareKind, above_limit
from node_agent.policy.steward import Rules
from node_agent.tasks.registry import TaskInfo
from privacy.ledger import LimitChange
from privacy.wire import limit_to_wire
from protos.errors import FeddpError
from protos.feddp.v1 import federation_pb2 as pb

log = structlog.get_logger(__name__)

PROTOCOL_VERSION: Final = 1

RAISES_MAX: Final = 64
"""In one Hello; more come with the next, once these were seen."""

SPENT_STAYS: Final = (
    "The limit is below what was spent: nothing more is admitted, and what was spent stays spent. "
    "The guarantee stays the highest limit that was ever in force."
)


def _drop(*_: object) -> structlog.types.EventDict:
    raise structlog.DropEvent


_SILENT: Final = structlog.wrap_logger(None, processors=[_drop])

_NONE: Final[Mapping[str, str]] = MappingProxyType({})

ShareUnits = Callable[[str, ShareKind, str], int]
"""(account, kind, name of a share) -> the units that are posted or reserved of it."""


def hello(
    rules: Rules | None,
    tasks: Mapping[str, TaskInfo],
    fixed: Callable[[str], FixedFilter | None],
    open_attempts: Sequence[str],
    used: ShareUnits,
    raises: Sequence[tuple[LimitChange, bytes]] = (),
    refuses: Callable[[str], str] = lambda _account: "",
    moved: Callable[[DataSetSpec], str] = lambda _spec: "",
    unavailable: Mapping[str, str] = _NONE,
    whole: Callable[[str], int] | None = None,
    fault: str = "",
    before: pb.Hello | None = None,
    raised: Mapping[str, int] | None = None,
    *,
    quietly: bool = False,
) -> pb.Hello:
    """The Hello of a session.

    Args:
        rules: None when the steward's files cannot be read: then no account is published.
        fixed: how an account counts since its first entry.
        used: what the node's own ledger counts against a share.
        raises: those that the coordinator's ledger may not hold yet, with the node's signatures.
        refuses: why every order on an account is refused now; empty where it is not.
        moved: why a data set may not pay from its account; empty where it may.
        unavailable: data set -> why it cannot be used now.
        whole: what the node's own ledger counts of an account, where the coordinator's cannot know
            it all; None where it does.
        raised: account without the node's name -> how often its limit was raised, read before
            `rules` was: a raise that came between makes a number of before, which lowers nothing.
            None tells nothing of it.
        quietly: log nothing, for a Hello that is shown and not sent.
        fault: why every order is refused whatever it is on, for what the steward's files say. Then
            no account is published, and each data set as one that cannot be used.
        before: the Hello before, whose data sets are still named where the files cannot be read.
    """
    out = _SILENT if quietly else log
    message = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        agent_version=agent_version(),
        instance_id=instance_id(),
        open_attempts=open_attempts,
        limits=[limit_to_wire(*one) for one in raises[:RAISES_MAX]],
    )
    if rules is None:
        if before is not None:
            message.data_sets.extend(before.data_sets)
            message.tasks.extend(before.tasks)
        for one in message.data_sets:
            one.unavailable = fault
        return message
    installed = {f"{info.name}@{info.content_hash}": info for info in tasks.values()}
    accounts, unusable = _accounts(rules.policy, rules.data_sets, fixed, used, refuses, whole, out)
    if raised is not None:
        for account in accounts:
            account.raises = raised.get(account.name, 0)
    allowed: set[str] = set()
    for spec in rules.data_sets:
        has_moved = moved(spec)
        if has_moved:
            out.error("data_set_moved", data_set=spec.name, account=spec.account, do=has_moved)
        names = sorted(rules.policy.tasks_on(spec.name) & installed.keys())
        allowed.update(names)
        withdrawn = "DATA_SET_WITHDRAWN" if spec.name in rules.policy.withdrawn else ""
        why = fault or withdrawn or (MOVED if has_moved else "")
        why = why or unusable.get(spec.account, "") or unavailable.get(spec.name, "")
        message.data_sets.append(_data_set(spec, names, why))
    message.accounts.extend([] if fault else accounts)
    for name in sorted(allowed):
        info = installed[name]
        message.tasks.append(
            pb.Task(
                name=info.name,
                content_hash=info.content_hash,
                config_schema_json=json.dumps(info.config_schema, sort_keys=True),
                purpose=info.purpose,
            )
        )
    return message


def warn_of_limits(
    accounts: Sequence[KeptAccount], guarantee: Callable[[KeptAccount], float]
) -> None:
    """Log the accounts whose limit in force is below what they have spent.

    Args:
        guarantee: the highest limit that was ever in force for an account.
    """
    for one in accounts:
        filter_ = one.filter(one.epsilon_limit)
        if one.posted_units > filter_.limit_units:
            booked = filter_.epsilon_of(one.posted_units) if one.guarantee else None
            log.warning(
                "limit_below_spent",
                account=one.account,
                epsilon_limit=one.epsilon_limit,
                delta=filter_.delta,
                epsilon_booked=booked,
                epsilon_spent=booked,  # its name in 0.1.0
                epsilon_guarantee=guarantee(one) if one.guarantee else None,
                do=SPENT_STAYS,
            )


@functools.cache
def instance_id() -> str:
    """Tells this process from another agent with the same identity."""
    return secrets.token_hex(16)


@functools.cache
def agent_version() -> str:
    """The installed package's version."""
    try:
        return importlib.metadata.version("feddp")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _data_set(spec: DataSetSpec, tasks: Sequence[str], unavailable: str) -> pb.DataSet:
    return pb.DataSet(
        name=spec.name,
        account=spec.account,
        declared_n=spec.declared_n,
        schema_json=schema_json(spec),
        version=spec.version,
        tasks=tasks,
        unavailable=unavailable,
    )


def _accounts(
    policy: Policy,
    data_sets: Sequence[DataSetSpec],
    fixed: Callable[[str], FixedFilter | None],
    used: ShareUnits,
    refuses: Callable[[str], str],
    whole: Callable[[str], int] | None,
    out: Any,
) -> tuple[list[pb.Account], dict[str, str]]:
    """Accounts as they count; and why others are not published, by name: their policy contradicts
    their entries, or itself."""
    found, unusable = [], {}
    for account in policy.accounts:
        counted = fixed(account.name)
        try:
            filter_ = filter_of(account, data_sets, counted)
        except FeddpError as error:
            out.error("account_unusable", account=account.name, reason=error.reason, do=str(error))
            unusable[account.name] = error.reason
            continue
        if counted is None:  # so the steward can still change what the first entry will fix
            out.info(
                "account_announced",
                account=account.name,
                filter=filter_.kind,
                rdp_order=filter_.order,
                epsilon_limit=filter_.epsilon_limit,
                delta=filter_.delta,
                epsilon_start=filter_.epsilon_start,
            )
        if advice := not_raised(account, counted):
            out.warning("limit_not_raised", account=account.name, do=advice)
        if advice := above_limit(account, filter_.epsilon_limit):
            out.warning("share_above_limit", account=account.name, do=advice)
        found.append(
            pb.Account(
                name=account.name,
                filter=filter_.kind,
                rdp_order=filter_.order,
                epsilon_limit=filter_.epsilon_limit,
                delta=account.delta,
                epsilon_per_job_max=account.epsilon_per_job_max,
                noise_multiplier_min=account.noise_multiplier_min,
                unaccounted_allowed=account.unaccounted == "allow",
                refuses=refuses(account.name),
                shares=[
                    pb.Share(
                        kind=kind,
                        name=name,
                        epsilon_limit=limit,
                        used_units=used(account.name, kind, name),
                    )
                    for kind, name, limit in account.shares()
                ]
                + _whole(account.name, filter_.epsilon_limit, whole),
            )
        )
    return found, unusable


def _whole(
    account: str, epsilon_limit: float, whole: Callable[[str], int] | None
) -> list[pb.Share]:
    """What was spent of an account with any coordinator, so that this one plans with the rest."""
    if whole is None:
        return []
    used = whole(account)
    return [pb.Share(kind="account", name=account, epsilon_limit=epsilon_limit, used_units=used)]
