"""`feddp coordinator backup`: a whole coordinator in one file, and what such a file holds."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feddp.cli import output
from feddp.cli.coordinator_place import Config, Folder, config_path
from feddp.cli.failures import FAILED
from feddp.cli.options import Json
from feddp.cli.progress import Progress

if TYPE_CHECKING:
    from coordinator.backups.backup import Backup
    from coordinator.backups.check import Checked
    from coordinator.backups.folder import Kept

TOLD_MAX = 20
KEEP_DEFAULT = 7


def backup(
    config: Config = None,
    folder: Folder = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A new file, its owner's alone.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            metavar="DIR",
            help="For a schedule: a new file in this folder, read back, then the oldest removed.",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", metavar="N", help="With --out-dir: backups that stay. Default: 7."),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="FILE", help="Read a backup back and check all of it."),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="With the installation's keys; then it is sealed.")
    ] = False,
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file", metavar="FILE", help="Seals the backup with the password in FILE."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write tables, models and configuration to one file, beside a coordinator that serves.

    --keys adds the authority's, the ledger's and the server's; whoever has those can be this
    coordinator. With --verify FILE a backup is read back instead: its digests, its ledger's
    chains and signatures; exit code 1 if something is wrong with it. With --out-dir both are done,
    and the oldest beyond --keep removed once the new one is known to be sound; exit code 1 if
    something that the tables name was missing.
    """
    from coordinator.backups.backup import read_password
    from protos.errors import Malformed

    if [out, out_dir, verify].count(None) != 2:
        raise Malformed(
            "USAGE",
            "give one of --out FILE to write a backup, --out-dir DIR to write one and remove the "
            "oldest, and --verify FILE to read one",
        )
    if keep is not None and out_dir is None:
        raise Malformed("USAGE", "--keep goes with --out-dir DIR, the folder that it empties")
    password = read_password(password_file) if password_file is not None else None
    if out_dir is not None:
        from coordinator.backups.folder import backup_into

        with Progress("bytes") as progress:
            kept = backup_into(
                config_path(config, folder),
                out_dir,
                keep=KEEP_DEFAULT if keep is None else keep,
                now_s=time.time(),
                keys=keys,
                password=password,
                progress=progress.told,
            )
        _show_kept(kept, as_json)
    elif out is not None:
        from coordinator.backups.backup import backup as write_backup

        path = config_path(config, folder)
        with Progress("bytes") as progress:
            made = write_backup(path, out, keys=keys, password=password, progress=progress.told)
        _show_made(made, password_file, as_json)
    elif verify is not None:
        from coordinator.backups.check import check

        with Progress("bytes") as progress:
            found = check(verify, password, progress.told)
        _show_checked(verify, found, as_json)


def _show_kept(kept: "Kept", as_json: bool) -> None:
    if as_json:
        output.print_json(
            _as_dict(kept.backup)
            | {"entries": kept.checked.entries, "removed": list(kept.removed), "kept": kept.kept}
        )
    else:
        _say_made(kept.backup)
        output.line(
            f"read back and sound: {kept.checked.accounts} accounts, {kept.checked.entries} entries"
        )
        for name in kept.removed:
            output.line(f"removed {name}")
        output.line(f"{kept.kept} in {kept.backup.file.parent}")
    if kept.backup.missing:
        # Nobody reads the output of a schedule; a job that failed is seen.
        raise typer.Exit(FAILED)


def _show_made(made: "Backup", password_file: Path | None, as_json: bool) -> None:
    if as_json:
        output.print_json(_as_dict(made))
        return
    _say_made(made)
    password = f" --password-file {password_file}" if made.sealed else ""
    output.line(f"check it: feddp coordinator backup --verify {made.file}{password}")


def _as_dict(made: "Backup") -> dict[str, Any]:
    return {
        "file": str(made.file),
        "made_at": made.made_at_s,
        "bytes": made.bytes,
        "files": made.files,
        "sealed": made.sealed,
        "keys": made.keys,
        "missing": list(made.missing),
        "recorded": made.recorded,
    }


def _say_made(made: "Backup") -> None:
    from coordinator.backups.names import MODELS

    what = "sealed, with keys" if made.keys else "sealed" if made.sealed else "not sealed"
    output.line(f"{made.file}: {made.bytes:,} bytes, {made.files} files, {what}")
    for name in made.missing[:TOLD_MAX]:
        output.line(f"warning: {name} is missing or damaged here, and so is not in the backup")
    if len(made.missing) > TOLD_MAX:
        output.line(f"warning: and {len(made.missing) - TOLD_MAX} more")
    if any(name.startswith(MODELS) for name in made.missing):
        output.line("warning: so it does not count as made: the alert BackupOld goes on")
    elif not made.recorded:
        output.line(
            "warning: an older version made the tables, so that the time of this backup is not kept"
        )


def _show_checked(path: Path, found: "Checked", as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "ok": not found.problems,
                "problems": found.problems,
                "missing": list(found.missing),
                "made_at": found.format.get("made_at"),
                "feddp": found.format.get("feddp"),
                "sealed": found.sealed,
                "keys": found.format.get("keys"),
                "files": found.files,
                "bytes": found.bytes,
                "accounts": found.accounts,
                "entries": found.entries,
            }
        )
    else:
        output.facts(
            [
                ("backup", str(path)),
                ("made", output.moment(float(found.format.get("made_at") or 0.0))),
                ("by feddp", str(found.format.get("feddp"))),
                ("files", f"{found.files} of {found.bytes:,} bytes in all"),
                ("ledger", f"{found.accounts} accounts, {found.entries} entries"),
                *(("missing", name) for name in found.missing[:TOLD_MAX]),
                *(("problem", text) for text in found.problems[:TOLD_MAX]),
            ]
        )
        count = len(found.problems)
        output.line("the backup is sound" if not count else f"the backup is not sound: {count}")
    if found.problems:
        raise typer.Exit(FAILED)
