"""`feddp agent`: join a federation, run the node agent, see how it is."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from feddp.cli import (
    agent_approve,
    agent_backup,
    agent_doctor,
    agent_leave,
    agent_ledger,
    agent_limit,
    agent_policy,
    agent_service,
    agent_work,
    output,
    shares,
)
from feddp.cli.budget import STAGES
from feddp.cli.failures import FAILED
from feddp.cli.groups import noun
from feddp.cli.options import Json, RootFingerprint, RootIsRight
from feddp.process import loading

app = noun("Join a federation and run the node agent.")
app.add_typer(agent_ledger.app, name="ledger")
app.add_typer(agent_limit.app, name="limit")
app.add_typer(agent_policy.app, name="policy")

SHARED = (
    "the policy shares the kind of a failure after data was opened: that may depend on one "
    "patient's record, and no epsilon covers it"
)

CATCHING_UP = (
    "this ledger was restored from a copy, or its coordinator was left: no order is accepted until "
    "the node has a session and has read in the coordinator's ledger what it signed"
)

PROJECTS_SHOWN = 5

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]


@app.command()
def join(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="As `feddp node token` gave it.")],
    folder: Folder,
    again: Annotated[
        bool, typer.Option("--again", help="Also if this folder's certificate is still valid.")
    ] = False,
    encrypt_keys: Annotated[
        bool,
        typer.Option(
            "--encrypt-keys",
            help="Under the passphrase in the file that $FEDDP_KEY_PASSPHRASE_FILE names.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="For the operator's approval, if it needs one.")
    ] = True,
    proxy: agent_doctor.Proxy = "",
    proxy_credentials_file: agent_doctor.CredentialsFile = None,
    fingerprint: RootFingerprint = "",
    yes: RootIsRight = False,
    as_json: Json = False,
) -> None:
    """Redeem a join token: makes the node's keys here and brings its certificate."""
    from feddp.cli.agent_join import announce, waiting
    from node_agent.joining.enrol import join as join_federation

    announce(token, as_json, fingerprint=fingerprint, yes=yes)
    made = join_federation(
        token,
        folder,
        proxy=agent_doctor.proxy_of(proxy, proxy_credentials_file),
        again=again,
        encrypt_keys=encrypt_keys,
        pending=waiting(wait, as_json),
    )
    if as_json:
        output.print_json(
            {
                "node": made.node,
                "class": made.node_class,
                "spiffe_id": made.spiffe_id,
                "coordinator": made.coordinator,
                "dir": str(made.path),
                "certificate_expires_at": made.expires_at.timestamp(),
                "root_fingerprint": made.root_fingerprint,
                "clock_off": made.clock_off,
            }
        )
        return
    output.line(f"joined as {made.node} ({made.node_class}); coordinator {made.coordinator}")
    output.line(f"certificate until {output.moment(made.expires_at.timestamp())}")
    if made.clock_off:
        from node_agent.connection.clock import SET_CLOCK

        output.line(f"WARNING: {made.clock_off}: {SET_CLOCK}")
    if made.policy_written:
        output.line(f"{folder / 'policy.yaml'} allows nothing yet: the data steward edits it and")
        output.line(f"declares the data in {folder / 'datasets.yaml'}")
    output.line(f"start it: feddp agent run --dir {folder}")
    output.line(
        f"or as a service: feddp agent install-service --dir {folder}  (docs/hospital-it.md)"
    )


@app.command()
def run(
    folder: Folder,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    log_format: Annotated[
        str, typer.Option(help="json, text, or auto: JSON unless stderr is a terminal.")
    ] = "auto",
) -> None:
    """Run the agent until SIGTERM. It opens connections to the coordinator and accepts none."""
    with loading():
        from feddp.logging import configure_logging, json_asked
        from node_agent.agent import run as run_agent

    configure_logging(log_level, json=json_asked(log_format))
    run_agent(folder)


@app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """What the agent on this machine knows: identity, policy, budgets by its own ledger.

    Exit code 1 while the steward's files, a data set's, or this node's own ledger are not in order
    or its ledger is missing, while it disputes the coordinator's, and while the coordinator refuses
    this node."""
    from node_agent.status import status as agent_status

    found = agent_status(folder)
    if as_json:
        output.print_json(found)
    else:
        output.facts(_facts(found))
    if not found["in_order"]:
        raise typer.Exit(FAILED)


