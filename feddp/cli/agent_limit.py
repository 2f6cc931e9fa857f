"""`feddp agent limit`: two stewards of a hospital raise what may be learned about its patients."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.groups import noun
from feddp.cli.options import Json

if TYPE_CHECKING:
    from node_agent.ledger.raising import Outlook

app = noun("Raise an account's limit: one steward proposes, another approves, then it is applied.")

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]
By = Annotated[
    str, typer.Option("--by", metavar="NAME", help="Your name under `stewards:` in policy.yaml.")
]
Key = Annotated[Path, typer.Option("--key", metavar="FILE", help="Your own key.")]
Proposal = Annotated[Path, typer.Argument(metavar="FILE", help="What `propose` wrote.")]


@app.command()
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The steward's name.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the key goes.")],
    as_json: Json = False,
) -> None:
    """Make a steward's own key; prints the line that goes under `stewards:` in policy.yaml.

    Whoever holds the file can sign for this steward: keep it where the other steward cannot read
    it, and not in the agent's folder.
    """
    from node_agent.ledger.raising import make_key

    public_key = make_key(name, out)
    if as_json:
        output.print_json({"name": name, "public_key": public_key, "file": str(out)})
        return
    output.line(f"{out} holds {name}'s key, readable by its owner alone; in policy.yaml:")
    output.line("stewards:")
    output.line(f"  - {{name: {name}, public_key: {public_key}}}")


@app.command()
def propose(
    account: Annotated[
        str, typer.Argument(metavar="ACCOUNT", help="Its name in policy.yaml, without the node.")
    ],
    folder: Folder,
    by: By,
    key_file: Key,
    reason: Annotated[str, typer.Option(help="Why; it stays in the ledger for ever.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the proposal goes.")],
    as_json: Json = False,
) -> None:
    """Ask for the epsilon_limit that policy.yaml gives an account; says what that would mean."""
    from node_agent.ledger.raising import propose as propose_raise

    found = propose_raise(folder, account, by, key_file, reason, out)
    _tell(found, as_json)
    if not as_json:
        output.line(f"{out} holds the proposal: another steward agrees with `feddp agent limit")
        output.line("approve`; until it is applied nothing changes")


@app.command()
def approve(file: Proposal, folder: Folder, by: By, key_file: Key, as_json: Json = False) -> None:
    """Agree to what another steward proposed; the file then holds both signatures."""
    from node_agent.ledger.raising import approve as approve_raise

    found = approve_raise(folder, file, by, key_file)
    _tell(found, as_json)
    if not as_json:
        output.line(f"{file} holds both signatures: `feddp agent limit apply {file}`")


@app.command()
def apply(
    file: Proposal,
    folder: Folder,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Record an approved raise in this node's ledger; the agent tells the coordinator.

    The agent may run, and then does so within seconds; else at its next start.
    """
    from node_agent.ledger.raising import record

    found = record(folder, file, dry_run=dry_run)
    _tell(found, as_json, applied=not dry_run)
    if not as_json and dry_run:
        output.line("nothing was changed: this was a dry run, and all is in order")
    elif not as_json:
        output.line("recorded; the coordinator follows at the agent's next session")


def vouch(folder: Folder, by: By, key_file: Key, as_json: Json = False) -> None:
    """Sign, as a steward, that no patient is in two accounts, nor in data sets of two accounts.

    Needed for more than one account, and again when a data set is new or changes its account. It
    signs the words in policy.yaml with the data sets of datasets.yaml. Changes nothing: prints the
    lines for policy.yaml.
    """
    from node_agent.ledger.raising import vouch as sign

    found = sign(folder, by, key_file)
    if as_json:
        output.print_json(asdict(found))
        return
    output.line(f"{found.disjoint_signed_by} vouches that no patient is in two of these accounts:")
    for account, names in found.disjoint_data_sets.items():
        output.line(f"  {account}: {', '.join(names) or 'no data set'}")
    output.line(f"  {found.disjoint_patients}")
    output.line("in policy.yaml:")
    # JSON is YAML, and quotes a name that YAML would read as a number.
    output.line(f"disjoint_data_sets: {json.dumps(found.disjoint_data_sets)}")
    output.line(f"disjoint_signed_by: {found.disjoint_signed_by}")
    output.line(f'disjoint_signature: "{found.disjoint_signature}"')


def _tell(found: "Outlook", as_json: bool, *, applied: bool = False) -> None:
    if as_json:
        output.print_json({**asdict(found), "applied": applied})
        return
    old, new = (output.epsilon(one) for one in (found.epsilon_limit_old, found.epsilon_limit_new))
    spent = "no guarantee: something was released without accounting"
    if found.epsilon_booked is not None:
        spent = f"epsilon {output.epsilon(found.epsilon_booked)}"
        spent += ", more is under way" if found.pending else ""
    output.facts(
        [
            ("account", f"{found.account}, raise {found.number}"),
            (
                "limit",
                f"{old} -> {new} at delta {found.delta:g}",
            ),
            ("booked", spent),
            ("asked by", found.asked_by),
            ("agreed by", found.agreed_by or "nobody yet"),
            ("reason", found.reason),
        ]
    )
    if found.epsilon_guarantee > found.epsilon_limit_new:
        guarantee = output.epsilon(found.epsilon_guarantee)
        output.line(
            f"The guarantee stays epsilon {guarantee}, for every patient of the account and for all"
        )
        output.line(f"that was ever released about them: the limit was {guarantee} before.")
    else:
        output.line(
            f"The guarantee becomes epsilon {new}, for every patient of the account and for all"
            " that"
        )
        output.line(
            "was ever released about them, from the first release on. It cannot be taken back."
        )
    limits = found.number + 1
    output.line(
        f"Each limit by itself holds with delta {found.delta:g}; all {limits} up to this one,"
        " together, with"
    )
    output.line(
        f"delta {limits * found.delta:g}, since a raise may be decided by results: once more for"
        " each raise."
    )
