"""`feddp coordinator check`: would this configuration serve, and what will surprise somebody?"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from sqlalchemy.exc import SQLAlchemyError

from certs.authority import Authority
from certs.credentials import server_credentials
from coordinator.alerts.webhook import Webhook
from coordinator.checking.keys import ledger_key_found
from coordinator.checking.names import names_found, way_found
from coordinator.checking.permissions import permissions_found
from coordinator.checking.ports import ports_found
from coordinator.checking.room import room_found
from coordinator.config.config import CoordinatorConfig, effects, load_config
from coordinator.gateway.watch import state_of
from coordinator.pausing import said
from coordinator.replicas.shared_blobs import SharedBlobs
from coordinator.restoring.marker import refuse_unfinished
from coordinator.server_certificate import read_pair
from coordinator.store import backups, epochs, pauses, people, users
from coordinator.store.database import Database, newest_revision
from coordinator.store.diagnosis import fault, unreadable, write_fault
from coordinator.store.engines import now_s
from protos import otlp
from protos.errors import FeddpError, WrongPhase

CLOCK_S = 5.0
"""Leases, tokens and certificates are compared with the clock; a few seconds hurt nobody."""

EXPIRES_SOON_DAYS = 14
AUTHORITY_SOON_DAYS = 180
ACCOUNTS_NAMED_MAX = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. Only an "error" keeps the coordinator from serving."""

    level: Literal["ok", "note", "warning", "error"]
    subject: str
    text: str


def check(config_path: Path) -> list[Finding]:
    """Check a configuration and what it points to; changes nothing.

    Raises:
        Malformed: CONFIG_INVALID, all faults of the file at once.
    """
    try:
        refuse_unfinished(config_path)
        config = load_config(config_path, os.environ)
        refuse_unfinished(config_path, config.storage)
    except WrongPhase as error:
        return [Finding("error", "restore", error.message)]
    found = [Finding("ok", str(config_path), "the configuration is valid")]
    looks = (
        *(_authority, _database, _gateway, _blobs, _revocations, _shared_blobs),
        *(_ledger_key, _names, _ports, _tracing, _alert_webhook),
    )
    for look in looks:
        found.extend(look(config))
    found.extend(Finding(*one) for one in permissions_found(config_path, config))
    found.extend(Finding(one.level, one.key, one.text) for one in effects(config))
    return found


def _authority(config: CoordinatorConfig) -> Iterator[Finding]:
    try:
        authority = Authority.load(config.storage.pki_dir)
        chain, key = read_pair(config)
        server_credentials(chain, key, authority.trust_bundle)
    except FeddpError as error:
        yield Finding("error", "certificates", error.message)
        return
    ends = authority.issuing.not_valid_after_utc
    if (ends - datetime.now(UTC)).days < AUTHORITY_SOON_DAYS:
        yield Finding(
            "warning",
            "authority",
            f"the issuing authority ends at {ends:%Y-%m-%d}: replace it with `feddp coordinator "
            "ca-rollover begin`",
        )
    leaf = x509.load_pem_x509_certificates(chain)[0]
    if leaf.not_valid_before_utc > datetime.now(UTC):
        yield Finding(
            "error",
            "clock",
            "the server's certificate is valid from "
            f"{leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{datetime.now(UTC):%Y-%m-%d %H:%M}: set the clock (NTP)",
        )
        return
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    said = f"the server's certificate ends at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if left.total_seconds() <= 0 and config.server.ssl_cert is None and ends > datetime.now(UTC):
        # After months of a stop, or of the backup that was restored.
        yield Finding("warning", "certificates", f"{said}: it is over, and the start renews it")
    elif left.total_seconds() <= 0:
        yield Finding("error", "certificates", f"{said}: it is over, and no node will connect")
    elif left.days < EXPIRES_SOON_DAYS:
        yield Finding(
            "warning",
            "certificates",
            f"{said}: renew it; one that the authority made renews itself while this serves",
        )
    else:
        yield Finding("ok", "certificates", said)


def _tracing(config: CoordinatorConfig) -> Iterator[Finding]:
    if config.monitoring.trace_endpoint and not otlp.is_installed():
        yield Finding("error", "monitoring.trace_endpoint", otlp.MISSING)
    if config.monitoring.trace_endpoint and (
        why := otlp.authority_fault(config.monitoring.trace_ca)
    ):
        yield Finding("error", "monitoring.trace_ca", why)


def _alert_webhook(config: CoordinatorConfig) -> Iterator[Finding]:
    """Nothing is posted. A warning at most: jobs go on without it."""
    told, key = config.monitoring, "monitoring.alert_webhook"
    if not told.alert_webhook:
        return
    receiver = Webhook(told.alert_webhook, told.alert_webhook_ca, told.alert_webhook_secret)
    if why := receiver.reach():
        text = f"no alert would get to its receiver: {why}"
        yield Finding("warning", key, text)
    else:
        text = "the receiver is there, and its certificate is trusted; nothing was posted"
        yield Finding("ok", key, text)


