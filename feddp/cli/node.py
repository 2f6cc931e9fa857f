"""`feddp node`: invite, look at, let in and shut out nodes."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from feddp.cli import output
from feddp.cli.groups import noun
from feddp.cli.options import Dir, Json, ProfileFolder, connect, life_of_token

if TYPE_CHECKING:
    from protos.feddp.v1.nodes_pb2 import Node

app = noun("Invite, look at, let in and shut out nodes.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")]

_SHUT_OUT = {
    "disabled": "an operator has disabled it: its calls are refused (NODE_DISABLED)",
    "revoked": "an operator has revoked its certificates for good: its calls are refused "
    "(CERTIFICATE_REVOKED)",
}


@app.command()
def token(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and '-'.")
    ],
    node_class: Annotated[
        str, typer.Option("--class", metavar="edge|hpc|cloud", help="What kind of machine it is.")
    ] = "edge",
    ttl: Annotated[str, typer.Option(help="How long the token may be redeemed: 30m, 24h, 7d.")] = (
        "24h"
    ),
    approval: Annotated[
        bool, typer.Option("--approval", help="Whoever redeems it waits for `feddp node approve`.")
    ] = False,
    rejoin: Annotated[
        bool, typer.Option("--rejoin", help="The node has joined, and joins again.")
    ] = False,
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Make a join token for one node; it is shown once and works once."""
    from protos.errors import Malformed

    if node_class not in ("edge", "hpc", "cloud"):
        raise Malformed("CLASS_INVALID", f"--class is edge, hpc or cloud, not {node_class!a}")
    ttl_s = life_of_token(ttl, "--ttl")
    with connect(folder, profile) as client:
        made = client.create_token(name, node_class, ttl_s, approval=approval, rejoin=rejoin)
    if as_json:
        output.print_json(
            {
                "token": made.token,
                "expires_at": made.expires_at,
                "node": name,
                "root_fingerprint": made.root_fingerprint,
            }
        )
        return
    output.line(made.token)
    if sys.stdout.isatty():
        output.note(f"valid until {output.moment(made.expires_at)}, for one use. At the hospital:")
        output.note("  feddp agent join TOKEN --dir DIR")
        output.note("which shows the root certificate's SHA-256; tell it them by another way:")
        output.note(f"  {made.root_fingerprint}")


@app.command("list")
def list_(folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False) -> None:
    """Every node, and whether it is connected."""
    with connect(folder, profile) as client:
        nodes = client.nodes()
    if as_json:
        output.print_json({"nodes": [output.as_dict(node) for node in nodes]})
        return
    output.table(
        ("NAME", "CLASS", "STATUS", "CONNECTED", "LAST SEEN", "DATA SETS"),
        [
            (
                node.name,
                node.node_class,
                _status(node),
                "yes" if node.connected else "no",
                output.moment(node.last_seen_at),
                ", ".join(data_set.name for data_set in node.data_sets),
            )
            for node in nodes
        ],
    )