def _joins_again(found: dict[str, Any]) -> bool:
    return bool(found["join_waits"]) and found["join_waits"] not in found["keys_lost"]


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    from certs.enrolment import spoken
    from node_agent.policy.allowed_tasks import DO

    ledger = found["ledger"]
    said = "verifies" if ledger["verified"] else "does NOT verify"
    return [
        ("node", f"{found['node']} ({found['node_class']})"),
        ("coordinator", found["coordinator"]),
        ("running", "yes" if found["running"] else "no"),
        ("connected", _connected(found)),
        *(("KEYS LOST", one) for one in [found["keys_lost"]] if one),
        # Of a lost key it is said above.
        *(("JOIN WAITS", found["join_waits"]) for _ in [1] if _joins_again(found)),
        *(("REFUSED", _refused(one)) for one in [found["refused"]] if one),
        *(("RESTORED", _restored(one)) for one in [found["coordinator_restored"]] if one),
        *(("note", CATCHING_UP) for _ in [1] if found["catching_up"]),
        ("certificate", spoken(found["certificate_fingerprint"])),
        ("certificate until", output.moment(found["certificate_expires_at"])),
        ("renews itself", _renewal(found)),
        *(("WAITS", _waits(found["waiting"])) for _ in [1] if found["waiting"]),
        *(("hours", _hours(one)) for one in [found["hours"]] if one),
        ("steward's files", _files(found)),
        *(("installed task", f"{name} (as `allow` names it)") for name in found["installed_tasks"]),
        *(
            (
                f"data set {one['name']}",
                f"{output.counted(one['declared_n'], 'patient')} declared, paid by "
                f"{one['account']}, {_allowed(one)}" + _wrong(one["message"]),
            )
            for one in found["data_sets"]
        ),
        *(
            ("WARNING", f"{text}; {DO}")
            for one in found["data_sets"]
            for text in one["not_installed"]
        ),
        *(("note", SHARED) for _ in [1] if found["shares_failure_class"]),
        *(("WARNING" if one["warning"] else "note", one["message"]) for one in found["overlaps"]),
        *(
            (label, text)
            for one in found["accounts"]
            for label, text in (
                (f"account {one['name']}", _account(one)),
                (f"limits in {one['name']}", shares.said(one["shares"])),
            )
            if text
        ),
        (
            "own ledger",
            f"MISSING: {ledger['missing']}"
            if ledger["missing"]
            else f"{output.counted(ledger['entries'], 'entry')}, {said}",
        ),
        *(("note", text) for text in [ledger["older"]] if text),
        *(("problem", text) for text in ledger["problems"]),
        *(("ROLLED BACK", _rolled_back(text)) for text in [ledger["rolled_back"]] if text),
        *(
            (
                "DISPUTED",
                f"{one['account']}, coordinator's entry {one['seq']}: {one['text']}; orders on it "
                f"are refused. To do: {one['do']}",
            )
            for one in ledger["disputes"]
        ),
    ]


def _hours(one: dict[str, Any]) -> str:
    now = "" if one["open"] else "; orders are refused until then (OUTSIDE_HOURS)"
    return (
        f"work begins at {', '.join(one['work'])} only, and it is {one['time_here']} "
        f"{one['time_zone']} on this machine{now}"
    )


def _waits(jobs: list[dict[str, Any]]) -> str:
    projects = sorted({one["project"] for one in jobs})
    of = ", ".join(projects[:PROJECTS_SHOWN])
    of += f" and {len(projects) - PROJECTS_SHOWN} more" if len(projects) > PROJECTS_SHOWN else ""
    waits = "waits" if len(jobs) == 1 else "wait"
    return (
        f"{output.counted(len(jobs), 'job')} of new projects ({of}) {waits} for the data steward: "
        "`feddp agent approve --list`"
    )


def _rolled_back(text: str) -> str:
    return f"{text}; no order is accepted until `feddp agent ledger import`, with the agent stopped"


