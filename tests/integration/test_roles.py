"""Who may call what: each role against each rpc, over real gRPC and TLS."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from certs.credentials import channel_credentials
from coordinator.authz import PEOPLES_ROLES, RULES
from feddp.joining import join
from feddp.profile import Profile
from node_agent.joining.enrol import join as join_node
from node_agent.joining.identity import load_identity
from protos.status import from_rpc
from tests.integration.federation import Federation

ROOT = Path(__file__).parents[2]
ROLES = (*PEOPLES_ROLES, "node")


def every_rpc() -> list[str]:
    """`Service/Method` of each rpc that any .proto file declares."""
    found = []
    for path in sorted((ROOT / "protos/feddp/v1").glob("*.proto")):
        file = importlib.import_module(f"protos.feddp.v1.{path.stem}_pb2").DESCRIPTOR
        for service in file.services_by_name.values():
            found += [f"{service.name}/{method.name}" for method in service.methods]
    return found


@pytest.fixture(scope="module")
def by_role(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, grpc.Channel]]:
    """A connection of somebody with each role, and no other role."""
    federation = Federation(tmp_path_factory.mktemp("people"))
    federation.start("coordinator")
    try:
        found = {}
        for role in PEOPLES_ROLES:
            with federation.client() as client:
                token = client.invite_user(f"one-{role}", [role]).token
            join(token, federation.folder / role)
            mine = Profile.load(federation.folder / role)
            credentials = channel_credentials(mine.bundle, mine.key, mine.chain)
            found[role] = grpc.secure_channel(federation.address, credentials)
        with federation.client() as client:
            join_node(client.create_token("alpha").token, federation.agent("alpha"))
        identity = load_identity(federation.agent("alpha") / "identity")
        found["node"] = grpc.secure_channel(federation.address, identity.credentials())
        yield found
        for channel in found.values():
            channel.close()
    finally:
        federation.stop()


def answer(channel: grpc.Channel, rpc: str) -> str:
    """The reason that a call with an empty request ends with; empty for none. On the wire every
    call is a stream of messages each way."""
    call = channel.stream_stream(
        f"/feddp.v1.{rpc}", request_serializer=bytes, response_deserializer=bytes
    )
    try:
        for _ in call(iter([b""]), timeout=20):
            pass
    except grpc.RpcError as error:
        return from_rpc(error).reason
    return ""


@pytest.mark.parametrize("rpc", every_rpc())
def test_a_role_may_call_what_the_table_gives_it_and_nothing_else(
    by_role: dict[str, grpc.Channel], rpc: str
) -> None:
    """Each role against each rpc that there is: one that has no rule is nobody's."""
    refused = {role for role in ROLES if answer(by_role[role], rpc) == "ROLE_REQUIRED"}
    if rpc.startswith("Enrollment/"):
        # Only on the port where nobody has a certificate.
        assert {answer(by_role[role], rpc) for role in ROLES} == {"UNIMPLEMENTED"}
    else:
        assert refused == set(ROLES) - RULES[rpc]


def test_only_an_operator_says_who_is_in() -> None:
    """Every rpc about who is a user, and every one that changes a node, is an operator's alone."""
    for rpc in every_rpc():
        service, _, method = rpc.partition("/")
        if service == "Users" or (service == "Nodes" and not method.startswith(("List", "Get"))):
            assert RULES[rpc] == {"operator"}, rpc


@pytest.mark.parametrize(
    ("role", "rpc"),
    [
        ("engineer", "Users/InviteUser"),
        ("engineer", "Users/RevokeUser"),
        ("privacy-officer", "Users/InviteUser"),
        ("privacy-officer", "Jobs/SubmitJob"),
        ("privacy-officer", "Jobs/CancelJob"),
        ("privacy-officer", "Nodes/DisableNode"),
        ("operator", "Jobs/SubmitJob"),
        ("node", "Users/ListUsers"),
    ],
)
def test_who_may_not_do_what(by_role: dict[str, grpc.Channel], role: str, rpc: str) -> None:
    """What the table must never say, whatever else it says."""
    assert answer(by_role[role], rpc) == "ROLE_REQUIRED"