@app.command()
def show(
    name: Name, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """One node: its state, certificate, data sets and the tasks that it allows."""
    with connect(folder, profile) as client:
        node = client.node(name)
    _show(node, as_json)


@app.command()
def disable(
    name: Name, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """Refuse a node from now on and cut its connections within 5 s."""
    with connect(folder, profile) as client:
        node = client.disable(name)
    _changed(node, "disabled; `feddp node enable` admits it again", as_json)


@app.command()
def enable(
    name: Name, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """Admit a disabled node again."""
    with connect(folder, profile) as client:
        node = client.enable(name)
    settles = _settles(node)
    _changed(
        node,
        f"no longer disabled, but {node.status}: {settles}"
        if settles
        else "enabled; it comes back by itself",
        as_json,
    )


@app.command()
def approve(
    name: Name,
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="The key that the hospital read out; it must match. Without it whichever waits.",
        ),
    ] = "",
    steward: Annotated[
        str, typer.Option(metavar="WHO", help="Who at the hospital confirmed it; kept in the log.")
    ] = "",
    folder: Dir = None,
    profile: ProfileFolder = None,
    as_json: Json = False,
) -> None:
    """Let in the machine that waits to join as NAME."""
    with connect(folder, profile) as client:
        node = client.approve(name, key, steward)
    _changed(node, "let in; its `feddp agent join` or `move` goes on by itself", as_json)


@app.command()
def reject(
    name: Name, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """Refuse the machine that waits to join as NAME, and void its token."""
    with connect(folder, profile) as client:
        node = client.reject(name)
    _changed(node, "as before; the machine that waited is refused", as_json)


@app.command()
def release(
    name: Name, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """End a quarantine, after the hospital has stopped every other machine with this identity."""
    with connect(folder, profile) as client:
        node = client.release(name)
    _changed(node, "released; its newest certificate is let in, older ones are not", as_json)


@app.command()
def revoke(
    name: Name, folder: Dir = None, profile: ProfileFolder = None, as_json: Json = False
) -> None:
    """Revoke every certificate of a node for good, void its open tokens, and cut its connections
    within 5 s."""
    with connect(folder, profile) as client:
        node = client.revoke(name)
    text = "revoked; a new token (--rejoin) and its steward's word bring it back"
    if node.status == "invited":
        text = "kept out: its tokens are void; it has not joined, and needs a new one to do so"
    _changed(node, text, as_json)


def _status(node: "Node") -> str:
    if node.waiting_key:
        return f"{node.status}, WAITS TO JOIN"
    return node.status.upper() if node.status in ("quarantined", "revoked") else node.status


def _settles(node: "Node") -> str:
    """What lets in a node that is shut out; empty for one that is not."""
    name = node.name
    return {
        "disabled": f"feddp node enable {name}",
        "quarantined": f"feddp node release {name}, once only the right one runs",
        "revoked": f"feddp node token {name} --rejoin; the hospital: feddp agent join TOKEN "
        "--again --dir its folder; its steward confirms that",
    }.get(node.status, "")


def _changed(node: "Node", text: str, as_json: bool) -> None:
    if as_json:
        output.print_json(output.as_dict(node))
    else:
        output.line(f"{node.name} is {text}")


def _show(node: "Node", as_json: bool) -> None:
    if as_json:
        output.print_json(output.as_dict(node))
        return
    key = node.ledger_public_key.hex()
    output.facts(
        [
            ("name", node.name),
            ("class", node.node_class),
            ("status", _status(node)),
            *(("quarantine", text) for text in [node.quarantine] if text),
            *(("shut out", text) for text in [_SHUT_OUT.get(node.status, "")] if text),
            *(("let it in", text) for text in [_settles(node)] if text),
            *(("waits to join", text) for text in [_waits(node)] if text),
            *(
                ("second agent", f"refused at {output.moment(node.second_agent_at)}")
                for _ in [node.second_agent_at]
                if _
            ),
            ("connected", "yes" if node.connected else "no"),
            ("last seen", output.moment(node.last_seen_at)),
            ("agent", node.agent_version or "unknown"),
            ("certificate until", output.moment(node.certificate_expires_at)),
            ("ledger key", key or "none before it has joined"),
            *(
                (
                    f"data set {data_set.name}",
                    f"{output.counted(data_set.declared_n, 'patient')} declared, paid by "
                    f"{data_set.account}"
                    + (f", UNAVAILABLE: {data_set.unavailable}" if data_set.unavailable else ""),
                )
                for data_set in node.data_sets
            ),
            *(("allows task", task) for task in node.tasks),
        ]
    )


def _waits(node: "Node") -> str:
    from certs.enrolment import spoken

    if not node.waiting_key:
        return ""
    key = spoken(node.waiting_key)
    if not node.waiting_for_steward:
        return f"key {key}; compare it, then feddp node approve {node.name} --key {key}"
    return (
        f"key {key}; it does not prove to be the same machine: its steward reads the key out to "
        f"you, then feddp node approve {node.name} --key KEY --steward WHO"
    )
