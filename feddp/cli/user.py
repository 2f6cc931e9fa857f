"""`feddp user`: let people in, look at who is in, and shut them out."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.failures import FAILED
from feddp.cli.groups import noun
from feddp.cli.options import Dir, Json, ProfileFolder, connect, life_of_token

if TYPE_CHECKING:
    from feddp.client import Client
    from protos.feddp.v1.users_pb2 import User

app = noun("Let people in, look at who is in, shut them out.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and '-'.")]


@app.command()
def invite(
    name: Name,
    role: Annotated[
        list[str],
        typer.Option(
            metavar="engineer|privacy-officer|operator",
            help="What they may do; more than once for more than one.",
        ),
    ],
    valid: Annotated[
        str, typer.Option(help="How long the token may be redeemed: 30m, 24h, 7d.")
    ] = "24h",
    project: Annotated[
        str,
        typer.Option(
            metavar="PROJECT",
            help="Whose jobs and models an engineer sees, submits and resumes; operators and "
            "privacy officers see every project's.",
        ),
    ] = "default",
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Make a token with which one person joins; it is shown once and works once."""
    ttl_s = life_of_token(valid, "--valid")
    with connect(folder, profile) as client:
        made = client.invite_user(name, role, ttl_s, project)
    if as_json:
        output.print_json(
            {
                "token": made.token,
                "expires_at": made.expires_at,
                "user": name,
                "roles": sorted(set(role)),
                "project": project,
                "root_fingerprint": made.root_fingerprint,
            }
        )
        return
    output.line(made.token)
    if sys.stdout.isatty():
        output.note(f"valid until {output.moment(made.expires_at)}, for one use. On their machine:")
        output.note("  feddp profile join TOKEN --profile DIR")
        output.note("which shows the root certificate's SHA-256; tell it them by another way:")
        output.note(f"  {made.root_fingerprint}")


@app.command("list")
def list_(folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False) -> None:
    """Everybody who may come in, is invited, or was shut out."""
    with connect(folder, profile) as client:
        users = client.users()
    if as_json:
        output.print_json({"users": [output.as_dict(user) for user in users]})
        return
    output.table(
        ("NAME", "ROLES", "PROJECT", "STATUS", "CERTIFICATE UNTIL", "LAST USED", "INVITED BY"),
        [
            (
                user.name,
                ", ".join(user.roles),
                user.project,
                _status(user),
                output.moment(user.certificate_expires_at) if user.certificate_expires_at else "-",
                output.moment(user.last_used_at),
                user.invited_by or "-",
            )
            for user in users
        ],
    )


@app.command()
def revoke(
    name: Name,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; without a terminal it is needed.")
    ] = False,
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Shut a person out for good: certificates, open connections, invitation.

    Shows first what will end. Only a new invitation lets them in again. Exit code 1 if nothing was
    done.
    """
    with connect(folder, profile) as client:
        before = _found(client, name)
        if not as_json:
            output.note(_what_ends(before))
        done = yes or (sys.stdin.isatty() and not as_json and typer.confirm("Revoke?", err=True))
        after = client.revoke_user(name) if done else before
    if as_json:
        output.print_json({"done": done, "ends": _what_ends(before), **output.as_dict(after)})
    elif done:
        output.line(f"{name} is revoked; only a new invitation lets them in again")
    else:
        output.line("nothing was changed; with --yes it is done")
    if not done:
        raise typer.Exit(FAILED)


def _found(client: "Client", name: str) -> "User":
    from protos.errors import NotFound

    for user in client.users():
        if user.name == name:
            return user
    raise NotFound("USER_UNKNOWN", f"there is no user {name[:63]}; `feddp user list` shows them")


def _what_ends(user: "User") -> str:
    """One line: what a revocation would end now."""
    ends = []
    if user.certificate_expires_at > time.time():
        until = output.moment(user.certificate_expires_at)
        ends.append(f"the certificate until {until} and every connection open with it, within 5 s")
    if user.invitation_expires_at > time.time():
        ends.append(f"the invitation until {output.moment(user.invitation_expires_at)}")
    roles = ", ".join(user.roles)
    what = " and ".join(ends) or "nothing, as nothing of theirs is valid"
    return f"what ends for {user.name} ({roles}): {what}; jobs that they submitted go on"


def _status(user: "User") -> str:
    now_s = time.time()
    if user.status == "joined" and user.certificate_expires_at <= now_s:
        return "joined, CERTIFICATE ENDED"
    if user.status == "invited" and user.invitation_expires_at <= now_s:
        return "invited, EXPIRED"
    return user.status.upper() if user.status == "revoked" else user.status
