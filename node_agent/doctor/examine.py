"""All checks in order, each as it is made."""

import asyncio
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from certs.tokens import JoinToken
from node_agent.connection.clock import SET_CLOCK
from node_agent.connection.proxy import OPTION, ProxyConfig, Route, route_to
from node_agent.doctor import files, machine
from node_agent.doctor.alerts import check_alerts
from node_agent.doctor.coordinator import ASKED, check_coordinator, clock_check
from node_agent.doctor.enrolment import ahead_there
from node_agent.doctor.launcher import check_launcher
from node_agent.doctor.network import check_network
from node_agent.doctor.query import check_query
from node_agent.doctor.report import Check, skipped
from node_agent.doctor.rows import check_rows
from node_agent.doctor.stream import check_stream
from node_agent.doctor.tls import NAMES as TLS_NAMES
from node_agent.doctor.tls import check_tls, clock_by_certificate
from node_agent.doctor.traces import check_traces
from node_agent.folder.config import AgentConfig, Folder
from node_agent.folder.installation import read_folder
from node_agent.joining.identity import Identity

HOLD_S_DEFAULT: Final = 20.0
HOLD_S_MAX: Final = 540.0
"""The coordinator ends a probe after 600 s."""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined.

    Attributes:
        bundle: the root that the coordinator must chain to, PEM.
        folder, config, identity: None before the node has joined.
    """

    route: Route
    bundle: bytes
    folder: Folder | None = None
    config: AgentConfig | None = None
    identity: Identity | None = None


def joined(path: Path) -> Patient:
    """The agent of a folder.

    Raises:
        NotFound: NOT_JOINED.
        Malformed: CONFIG_INVALID, PROXY_INVALID, IDENTITY_INVALID.
    """
    folder = Folder(path.absolute())
    config, identity = read_folder(folder, to_read=True)
    route = route_to(config.coordinator, config.proxy, folder.root, os.environ)
    return Patient(route, identity.bundle, folder, config, identity)


def joining(token: str, proxy: ProxyConfig | None) -> Patient:
    """A machine that has a token and no identity yet: the way to the enrolment port.

    Raises:
        Malformed: TOKEN_INVALID, PROXY_INVALID.
    """
    parsed = JoinToken.parse(token)
    route = route_to(parsed.address, proxy or ProxyConfig(), Path.cwd(), os.environ)
    if proxy is not None and route.source == "agent.yaml":  # there is none yet
        route = replace(route, source=OPTION)
    return Patient(route, parsed.root_pem)


def examine(
    patient: Patient,
    *,
    hold_s: float = HOLD_S_DEFAULT,
    rows: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Check]:
    """Every check. What depends on a check that failed is skipped, the rest is made all the same.

    Args:
        hold_s: how long to hold a stream; 0 not to.
        rows: whether to read the records and count in them, for a terminal.
        say: takes lines on what is under way.
    """
    clock = yield from _outside(patient, hold_s, say)
    lost = patient.identity.lost if patient.identity is not None else None
    if lost is not None:
        found, _, do = lost.message.partition(". ")
        yield Check("keys", "failed", found, do)
    if patient.identity is None:
        yield from skipped("only joining tries it, which uses it up", "token")
    folder, identity = patient.folder, patient.identity
    if folder is not None:
        yield machine.check_account(folder)
        yield machine.check_disk(folder)
    if patient.config is not None:
        yield check_alerts(patient.config.alerts)
    if patient.config is not None and folder is not None:
        yield check_traces(patient.config.tracing, folder.root)
        if asked := check_launcher(patient.config.launcher):
            yield asked
    yield machine.check_memory(patient.config)
    say("loading what training needs")
    yield machine.check_training()
    yield machine.check_gpu()
    if folder is not None and identity is not None:
        enrollment = patient.config.enrollment if patient.config is not None else ""
        yield files.check_certificate(identity, files.now(), clock, enrollment)
        yield files.check_ledger(folder)
        yield from _steward(folder, identity, rows=rows, say=say)


def _outside(
    patient: Patient, hold_s: float, say: Callable[[str], None]
) -> Generator[Check, None, Check]:
    """From the name to the stream; returns the check of the clock, which it has yielded too."""
    route, identity = patient.route, patient.identity
    if identity is not None and not identity.key:  # it has nothing to show there
        identity = None
    checks, is_open, date_s = check_network(route)
    yield from checks
    asked_s = time.time()
    shown = None
    if is_open:
        checks, shown = check_tls(route, patient.bundle)
        yield from checks
    else:
        yield from skipped("the way to the coordinator is not open", *TLS_NAMES)
    by_certificate = clock_by_certificate(shown, files.now()) if shown is not None else None
    fit = shown is not None and all(one.result != "failed" for one in checks)
    ahead_s = _ahead_of(patient) if fit and by_certificate is None else None
    ended = identity is not None and identity.expires_at <= _there(ahead_s)
    answers = False
    said: list[Check] = []
    if fit and identity is not None and by_certificate is None:
        said, answers = _asked(route, identity, ahead_s, ended=ended, say=say)
    if by_certificate is not None:
        # gRPC would only say that the handshake failed.
        clock = by_certificate
        yield clock
        yield from skipped("not before the clock is right", *(n for n in ASKED if n != "clock"))
    elif said:
        yield from said
        (clock,) = (one for one in said if one.name == "clock")
    else:
        why = "there is no TLS connection to it" if identity is not None else "not joined yet"
        if patient.identity is not None and identity is None:
            why = "the node's key cannot be read: see `keys`"
        why = "this node's certificate has ended: see `certificate`" if fit and ended else why
        yield from skipped(why, *(name for name in ASKED if name != "clock"))
        clock = (
            _clock_without_coordinator(date_s, asked_s, has_certificate=fit)
            if ahead_s is None
            else clock_check(ahead_s, "the coordinator's")
        )
        yield clock
    if hold_s <= 0:
        yield from skipped("--hold 0", "stream")
    elif answers and identity is not None:
        yield asyncio.run(check_stream(route, identity, min(hold_s, HOLD_S_MAX), say))
    else:
        why = f"the coordinator {'was not asked' if ended else 'does not answer a test'}"
        yield from skipped(why if patient.identity is not None else "not joined yet", "stream")
    return clock


def _asked(
    route: Route,
    identity: Identity,
    ahead_s: float | None,
    *,
    ended: bool,
    say: Callable[[str], None],
) -> tuple[list[Check], bool]:
    """As `check_coordinator`; nothing where the certificate has ended.

    Args:
        ahead_s: the coordinator's clock before this machine's; None where it is not known.
        ended: by the coordinator's clock, or by this machine's where that is not known.
    """
    if ended and ahead_s is not None:
        return [], False
    say("asking the coordinator")
    checks, answers = asyncio.run(check_coordinator(route, identity))
    # One that has ended is refused in the handshake, which gRPC tells as a broken connection.
    if ended and checks[0].result != "ok":
        return [], False
    place = ASKED.index("clock")
    if checks[place].result == "skipped":
        if ahead_s is not None:
            checks[place] = clock_check(ahead_s, "the coordinator's")
        elif ended:
            checks[place] = Check("clock", "failed", _TAKEN, SET_CLOCK)
    return checks, answers


_TAKEN: Final = (
    "this machine's clock is ahead: by it this node's certificate has ended, and the coordinator "
    "takes it"
)


def _ahead_of(patient: Patient) -> float | None:
    """How far the coordinator's clock is before this machine's, by its enrolment port; None where
    there is a session to ask in, and where it does not tell."""
    identity, config, folder = patient.identity, patient.config, patient.folder
    if identity is None:
        return ahead_there(patient.route, patient.bundle)
    if identity.expires_at > files.now() or config is None or folder is None:
        return None
    if not config.enrollment:
        return None
    route = route_to(config.enrollment, config.proxy, folder.root, os.environ)
    return ahead_there(route, patient.bundle)


def _there(ahead_s: float | None) -> datetime:
    """The coordinator's clock; this machine's where that is not known."""
    return files.now() + timedelta(seconds=ahead_s or 0.0)


def _clock_without_coordinator(
    date_s: float | None, asked_s: float, *, has_certificate: bool
) -> Check:
    if date_s is not None:
        return clock_check(date_s - asked_s, "the proxy's")
    if has_certificate:
        # A certificate lives for days: a clock that is days off may lie within it all the same.
        found = "it lies within the coordinator's certificate, which says no more; joining compares"
        return Check("clock", "skipped", found)
    return Check("clock", "skipped", "there is nobody to compare it with")


def _steward(
    folder: Folder, identity: Identity, *, rows: bool, say: Callable[[str], None]
) -> Iterator[Check]:
    policy, rules = files.check_policy(folder, identity)
    yield policy
    yield from files.check_tasks(rules) if rules is not None else ()
    for spec in rules.data_sets if rules is not None else ():
        schema = files.check_schema(spec)
        yield schema
        if schema.result == "failed":
            continue
        yield from check_query(spec)
        if rows:
            say(f"reading {spec.name}")
            yield check_rows(spec, folder.root)
        else:
            yield from skipped(
                "counts of records are shown at a terminal only (--data shows them elsewhere)",
                f"records of {spec.name}",
            )