def _database(config: CoordinatorConfig) -> Iterator[Finding]:
    if text := fault(config.storage.database_url):
        yield Finding("error", "storage.database_url", text)
        return
    database = Database(config.storage.database_url)
    told = ""
    try:
        if told := write_fault(config.storage.database_url) or "":
            yield Finding("error", "storage.database_url", told)
        if (revision := database.revision() or "") >= newest_revision():
            yield from _standing(database)
        else:
            yield Finding(
                "warning",
                "storage.database_url",
                "an older version made these tables; serving upgrades them for good, so back "
                "them up first (`feddp coordinator upgrade --plan` says what it takes)",
            )
        if revision > newest_revision():
            yield Finding(
                "note",
                "storage.database_url",
                "a newer version has upgraded these tables, and lets this one serve them",
            )
        known = database.read_now(users.all_users)
        nodes = database.read_now(people.all_nodes)
        yield Finding(
            "ok", "storage.database_url", f"readable; {len(nodes)} nodes, {len(known)} users"
        )
    except FeddpError as error:
        yield Finding("error", "storage.database_url", error.message)
    except SQLAlchemyError as error:
        if not told:
            text = unreadable(config.storage.database_url, error)
            yield Finding("error", "storage.database_url", text)
    finally:
        database.close()


def _gateway(config: CoordinatorConfig) -> Iterator[Finding]:
    """A warning at most: nobody here knows whether the gateway is still in use."""
    if fault(config.storage.database_url):
        return  # said already, and opening it would make a file where none is
    database = Database(config.storage.database_url)
    try:
        domain = Authority.load(config.storage.pki_dir).trust_domain
        found = database.read_now(lambda c: state_of(c, domain, time.time()))
    except (FeddpError, SQLAlchemyError):
        return  # said already
    finally:
        database.close()
    if found is not None:
        level: Literal["ok", "warning"] = "ok" if found.state == "valid" else "warning"
        yield Finding(level, "gateway", str(found))


def _standing(database: Database) -> Iterator[Finding]:
    """What the tables say of the clock, a pause and backups."""
    at_s, there_s = time.time(), database.read_now(now_s)
    seen_s = max((n.last_seen_at for n in database.read_now(people.all_nodes)), default=0.0)
    if abs(there_s - at_s) > CLOCK_S:
        yield Finding(
            "warning",
            "clock",
            f"this machine's clock and the database's server are {abs(there_s - at_s):.0f} s "
            "apart: set both by NTP",
        )
    elif seen_s > at_s + CLOCK_S:
        yield Finding(
            "warning",
            "clock",
            f"a node was heard {seen_s - at_s:.0f} s from now: this machine's clock is behind what "
            "it was; set it by NTP",
        )
    else:
        yield Finding("ok", "clock", "not behind anything that the database has seen")
    if (pause := database.read_now(pauses.current)) is not None:
        yield Finding(
            "warning", "pause", f"{said(pause)}; `feddp coordinator resume` lets it go on"
        )
    yield from _restored(database)
    made_s = database.read_now(backups.last_success_at)
    when = f"{datetime.fromtimestamp(made_s, UTC):%Y-%m-%d %H:%M} UTC"
    text = f"the newest is of {when}" if made_s else "none was made: `feddp coordinator backup`"
    yield Finding("note", "backup", text)


def _restored(database: Database) -> Iterator[Finding]:
    epoch = database.read_now(epochs.newest)
    if epoch is None:
        return
    text = (
        f"epoch {epoch.number}: restored at {epoch.restored} from a backup of {epoch.backup_made}"
    )
    left = sorted(database.read_now(epochs.unreconciled))
    if not left:
        yield Finding("ok", "restored", f"{text}; every account was handed in")
        return
    named = ", ".join(left[:ACCOUNTS_NAMED_MAX])
    more = f" and {len(left) - ACCOUNTS_NAMED_MAX} more" if left[ACCOUNTS_NAMED_MAX:] else ""
    yield Finding(
        "warning",
        "restored",
        f"{text}; not yet handed in by their nodes, so that nothing is reserved on them: "
        f"{len(left)} accounts ({named}{more})",
    )


def _blobs(config: CoordinatorConfig) -> Iterator[Finding]:
    folder = config.storage.blob_dir
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            "error",
            "storage.blob_dir",
            f"{existing} cannot be written by this user; models go there",
        )
        return
    yield Finding("ok", "storage.blob_dir", f"{folder} can be written")
    yield from (Finding(*one) for one in room_found(config.storage, existing))


def _revocations(config: CoordinatorConfig) -> Iterator[Finding]:
    file = config.storage.revocations_file
    writable = file if file.exists() else file.parent
    if not writable.exists() or not os.access(writable, os.W_OK):
        yield Finding(
            "warning",
            "storage.revocations_file",
            f"{file} cannot be written by this user: a restore from a backup would not know who "
            "was revoked after it",
        )


def _shared_blobs(config: CoordinatorConfig) -> Iterator[Finding]:
    storage = config.storage
    if not storage.blob_url:
        return
    try:
        shared = SharedBlobs(storage.blob_url, storage.blob_endpoint)
        try:
            shared.check()
        finally:
            shared.close()
    except FeddpError as error:
        yield Finding("error", "storage.blob_url", error.message)
        return
    text = f"{storage.blob_url} takes, gives back, removes and lists files"
    yield Finding("ok", "storage.blob_url", text)


def _ledger_key(config: CoordinatorConfig) -> Iterator[Finding]:
    for level, name, text in ledger_key_found(config):
        yield Finding(level, name, text)


def _names(config: CoordinatorConfig) -> Iterator[Finding]:
    for level, name, text in (*names_found(config), *way_found(config)):
        yield Finding(level, name, text)


def _ports(config: CoordinatorConfig) -> Iterator[Finding]:
    for name, is_fine, text in ports_found(config):
        yield Finding("ok" if is_fine else "warning", name, text)
