"""What lies in the agent's folder: identity, ledger, policy, data sets; read, never written."""

import sqlite3
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from node_agent.connection.clock import SET_CLOCK
from node_agent.data.datasets import DataSetSpec
from node_agent.data.headers import WrongHeader, check_header
from node_agent.doctor.report import Check, span
from node_agent.folder.config import Folder
from node_agent.folder.installation import is_locked
from node_agent.joining.identity import Identity
from node_agent.ledger.account_filters import account_fault
from node_agent.ledger.lost_ledger import absence, ledger_missing
from node_agent.ledger.payers import require_kept
from node_agent.ledger.reading import older_said, read_only
from node_agent.policy.allowed_tasks import DO, dead_entries, usable_tasks
from node_agent.policy.steward import Rules, Steward, in_force, unknown_names
from node_agent.state.notes import ROLLED_BACK_NOTE
from node_agent.state.schema import SCHEMA_VERSION, version_of
from node_agent.tasks.registry import installed
from protos.disks import disk_trouble
from protos.errors import FeddpError, NotFound


def check_certificate(
    identity: Identity, now: datetime, clock: Check, enrollment: str = ""
) -> Check:
    """How long the node's certificate holds.

    Args:
        clock: what was found of the clock that `now` is by.
        enrollment: "host:port" where the agent replaces one that has ended; empty for nowhere.
    """
    left_s = (identity.expires_at - now).total_seconds()
    due_s = (now - identity.renews_at).total_seconds()
    begins = x509.load_pem_x509_certificates(identity.chain)[0].not_valid_before_utc
    if now < begins:
        before = span((begins - now).total_seconds())
        found = f"it begins in {before} only, by this machine's clock, which is behind"
        return Check("certificate", "failed", found, SET_CLOCK)
    if left_s <= 0 and clock.result == "failed":
        found = f"it ended {span(-left_s)} ago, by this machine's clock, which is wrong"
        do = (
            f"{SET_CLOCK}, then run this again: by a wrong clock the agent cannot use another "
            "certificate either"
        )
        return Check("certificate", "failed", found, do)
    if left_s <= 0:
        again = "ask the operator for a token and join again in this folder: the ledger stays"
        do = again
        if enrollment:
            do = (
                f"let the agent run, and reach {enrollment}: it gets another by itself, as long "
                "after the end as the coordinator allows (30 days unless its operator chose "
                f"otherwise); where its log says that it is refused, {again}"
            )
        if clock.result == "skipped":
            do = f"see that this machine's clock is right, as nobody could be asked; then {do}"
        found = f"it ended {span(-left_s)} ago, by this machine's clock"
        return Check("certificate", "failed", found, do)
    found = f"valid {span(left_s)} more"
    if due_s > 0:
        return Check(
            "certificate",
            "warning",
            f"{found}; its renewal has been due for {span(due_s)}",
            "let the agent run and reach the coordinator; its log says what keeps it from renewing "
            "(certificate_renewal_failed)",
        )
    return Check("certificate", "ok", f"{found}, renews itself in {span(-due_s)}")


def check_ledger(folder: Folder) -> Check:
    """Whether the node's own ledger is there and can be read, also while the agent runs."""
    try:
        version, entries, _ = _ledger(folder)
    except NotFound:
        return _lost(folder, absence(folder.state_db))
    except FeddpError as error:
        return Check("ledger", "failed", error.message, "run this again then")
    except (sqlite3.Error, OSError) as error:
        if disk_trouble(error):
            return Check(
                "ledger",
                "failed",
                f"{folder.state_db} cannot be opened: its disk is full or does not answer",
                f"free room on the disk of {folder.root} (or raise the quota) and run this again: "
                "nothing says that the ledger is damaged",
            )
        return _lost(folder, "damaged, or another file, or this user may not read it")
    if version > SCHEMA_VERSION:
        do = "upgrade this agent, or go back to the one that wrote it"
        return Check("ledger", "failed", f"{folder.state_db} is of a newer agent", do)
    if text := _rolled_back(folder):
        do = "stop the agent and import the newest copy: `feddp agent ledger import`"
        return Check("ledger", "failed", f"LEDGER_ROLLED_BACK: {text}", do)
    found = f"{entries} entries; `feddp agent status` verifies them"
    if older := older_said(folder.state_db, version):
        found = f"{found}; {older}"
    return Check("ledger", "ok", found)


def _lost(folder: Folder, what: str) -> Check:
    return Check(
        "ledger",
        "failed",
        f"{folder.state_db} is {what}: it holds what patients have spent",
        "put a copy back: `feddp agent ledger import FILE`, once what lies there is moved away and "
        "kept; the agent does not run without it",
    )


