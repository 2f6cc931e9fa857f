"""`feddp budget`: what was spent, on what, and whether the ledger proves it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from feddp.cli import output
from feddp.cli.failures import FAILED
from feddp.cli.groups import noun
from feddp.cli.options import DataSet, Dir, Json, ProfileFolder
from feddp.cli.shares import HEADERS as SHARE_HEADERS
from feddp.cli.shares import left as left_of
from feddp.cli.shares import rows as share_rows
from protos.errors import NotFound

if TYPE_CHECKING:
    from feddp.cli.ledgers import Ledger
    from privacy.ledger import Entry

STAGES: Final = {
    "": "",
    "nearly_spent": "80 % spent or more",
    "spent": "spent: retire it (docs/budgets.md)",
    "over_limit": "LIMIT BELOW WHAT IS SPENT: nothing more is admitted, what was spent stays spent",
}

app = noun("Privacy accounts and their ledger; with --dir it works while the server is stopped.")


@app.command()
def show(
    data_set: DataSet = "", folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """Every account: its limit now, its guarantee, which is the highest limit that it ever had,
    and the running epsilon."""
    from feddp.cli.ledgers import read
    from feddp.profile import Selection
    from privacy.ledger import LimitChange

    found = read(Selection.of(folder, profile), data_set)
    if data_set:
        _require_accounts(found, data_set)
    raised: dict[str, list[float]] = {}
    for entry in found.entries:
        if isinstance(entry.statement, LimitChange):
            limits = raised.setdefault(entry.statement.account, [])
            limits.append(entry.statement.terms.epsilon_limit_new)
    guarantees = [guarantee_of(one, raised.get(str(one["account"]), [])) for one in found.accounts]
    if as_json:
        output.print_json(
            {
                "accounts": [
                    {**one, "epsilon_guarantee": guarantee}
                    for one, guarantee in zip(found.accounts, guarantees, strict=True)
                ]
            }
        )
        return
    if not found.accounts:
        output.line(
            "there is no account yet: each comes with the first connection of a hospital's agent "
            "whose policy.yaml names it; `feddp node list` shows who has connected"
        )
        return
    headers = [
        "ACCOUNT",
        "DATA SETS",
        "FILTER",
        "LIMIT",
        "GUARANTEE",
        "DELTA",
        "RUNNING EPSILON",
        "BOOKED",
        "NAIVE SUM",
        "EFFICIENCY",
        "OF NAIVE",
        "LEFT",
        "STATE",
    ]
    rows = [
        _row(one, len(raised.get(str(one["account"]), [])), guarantee)
        for one, guarantee in zip(found.accounts, guarantees, strict=True)
    ]
    output.table(headers, rows)
    shares = [row for account in found.accounts for row in share_rows(account)]
    if shares:
        output.line("")
        output.table(SHARE_HEADERS, shares)
    output.line("The GUARANTEE is the highest limit that was ever in force, at delta; LIMIT is the")
    output.line("one of now. The running epsilon is a figure on the way.")
    if raised:
        output.line(
            "After raises the DELTA holds for each limit by itself; for all that an account"
        )
        output.line("had, together, it counts once more for each raise.")
    output.line("BOOKED is what the filter holds against the limit; EFFICIENCY is what the same")
    output.line("releases would have come to, had all been fixed in advance, over that; NAIVE SUM")
    output.line("adds up each release's own epsilon, and OF NAIVE is BOOKED over it.")
    output.line("LEFT is of the filter's units, which add up; epsilon does not.")


def _require_accounts(found: "Ledger", data_set: str) -> None:
    """An empty selection proves nothing, so it is no success."""
    if not found.accounts and next(iter(found.entries), None) is None:
        what = f"no account pays for a data set {data_set}" if data_set else "there is no account"
        raise NotFound(
            "NOTHING_TO_VERIFY", f"{what}; `feddp budget show` lists the accounts that there are"
        )


def guarantee_of(account: dict[str, Any], raised: list[float]) -> float | None:
    """The highest limit that was ever in force: lowering one takes nothing back that was released
    under it. None without a guarantee."""
    if not account["guarantee"]:
        return None
    first = account.get("epsilon_limit_highest") or 0.0
    return float(max([account["epsilon_limit"], first, *raised]))


def _row(account: dict[str, Any], raises: int, guarantee: float | None) -> list[str]:
    limit = int(account["limit_units"])
    left = limit - int(account["posted_units"]) - int(account["pending_units"])
    order = f" order {account['rdp_order']}" if account["rdp_order"] else ""
    if account.get("epsilon_start"):
        order += f", starts at {output.epsilon(account['epsilon_start'])}"
    return [
        str(account["account"]),
        ", ".join(account["data_sets"]),
        f"{account['filter']}{order}",
        output.epsilon(account["epsilon_limit"]),
        "none" if guarantee is None else output.epsilon(guarantee),
        f"{account['delta']:g}",
        output.epsilon(account["epsilon_spent"]),
        *(_figure(account, name) for name in ("epsilon_booked", "epsilon_naive")),
        *(_share(account, name) for name in ("efficiency", "booked_to_naive")),
        left_of(left, limit),
        "; ".join(one for one in (_state(account, left, limit), _raised(account, raises)) if one),
    ]


def _raised(account: dict[str, Any], raises: int) -> str:
    first = account.get("epsilon_limit_highest")
    if not raises or first is None:
        return ""
    times = f"{raises} time{'' if raises == 1 else 's'}"
    return f"limit raised {times}, {output.epsilon(first)} at first"


def _state(account: dict[str, Any], left: int, limit: int) -> str:
    if not account["guarantee"]:
        return "NO GUARANTEE: something was released without accounting"
    from privacy.stages import stage_of

    # What is booked counts against the limit, and is above the running epsilon in rdp; a
    # coordinator of 0.1.0 tells the latter alone.
    told = (account.get(name) for name in ("epsilon_spent", "epsilon_booked"))
    epsilon, epsilon_limit = max(one or 0.0 for one in told), float(account["epsilon_limit"])
    return STAGES[
        stage_of(limit - left, int(account["posted_units"]), limit, epsilon, epsilon_limit)
    ]


def _figure(account: dict[str, Any], name: str) -> str:
    """Empty where there is none: no guarantee, or a coordinator that does not tell."""
    value = account.get(name)
    return "" if value is None else output.epsilon(value)


def _share(account: dict[str, Any], name: str) -> str:
    value = account.get(name)
    return "" if value is None else f"{value:.3f}"


@app.command()
def ledger(
    data_set: DataSet = "", folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """Every entry with its mechanism and parameters, so that anyone can recompute epsilon; raised
    limits with who asked, who agreed, and why."""
    from feddp.cli.ledgers import read
    from feddp.profile import Selection

    found = read(Selection.of(folder, profile), data_set)
    if data_set:
        _require_accounts(found, data_set)
    if as_json:
        output.print_json(found.export())
        return
    headers = [
        "ACCOUNT",
        "SEQ",
        "KIND",
        "ATTEMPT",
        "JOB",
        "ROUND",
        "MECHANISM",
        "NOISE",
        "RATE",
        "STEPS",
        "SIGNED",
    ]
    output.table(headers, [_entry_row(entry) for entry in found.entries])


def _entry_row(entry: "Entry") -> list[str]:
    from privacy.ledger import LimitChange

    one = entry.statement
    first = [one.account, str(entry.seq), one.kind]
    signed = "yes" if entry.node_signature else "no"
    if isinstance(one, LimitChange):
        terms = one.terms
        old, new = (
            output.epsilon(limit) for limit in (terms.epsilon_limit_old, terms.epsilon_limit_new)
        )
        who = f"{terms.asked_by} and {one.agreed_by}"
        said = f"epsilon {old} -> {new} at delta {terms.delta:g}, {who}: {terms.reason}"
        return [*first, said, "", "", "", "", "", "", signed]
    return [
        *first,
        one.attempt_id,
        one.job_id,
        str(one.round),
        one.mechanism,
        output.noise(one.noise_multiplier),
        output.at_most(one.sample_rate, 6),
        str(one.steps),
        signed,
    ]


@app.command()
def verify(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="An export of `budget ledger --json` instead."),
    ] = None,
    heads: Annotated[
        list[Path] | None,
        typer.Option(
            "--heads",
            metavar="FILE",
            help="What a node has seen: `feddp agent ledger heads --json`; repeatable.",
        ),
    ] = None,
    data_set: DataSet = "",
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Check hash chains, signatures, one resolution an attempt, and limits; exit 1 if one fails."""
    from feddp.cli.ledgers import Check, Ledger, Tampered, check, read
    from feddp.cli.progress import Progress
    from feddp.cli.verify.exports import from_file
    from feddp.cli.verify.node_files import from_node_file
    from feddp.cli.verify.verdict import print_check, roots_checked
    from feddp.profile import Selection
    from protos.errors import Malformed

    if file is not None and (data_set or folder or profile):
        raise Malformed("USAGE", "verify takes a FILE, or --dir, --profile and --dataset; not both")
    try:
        with Progress("entries") as progress:
            if file is None:
                found = read(Selection.of(folder, profile), data_set)
            else:
                found = from_file(file, progress.told)
            _require_accounts(found, data_set)
            nodes = [from_node_file(one) for one in heads or []]
            result = check(found, nodes, whole=not data_set)
    except Tampered as error:
        found, nodes = Ledger([], 0, [], {}, {}), []
        result = Check([error.problem], 0, {})
    if as_json:
        output.print_json(
            {
                "verified": result.ok,
                "entries": result.entries,
                "accounts": len(found.accounts),
                "counts": dict(result.counts),
                "unattested": result.unattested,
                "bare_reserves": result.bare_reserves,
                "unsigned_reserves": result.unsigned_reserves,
                "nodes": sorted({one.node for one in nodes}),
                "roots_checked": roots_checked(found, result, whole=not data_set),
                "paid_twice": [asdict(one) | {"text": one.said()} for one in result.paid_twice],
                "restorations": [one.said() for one in found.witnesses.restorations],
                "behind": {name: asdict(one) for name, one in result.behind.items()},
                "problems": [
                    {"account": account, "seq": seq, "text": text}
                    for account, seq, text in result.problems
                ],
            }
        )
    else:
        print_check(found, result, nodes, whole=not data_set)
    if not result.ok:
        raise typer.Exit(FAILED)
