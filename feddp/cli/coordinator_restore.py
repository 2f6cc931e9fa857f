"""`feddp coordinator restore`: a whole coordinator from a backup, and what to do after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.options import Json
from feddp.cli.progress import Progress

if TYPE_CHECKING:
    from coordinator.restoring.restore import Restored

JOBS_TOLD_MAX = 20
NODES_TOLD_MAX = 20


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup of a coordinator.")],
    folder: Annotated[
        Path,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="A new or empty folder; for a backup without keys, one that holds the keys of the "
            "same installation.",
        ),
    ],
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help="Opens a sealed backup."),
    ] = None,
    revocations: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="What storage.revocations_file named: who was revoked, disabled or quarantined "
            "after the backup. Once for each replica's.",
        ),
    ] = None,
    without_revocations: Annotated[
        bool,
        typer.Option(
            "--without-revocations",
            help="There is no such file: who was shut out after the backup is let in again.",
        ),
    ] = False,
    database_url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Another database than the one that the backup's coordinator.yaml names: an "
            "empty PostgreSQL database, or sqlite:///FILE.",
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the backup and the folder, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a backup and write it to a folder that has nothing; nothing is written over.

    Tokens and invitations are void, jobs that ran have failed and can be resumed, all work is
    paused, and a signed epoch tells the nodes, which hand in what the backup lacks. Stop every
    process of the old coordinator first, and never start it again.
    """
    from coordinator.backups.backup import read_password
    from coordinator.restoring.restore import restore as restore_to
    from protos.errors import Malformed

    if bool(revocations) == without_revocations:
        raise Malformed(
            "USAGE",
            "a backup does not know who was shut out after it was made: give --revocations FILE "
            "(what storage.revocations_file named), or say --without-revocations",
        )
    password = read_password(password_file) if password_file is not None else None
    with Progress("bytes and rows") as progress:
        done = restore_to(
            file,
            folder,
            password=password,
            revoked=None if without_revocations else revocations,
            database_url=database_url,
            dry_run=dry_run,
            progress=progress.told,
        )
    if as_json:
        output.print_json(_as_json(done, dry_run=dry_run))
    else:
        _show(done, dry_run=dry_run, revocations=not without_revocations)


def _as_json(done: "Restored", *, dry_run: bool) -> dict[str, object]:
    found, changes = done.checked, done.changes
    return {
        "dir": str(done.folder),
        "dry_run": dry_run,
        "finished": done.finished,
        "backup_made_at": found.made_at_s,
        "database": done.database,
        "keys_from_backup": done.keys,
        "accounts": found.accounts,
        "entries": found.entries,
        "blobs": done.blobs,
        "missing": list(found.missing),
        "revocations": done.revocations,
        "nodes_shut_out": list(done.nodes.shut_out),
        "nodes_let_in": list(done.nodes.let_in),
        "tokens_void": changes.tokens if changes else 0,
        "invitations_void": changes.invitations if changes else 0,
        "joins_void": changes.joins if changes else 0,
        "jobs_failed": list(changes.jobs) if changes else [],
        "epoch": done.epoch,
        "profile": str(done.profile) if done.profile else None,
    }


def _show(done: "Restored", *, dry_run: bool, revocations: bool) -> None:
    found = done.checked
    made = output.moment(found.made_at_s)
    what = f"{found.accounts} accounts, {found.entries} entries, every chain and signature checked"
    keys = "from the backup" if done.keys else "those that are there"
    facts = [
        ("backup", f"made {made}, sound"),
        ("folder", str(done.folder)),
        ("database", done.database),
        ("ledger", what),
        ("keys", keys),
    ]
    if dry_run:
        output.facts([*facts, ("revocations", f"{done.revocations} certificates")])
        output.line("dry run: it can be restored, and nothing was written")
        return
    if done.finished:
        output.facts(facts[:3])
        output.line("the restore before this one was whole, but for its mark; it is finished now")
        _next(done, revocations=revocations)
        return
    if (changes := done.changes) is not None:
        facts += [
            ("models", f"{done.blobs}, updates included"),
            ("revoked since", f"{done.revocations} certificates"),
            ("shut out since", _named(done.nodes.shut_out)),
            ("let in since", _named(done.nodes.let_in)),
            (
                "void",
                f"{changes.tokens} tokens, {changes.invitations} invitations, "
                f"{changes.joins} joins that waited",
            ),
            ("epoch", f"{done.epoch}, signed"),
        ]
    output.facts(facts)
    for name in found.missing[:JOBS_TOLD_MAX]:
        output.line(f"warning: {name} was missing when the backup was made")
    for job_id in (changes.jobs if changes else ())[:JOBS_TOLD_MAX]:
        output.line(f"job {job_id} ran or waited: it has failed, and can be resumed")
    _next(done, revocations=revocations)


def _named(names: tuple[str, ...]) -> str:
    """Some names, or none."""
    more = len(names) - NODES_TOLD_MAX
    told = ", ".join(names[:NODES_TOLD_MAX])
    return f"{told} and {more} more" if more > 0 else told or "no node"


def _next(done: "Restored", *, revocations: bool) -> None:
    folder = done.folder
    output.line("all work is paused. Now, in this order:")
    steps = [
        "make sure that no process of the old coordinator runs, and that none can start",
        f"feddp coordinator serve --dir {folder}",
        f"feddp node list --dir {folder}   for each node that is quarantined, ask its hospital for "
        "the certificate that `feddp agent status` shows; then feddp node release NAME",
        f"feddp coordinator check --dir {folder}   until every account is handed in",
        "make new tokens and invitations for those who had some",
        f"feddp coordinator resume --dir {folder}",
    ]
    if not revocations:
        steps.insert(-2, "disable and revoke again whom you had shut out since")
    if done.profile is None and not (folder / "operator").exists():
        steps.insert(2, f"no operator's profile was made: {folder} has no operator who may have it")
    for number, step in enumerate(steps, 1):
        output.line(f"  {number}. {step}")