def check_policy(folder: Folder, identity: Identity) -> tuple[Check, Rules | None]:
    """Whether the steward's files hold, and allow anything."""
    try:
        rules = Steward(folder).rules()
    except FeddpError as error:
        held = in_force(folder, running=is_locked(folder))
        return Check("policy", "failed", error.message, f"the data steward mends it. {held}"), None
    try:
        require_kept(rules.policy, _kept(folder, identity))
    except FeddpError as error:
        do = "the data steward mends it; until then nothing is allowed"
        return Check("policy", "failed", error.message, do), None
    if slip := unknown_names(rules):
        do = "the data steward mends the name; the rest is in force, but no agent starts on it"
        return Check("policy", "failed", slip, do), rules
    if fault := account_fault(rules.policy, rules.data_sets):
        do = "the data steward mends it; every order on the account is refused until then"
        return Check("policy", "failed", fault, do), rules
    usable = usable_tasks(rules, installed())
    if gone := [spec.name for spec in rules.data_sets if spec.name in rules.policy.withdrawn]:
        found = f"it holds; the data steward has withdrawn {', '.join(gone)}"
        return Check("policy", "warning", found, "nothing is learned from it; that may be meant"), (
            rules
        )
    work = rules.policy.work
    if work.hours and not work.is_open(datetime.now()):
        found = f"it holds; no work is begun now, only at {', '.join(work.hours)}"
        return Check(
            "policy", "warning", found, "wait, if that is meant (`work` in policy.yaml)"
        ), (rules)
    if any(usable.values()):
        text = ", ".join(f"{len(tasks)} on {name}" for name, tasks in usable.items())
        return Check("policy", "ok", f"it holds; tasks allowed: {text}"), rules
    if dead_entries(rules, installed()):
        found = "it allows no task that is installed here: the hashes are of another release"
        do = f"for each that `allowed task` names below, {DO}"
    else:
        found, do = "it holds, and allows nothing", _ALLOW
    return Check("policy", "warning", found, do), rules


def check_tasks(rules: Rules) -> list[Check]:
    """A warning for each task that is allowed and not installed; nothing where there is none."""
    return [
        Check("allowed task", "warning", str(one), DO) for one in dead_entries(rules, installed())
    ]


_ALLOW: Final = (
    "nothing will be trained here until the data steward declares data sets in datasets.yaml and "
    "allows tasks on them in policy.yaml"
)


def check_schema(spec: DataSetSpec) -> Check:
    """Whether a data set's source is there and has every declared column; no row is looked at."""
    name = f"data set {spec.name}"
    try:
        check_header(spec)
    except WrongHeader as error:
        do = (
            "put the records back, or correct `source` in datasets.yaml"
            if error.reason == "SOURCE_MISSING"
            else "mend the source, or datasets.yaml; attempts on it are refused and cost nothing"
        )
        return Check(name, "failed", f"{error.reason}: {error}", do)
    return Check(name, "ok", f"its source has all {len(spec.columns)} declared columns")


PAYERS_SINCE: Final = 4
"""The schema version of state.db since which there is a table of who paid."""


def _rolled_back(folder: Folder) -> str:
    """What the agent has noted of a ledger that went back in time; empty where it did not."""
    with read_only(folder.state_db, in_place=True) as connection:
        asked = "SELECT value FROM meta WHERE key = ?"
        row = connection.execute(asked, (ROLLED_BACK_NOTE,)).fetchone()
    return str(row[0]) if row else ""


def _ledger(folder: Folder) -> tuple[int, int, list[str]]:
    """(schema version, entries, accounts).

    Raises:
        NotFound: LEDGER_MISSING.
        sqlite3.Error, OSError, FeddpError: as `read_only`.
    """
    if not folder.has_ledger:
        raise ledger_missing(folder.state_db)
    with read_only(folder.state_db, in_place=True) as connection:
        version = version_of(connection)
        whose = "SELECT value FROM meta WHERE key = 'node'"
        if version == 0 or connection.execute(whose).fetchone() is None:
            raise ledger_missing(folder.state_db)
        (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
        kept = "SELECT account FROM entries"
        if version >= PAYERS_SINCE:  # with those whose signed entries could not be taken over
            kept += " UNION SELECT account FROM payers"
        accounts = [one for (one,) in connection.execute(kept)]
    return version, entries, accounts


def _kept(folder: Folder, identity: Identity) -> set[str]:
    try:
        return {name.removeprefix(f"{identity.node}/") for name in _ledger(folder)[2]}
    except (sqlite3.Error, OSError, FeddpError):
        return set()  # said by `check_ledger`


def now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)