def _refused(said: dict[str, Any]) -> str:
    """In the words of who refuses; they say what to do."""
    who = "this node" if said["reason"].startswith("COORDINATOR_") else "the coordinator"
    return f"by {who} at {output.moment(said['at'])}: {said['reason']}: {said['message']}"


def _restored(said: dict[str, Any]) -> str:
    waiting = said["to_hand_in"]
    rest = (
        f"; orders on {', '.join(waiting)} are refused until this node has handed in what it "
        "released since, which it does by itself"
        if waiting
        else "; this node has handed in what it released since"
    )
    return (
        f"the coordinator, at {output.moment(said['restored_at'])}, from a backup of "
        f"{output.moment(said['backup_made_at'])} (epoch {said['epoch']}){rest}"
    )


def _renewal(found: dict[str, Any]) -> str:
    if found["certificate_expires_at"] <= time.time():
        if found["enrollment"]:
            return f"it has ended; the agent gets another from {found['enrollment']} when it runs"
        return "no: it has ended; join again in this folder with a new token"
    moment = output.moment(found["certificate_renews_at"])
    if found["certificate_renews_at"] > time.time():
        return f"from {moment} on, while the agent runs"
    return f"due since {moment}: the agent must run and reach the coordinator; its log says more"


def _files(found: dict[str, Any]) -> str:
    if not found["rules"]["ok"]:
        return str(found["rules"]["message"])
    return "in order" if found["files_in_order"] else "NOT in order: see below"


def _allowed(one: dict[str, Any]) -> str:
    if one["withdrawn"]:
        return "WITHDRAWN by the data steward: nothing is learned from it"
    return f"{output.counted(len(one['tasks']), 'task')} allowed"


def _wrong(message: str) -> str:
    return f". WRONG: {message}; attempts on it are refused, and cost nothing" if message else ""


def _connected(found: dict[str, Any]) -> str:
    if not found["connected"]:
        return "no"
    return f"yes, since {output.moment(found['connected_since'])}"


def _account(one: dict[str, Any]) -> str:
    if one["message"]:
        return f"WRONG: {one['message']}"
    if one["guarantee"] is None:
        limit = output.epsilon(one["epsilon_limit"])
        return f"limit {limit} at delta {one['delta']:g}; what is booked is UNKNOWN: see own ledger"
    lowered = one["guarantee"] and one["epsilon_guarantee"] != one["epsilon_limit"]
    now = " now" if lowered else ""
    limit = f"limit {output.epsilon(one['epsilon_limit'])}{now} at delta {one['delta']:g}"
    if one["epsilon_start"] > 0:
        start = output.epsilon(one["epsilon_start"])
        takes = "took" if one["posted_units"] else "takes"
        limit += f", of which its first release {takes} {start} (rdp order {one['rdp_order']})"
    if one["raises"]:
        limit += f", raised {output.counted(one['raises'], 'time')}"
        limit += ", not yet in the coordinator's ledger" if one["raises_unseen"] else ""
    further = [STAGES[one["stage"]], one["not_raised"], one["shares_above"]]
    said = ". ".join(["", *(text.removesuffix(".") for text in further if text)])
    if not one["guarantee"]:
        return f"NO GUARANTEE: something was released without accounting; {limit}{said}"
    booked = f"booked epsilon {output.epsilon(one['epsilon_booked'])}"
    if not lowered:
        return f"{limit}; {booked}, on the way to the limit, which is the guarantee{said}"
    guarantee = output.epsilon(one["epsilon_guarantee"])
    return f"{limit}; {booked}; the guarantee is {guarantee}, its highest limit ever{said}"


# After those above, so that the help lists them in the order of an installation's life.
app.command()(agent_doctor.doctor)
app.command("install-service")(agent_service.install_service)
app.command()(agent_approve.approve)
app.command()(agent_limit.vouch)
app.command()(agent_work.outbox)
app.command()(agent_work.logs)
app.command()(agent_work.digest)
app.command()(agent_backup.backup)
app.command()(agent_backup.restore)
app.command()(agent_leave.move)
app.command()(agent_leave.leave)
