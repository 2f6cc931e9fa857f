"""What becomes of certificates: acts of people and of time, scenarios as in `tests.chaos.acts`."""

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import yaml

from certs import authority_state, rollover
from certs.authority import Authority
from certs.credentials import channel_credentials
from certs.enrolment import make_csr, new_key
from certs.keyfiles import key_in
from certs.proofs import prove_recovery
from coordinator import server_certificate
from feddp import renewing
from feddp.client import Client
from feddp.joining import join as become
from feddp.profile import Profile
from node_agent.joining.enrol import join
from node_agent.joining.identity import Identity, load_identity
from protos.errors import FeddpError, NotFound, WrongPhase
from protos.feddp.v1 import enrollment_pb2, enrollment_pb2_grpc, witness_pb2, witness_pb2_grpc
from tests.chaos.acts import Jobs, renewal
from tests.chaos.lives import RESUME_S_MAX, WatchedFederation


def approval(federation: WatchedFederation) -> Jobs:
    """One machine that waits is let in, another is not."""
    for decide, reason in ((Client.approve, ""), (Client.reject, "JOIN_REJECTED")):
        folder = _folder(federation)
        made = federation.again(lambda c, f=folder: c.create_token(f.name, approval=True))
        assert _joined(made.token, folder) == "JOIN_PENDING"

        def once(client: Client, name: str = folder.name, decide: object = decide) -> None:
            with contextlib.suppress(NotFound):  # decided already: the reply was lost
                decide(client, name)  # type: ignore[operator]

        federation.again(once)
        assert _joined(made.token, folder) == reason
        shutil.rmtree(folder)
    return {}


def quarantine(federation: WatchedFederation) -> Jobs:
    """A copy of a node's folder shows its old certificate; people settle it, and then give up."""
    with _spare(federation) as (name, identity):
        with federation.database() as database:
            database.execute(
                "UPDATE certificates SET superseded = 1, superseded_at = 1 WHERE spiffe_id = ?",
                (str(identity.spiffe_id),),
            )
        for change in (Client.disable, Client.enable):  # after which the coordinator knows it
            federation.again(lambda client, change=change: change(client, name))

        def shown(client: Client) -> None:
            with grpc.secure_channel(federation.address, identity.credentials()) as channel:
                stub = witness_pb2_grpc.WitnessStub(channel)
                with contextlib.suppress(grpc.RpcError):
                    stub.ReadHeads(witness_pb2.ReadHeadsRequest(), timeout=5)
            assert client.node(name).quarantine, "it is shown again until it has been seen"

        federation.again(shown)

        def release(client: Client) -> None:
            with contextlib.suppress(WrongPhase):  # the reply was lost: it is released
                client.release(name)
            assert not client.node(name).quarantine

        federation.again(release)
        federation.again(lambda client: client.revoke(name))
    return {}


def recovery(federation: WatchedFederation) -> Jobs:
    """A node comes back after its certificate has ended."""
    with _spare(federation) as (_, identity):
        with federation.database() as database:
            database.execute(
                "UPDATE certificates SET not_after = ? WHERE spiffe_id = ?",
                (time.time() - 1000, str(identity.spiffe_id)),
            )
        port = federation.address.partition(":")[0], _enrolment_port(federation)
        csr = make_csr(new_key())

        def recover(_: Client) -> int:
            trusted = channel_credentials(identity.bundle)
            with grpc.secure_channel("{}:{}".format(*port), trusted) as channel:
                stub = enrollment_pb2_grpc.EnrollmentStub(channel)
                nonce = stub.Challenge(enrollment_pb2.ChallengeRequest(), timeout=5).nonce
                proof = prove_recovery(key_in(identity.key), nonce, csr)
                request = enrollment_pb2.RecoverRequest(
                    certificate=identity.chain, nonce=nonce, csr=csr, proof=proof
                )
                return int(stub.Recover(request, timeout=5).generation)

        assert federation.again(recover) == federation.again(recover) == 2
    return {}


def person(federation: WatchedFederation) -> Jobs:
    """The operator's certificate is renewed."""
    folder = federation.installation.profile
    federation.again(lambda _: renewing.renew(Profile.load(folder)))
    federation.again(lambda client: client.nodes())  # with it; and what came before is over
    return {}


def colleague(federation: WatchedFederation) -> Jobs:
    """Somebody is invited, joins and looks around; they are shut out, and invited again."""
    name = f"colleague-{uuid.uuid4().hex[:6]}"
    folder = federation.folder / name
    for _ in range(2):
        made = federation.again(lambda client: client.invite_user(name, ["engineer"]))
        deadline_s = time.monotonic() + RESUME_S_MAX
        while True:
            try:
                become(made.token, folder)
                break
            except FeddpError as error:
                if error.reason != "UNREACHABLE" or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)

        def looks(_: Client) -> None:
            with Client(Profile.load(folder)) as own:
                own.jobs()

        federation.again(looks)
        users = federation.again(lambda client: client.users())
        assert {one.name: one.status for one in users}[name] == "joined"
        assert federation.again(lambda client: client.revoke_user(name)).status == "revoked"
        shutil.rmtree(folder)
    return {}


def authority(federation: WatchedFederation) -> Jobs:
    """The coordinator starts with a certificate that is due, and with a root more to tell of, or
    one less; a node learns it."""
    pki = federation.installation.folder / "pki"
    federation.send_away("coordinator")
    if authority_state.read_state(pki).phase == "settled":
        rollover.begin(pki, "test.example")
    else:
        (
            pki / authority_state.STATE_FILE
        ).unlink()  # nobody shows a certificate of the next one yet
    long_ago, hosts = datetime.now(UTC) - timedelta(days=300), (["localhost"], ["127.0.0.1"])
    made = server_certificate.issue(Authority.load(pki), *hosts, long_ago)
    server_certificate.replace(pki, *made)
    federation.start("coordinator")
    return renewal(federation)


def _folder(federation: WatchedFederation) -> Path:
    return federation.agent(f"spare-{uuid.uuid4().hex[:6]}")


@contextlib.contextmanager
def _spare(federation: WatchedFederation) -> Iterator[tuple[str, Identity]]:
    """A node that has joined, for as long as it is needed."""
    folder = _folder(federation)
    token = federation.again(lambda client: client.create_token(folder.name)).token
    assert _joined(token, folder) == ""
    yield folder.name, load_identity(folder / "identity")
    shutil.rmtree(folder)


def _joined(token: str, folder: Path) -> str:
    """The reason that a join ends with, once the coordinator is there to say it."""
    deadline_s = time.monotonic() + RESUME_S_MAX
    while True:
        try:
            join(token, folder)
            return ""
        except FeddpError as error:
            if error.reason != "UNREACHABLE" or time.monotonic() > deadline_s:
                return error.reason
            time.sleep(0.05)


def _enrolment_port(federation: WatchedFederation) -> int:
    settings = yaml.safe_load(federation.installation.config.read_text())
    return int(settings["server"]["enrollment_port"])
