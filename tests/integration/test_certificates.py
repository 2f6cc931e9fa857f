"""What becomes of certificates over the years: copies, thefts, ends, other authorities."""

import asyncio
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import yaml
from cryptography import x509

from certs.authority import NODE_LIFETIME, Authority
from certs.credentials import channel_credentials
from certs.enrolment import key_digest, make_csr, new_key, private_pem
from certs.issued import bundle_roots
from certs.keyfiles import key_in
from certs.proofs import prove_recovery
from certs.spiffe import SpiffeId
from coordinator import server_certificate
from coordinator.config.config import load_config
from coordinator.store import certificates, people
from coordinator.store.database import Database
from feddp.profile import Profile
from feddp.renewing import standing
from node_agent.joining.enrol import join
from node_agent.joining.identity import Identity, load_identity
from protos.errors import WrongPhase
from protos.feddp.v1 import enrollment_pb2 as enrolling
from protos.feddp.v1 import (
    enrollment_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    witness_pb2,
    witness_pb2_grpc,
)
from tests.integration.federation import Federation, cli_json, null_job, run_cli, wait_for
from tests.integration.raw_node import RawNode, reason_of
from tests.integration.test_renewal import heads, named, renewed, set_life

SESSIONS = 500
CUT_S_MAX = 5.0
REFUSED_S_MAX = 1.0


def root(federation: Federation) -> str:
    return str(federation.installation.folder)


def enrolment_address(federation: Federation) -> str:
    settings = yaml.safe_load(federation.installation.config.read_text())
    return f"127.0.0.1:{settings['server']['enrollment_port']}"


def restart(federation: Federation) -> None:
    federation.kill("coordinator")
    federation.start("coordinator")


def reloaded(federation: Federation, name: str) -> None:
    """The coordinator reads its registry again, after a test has changed it."""
    with federation.client() as client:
        client.disable(name)
        client.enable(name)


def test_a_revoked_node_is_seen_as_such_and_no_enabling_brings_it_back(
    coordinator: Federation,
) -> None:
    """`node list` and `show` say so; a release of what is not quarantined is refused as well."""
    node = RawNode.enrolled(coordinator, "alpha")
    where = ("--dir", root(coordinator))
    assert run_cli("node", "release", "alpha", *where)[0] == 1
    assert run_cli("node", "revoke", "alpha", *where)[0] == 0
    with reason_of() as reasons:
        heads(node)
    assert reasons == ["CERTIFICATE_REVOKED"]
    assert cli_json("node", "show", "alpha", *where)["status"] == "revoked"
    assert [one["status"] for one in cli_json("node", "list", *where)["nodes"]] == ["revoked"]
    with coordinator.client() as client:
        for _ in range(2):
            with pytest.raises(WrongPhase, match="feddp node token alpha"):
                client.enable("alpha")
        assert client.disable("alpha").status == "disabled"
        assert client.enable("alpha").status == "revoked", "only then may it have a token"
    assert run_cli("node", "token", "alpha", *where)[0] == 0


# Copies and thefts


@pytest.fixture
def copied(coordinator: Federation) -> tuple[RawNode, RawNode]:
    """A node's old certificate and its new one, which was in use long ago."""
    old = RawNode.enrolled(coordinator, "alpha")
    old.open()
    new = renewed(coordinator, old)
    new.open()
    with reason_of() as reasons:
        heads(old)  # on its way when the new one came into use: nobody's crime
    assert reasons == ["CERTIFICATE_SUPERSEDED"]
    with coordinator.client() as client:
        assert client.node("alpha").status == "enrolled"
    with coordinator.database() as database:
        database.execute("UPDATE certificates SET superseded_at = superseded_at - 100")
    reloaded(coordinator, "alpha")
    new = RawNode(coordinator.address, new.identity)
    new.open()
    return old, new


def test_an_old_certificate_shown_after_the_new_one_quarantines_the_node(
    coordinator: Federation, copied: tuple[RawNode, RawNode]
) -> None:
    """Neither gets on, also after a restart, until a person has looked; released, the new one does
    and the old one ends in quarantine again."""
    old, new = copied
    began_s = time.monotonic()
    with reason_of() as reasons:
        heads(old)
    assert reasons == ["CERTIFICATE_SUPERSEDED"]
    assert new.cut() == "NODE_QUARANTINED"
    assert time.monotonic() - began_s < CUT_S_MAX
    restart(coordinator)
    new = RawNode(coordinator.address, new.identity)
    with reason_of() as reasons:
        heads(new)
    assert reasons == ["NODE_QUARANTINED"]
    assert "QUARANTINED" in run_cli("node", "list", "--dir", root(coordinator))[1]
    shown = run_cli("node", "show", "alpha", "--dir", root(coordinator))[1]
    assert "generation 1 was shown" in shown
    assert "feddp node release alpha" in shown
    assert run_cli("node", "release", "alpha", "--dir", root(coordinator))[0] == 0
    heads(new)
    with reason_of():
        heads(RawNode(coordinator.address, old.identity))
    with coordinator.client() as client:
        wait_for("it is shut out again", lambda: bool(client.node("alpha").quarantine), 5)


def test_a_quarantined_node_joins_again_with_the_stewards_word_only(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Whoever has a copy has both its keys: no proof counts until the steward was heard."""
    coordinator.add_node("alpha")
    folder = coordinator.agent("alpha")
    with coordinator.database() as database:
        database.execute("INSERT INTO quarantines VALUES ('alpha', 'a test says so')")
    restart(coordinator)
    with coordinator.client() as client:
        token = client.create_token("alpha").token
        with reason_of() as reasons:
            join(token, folder, again=True)
        assert reasons == ["JOIN_PENDING"]
        waiting = client.node("alpha")
        assert waiting.waiting_for_steward
        client.approve("alpha", key=waiting.waiting_key, steward="Dr. Meier")
        join(token, folder, again=True)
        assert client.node("alpha").status == "enrolled"
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")


def test_a_second_agent_with_one_identity_is_refused(coordinator: Federation) -> None:
    """While the first is alive; the first goes on, people are told, and a reconnect of the same
    agent is none."""
    coordinator.add_node("alpha")
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    copy = coordinator.folder / "copy"
    shutil.copytree(coordinator.agent("alpha"), copy)
    stolen = RawNode(coordinator.address, load_identity(copy / "identity"))
    with reason_of() as reasons:
        stolen.open()
    assert reasons == ["SESSION_TAKEN"]
    shutil.move(copy, coordinator.agent("copy"))
    coordinator.start("copy")
    wait_for("it says so", lambda: bool(named(coordinator, "copy", "identity_in_use")), 30)
    said = run_cli("agent", "status", "--dir", str(coordinator.agent("copy")))
    assert (said[0], "SESSION_TAKEN" in said[1]) == (1, True), said
    with coordinator.client() as client:
        assert client.node("alpha").connected
        assert client.node("alpha").second_agent_at > time.time() - 60
    assert not named(coordinator, "alpha", "session_ended")
    assert named(coordinator, "coordinator", "second_agent_refused")
    # The first one's process dies: its connection breaks, and the other is let in.
    coordinator.kill("alpha")
    wait_for("the other is", lambda: bool(named(coordinator, "copy", "connected")), 30)
    said = run_cli("agent", "status", "--dir", str(coordinator.agent("copy")))
    assert "SESSION_TAKEN" not in said[1], said


def test_a_restarted_agent_is_not_a_second_one(coordinator: Federation) -> None:
    """It connects at once, whether it was killed or its machine vanished without a word."""
    coordinator.add_node("alpha")
    coordinator.start("alpha")
    # Its own word: the coordinator knows that it is connected a moment before the agent does.
    wait_for("it is there", lambda: len(named(coordinator, "alpha", "connected")) == 1)
    coordinator.kill("alpha")
    began_s = time.monotonic()
    coordinator.start("alpha")
    wait_for("it is back", lambda: len(named(coordinator, "alpha", "connected")) == 2, 30)
    assert time.monotonic() - began_s < 12
    assert not named(coordinator, "alpha", "identity_in_use")


def test_a_revoked_node_is_out_within_a_second_and_stays_out(coordinator: Federation) -> None:
    """Calls at once, the live stream within 5 s, and after a restart; a new token lets it join only
    with the steward's word."""
    node = RawNode.enrolled(coordinator, "alpha")
    node.open()
    began_s = time.monotonic()
    assert run_cli("node", "revoke", "alpha", "--dir", root(coordinator))[0] == 0
    with reason_of() as reasons:
        heads(node)
    assert reasons == ["CERTIFICATE_REVOKED"]
    assert node.cut() == "CERTIFICATE_REVOKED"
    assert time.monotonic() - began_s < CUT_S_MAX + 5  # the command's own start included
    restart(coordinator)
    with reason_of() as reasons:
        heads(RawNode(coordinator.address, node.identity))
    assert reasons == ["CERTIFICATE_REVOKED"]


def test_five_hundred_agents_and_one_that_is_revoked(tmp_path: Path) -> None:
    """It is refused within 1 s and its stream cut within 5 s; the others stay."""
    federation = Federation(tmp_path)
    people_of = _many(federation, SESSIONS)
    try:
        federation.start("coordinator")
        refused_s, cut_s, others = asyncio.run(_revoke_one(federation, people_of))
    finally:
        federation.stop()
    assert refused_s < REFUSED_S_MAX
    assert cut_s < CUT_S_MAX
    assert others == SESSIONS - 1


def _many(federation: Federation, count: int) -> list[tuple[bytes, bytes]]:
    """(chain, key) of so many nodes that have joined."""
    folder = federation.installation.folder
    authority = Authority.load(folder / "pki")
    found, issued_all = [], []
    for number in range(count):
        key, now = new_key(), datetime.now(UTC)
        identity = SpiffeId(authority.trust_domain, "node", f"n{number}")
        issued = authority.issue(key.public_key(), identity, now=now, lifetime=NODE_LIFETIME)
        issued_all.append((issued, key_digest(key.public_key())))
        found.append((issued.chain_pem, private_pem(key)))
    database = Database(f"sqlite:///{folder / 'coordinator.db'}")

    def work(connection):  # type: ignore[no-untyped-def]
        for number, (issued, digest) in enumerate(issued_all):
            when = {"spiffe_id": "-", "now_s": 0.0, "expires_at_s": 1.0}
            people.invite(connection, f"n{number}", "edge", f"s{number}", **when)
            people.enrol(connection, f"s{number}", f"n{number}", bytes(32), b"chain")
            certificates.add(connection, issued, digest)

    database.write_now(work)
    database.close()
    return found


async def _revoke_one(
    federation: Federation, nodes: list[tuple[bytes, bytes]]
) -> tuple[float, float, int]:
    """(seconds until refused, until cut, how many others are still connected)."""
    bundle = (federation.installation.profile / "bundle.pem").read_bytes()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels, streams = [], []
    hello = federation_pb2.AgentMessage(hello=federation_pb2.Hello(protocol_version=1))
    for chain, key in nodes:
        credentials = channel_credentials(bundle, key, chain)
        channel = grpc.aio.secure_channel(federation.address, credentials, options=options)
        channels.append(channel)
        stream = federation_pb2_grpc.FederationStub(channel).Session()
        await stream.write(hello)
        assert (await stream.read()).HasField("welcome")
        streams.append(stream)
    victim = len(nodes) // 2

    def revoke() -> None:
        with federation.client() as client:
            client.revoke(f"n{victim}")

    revoking = asyncio.create_task(asyncio.to_thread(revoke))
    began_s = time.monotonic()
    await revoking
    stub = witness_pb2_grpc.WitnessStub(channels[victim])
    try:
        await stub.ReadHeads(witness_pb2.ReadHeadsRequest(), timeout=10)
        raise AssertionError("a revoked node was let in")
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    refused_s = time.monotonic() - began_s
    try:
        while (await streams[victim].read()) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    cut_s = time.monotonic() - began_s
    others = sum(not stream.done() for stream in streams)
    for channel in channels:
        await channel.close()
    return refused_s, cut_s, others


# Ends


def test_an_open_stream_of_a_person_ends_with_its_certificate(coordinator: Federation) -> None:
    """Not only the agents' sessions: a watch that is open is looked at again while it lasts."""
    for name in ("alpha", "beta", "gamma"):
        RawNode.enrolled(coordinator, name).open()
    job_id = coordinator.submit(null_job(1))
    profile = Profile.load(coordinator.installation.profile)
    mine = channel_credentials(profile.bundle, profile.key, profile.chain)
    leaf_end = (
        "UPDATE certificates SET not_after = strftime('%s') + 2 WHERE spiffe_id LIKE '%user%'"
    )
    with grpc.secure_channel(profile.address, mine) as channel:
        request = jobs_pb2.WatchJobRequest(job_id=job_id)
        watch = jobs_pb2_grpc.JobsStub(channel).WatchJob(request, timeout=60)
        next(watch)
        with coordinator.database() as database:
            database.execute(leaf_end)
        _reload_by_recount(coordinator)
        began_s = time.monotonic()
        with reason_of() as reasons:
            for _ in watch:
                pass
        assert reasons == ["CERTIFICATE_EXPIRED"]
        assert time.monotonic() - began_s < 2 + CUT_S_MAX + 5
        with reason_of() as reasons:
            next(jobs_pb2_grpc.JobsStub(channel).WatchJob(request, timeout=60))
        assert reasons == ["CERTIFICATE_EXPIRED"], "on the same connection, that was resumed"


def _reload_by_recount(federation: Federation) -> None:
    """A certificate more in the registry: the coordinator reads all of them again."""
    assert run_cli("coordinator", "reissue", "--dir", root(federation))[0] == 0


def recover(
    federation: Federation,
    identity: Identity,
    csr: bytes,
    *,
    nonce: bytes | None = None,
    signs: bytes | None = None,
) -> enrolling.RecoverResponse:
    """One recovery by hand."""
    trusted = channel_credentials(identity.bundle)
    with grpc.secure_channel(enrolment_address(federation), trusted) as channel:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        given = nonce or stub.Challenge(enrolling.ChallengeRequest(), timeout=10).nonce
        proof = prove_recovery(key_in(signs or identity.key), given, csr)
        request = enrolling.RecoverRequest(
            certificate=identity.chain, nonce=given, csr=csr, proof=proof
        )
        return stub.Recover(request, timeout=10)


def age(federation: Federation, days: float) -> None:
    """The nodes' certificates ended so long ago."""
    end_s = time.time() - days * 86_400
    with federation.database() as database:
        database.execute(
            "UPDATE certificates SET not_after = ? WHERE spiffe_id LIKE '%/node/%'", (end_s,)
        )


def test_an_agent_that_was_off_past_its_end_comes_back_by_itself(tmp_path: Path) -> None:
    """With its old key it signs a nonce on the enrolment port; the next generation connects."""
    federation = Federation(tmp_path)
    set_life(federation, 20)
    try:
        federation.start("coordinator")
        federation.add_node("alpha")
        before = load_identity(federation.agent("alpha") / "identity")
        left_s = before.expires_at.timestamp() - time.time()
        wait_for("its certificate has ended", lambda: datetime.now(UTC) > before.expires_at, 40)
        assert left_s < 20
        federation.start("alpha")
        federation.wait_for_nodes("alpha")
        after = load_identity(federation.agent("alpha") / "identity")
        assert after.spiffe_id == before.spiffe_id
        assert after.key != before.key
        assert after.expires_at > before.expires_at
        (said,) = named(federation, "coordinator", "certificate_recovered")
        assert (said["node"], said["generation"]) == ("alpha", 2)
    finally:
        federation.stop()


def test_a_recovery_needs_the_very_key_a_fresh_nonce_and_the_time(coordinator: Federation) -> None:
    """Each refusal has its own reason, and none of them leaves a certificate."""
    node = RawNode.enrolled(coordinator, "alpha")
    identity = node.identity
    csr = make_csr(new_key())
    age(coordinator, 29)
    for how, reason in (
        ({"signs": private_pem(new_key())}, "RECOVERY_PROOF_INVALID"),
        ({"nonce": bytes(56)}, "CHALLENGE_EXPIRED"),
        ({"nonce": b"short"}, "CHALLENGE_EXPIRED"),
    ):
        with reason_of() as reasons:
            recover(coordinator, identity, csr, **how)  # type: ignore[arg-type]
        assert reasons == [reason]
    stranger = Authority.create(coordinator.folder / "other", "test.example")
    key, name = new_key(), identity.spiffe_id
    forged = stranger.issue(
        key.public_key(), name, now=datetime.now(UTC), lifetime=timedelta(hours=1)
    )
    posing = dataclasses.replace(identity, chain=forged.chain_pem, key=private_pem(key))
    with reason_of() as reasons:
        recover(coordinator, posing, csr)
    assert reasons == ["CERTIFICATE_UNKNOWN"]
    with coordinator.client() as client:
        client.disable("alpha")
        with reason_of() as reasons:
            recover(coordinator, identity, csr)
        assert reasons == ["NODE_DISABLED"]
        client.enable("alpha")
    age(coordinator, 31)
    with reason_of() as reasons:
        recover(coordinator, identity, csr)
    assert reasons == ["RECOVERY_TOO_LATE"]
    age(coordinator, 29)
    first = recover(coordinator, identity, csr)
    assert first.generation == 2
    assert recover(coordinator, identity, csr) == first, "its reply was lost"


def test_recovery_can_be_switched_off(tmp_path: Path) -> None:
    """`security.recovery_days: 0`; the refusal says to join again."""
    federation = Federation(tmp_path)
    settings = yaml.safe_load(federation.installation.config.read_text())
    settings["security"] = {"recovery_days": 0}
    federation.installation.config.write_text(yaml.safe_dump(settings))
    try:
        federation.start("coordinator")
        node = RawNode.enrolled(federation, "alpha")
        with reason_of() as reasons:
            recover(federation, node.identity, make_csr(new_key()))
        assert reasons == ["RECOVERY_DISABLED"]
        with reason_of() as reasons:
            recover(federation, node.identity, make_csr(new_key()), nonce=bytes(56))
        assert reasons == ["RECOVERY_DISABLED"]
    finally:
        federation.stop()


# Other authorities and the server's own


@pytest.fixture
def short_lived(tmp_path: Path) -> Iterator[Federation]:
    """An agent whose certificates are valid for 20 s."""
    federation = Federation(tmp_path)
    set_life(federation, 20)
    try:
        federation.start("coordinator")
        federation.add_node("alpha")
        federation.start("alpha")
        federation.wait_for_nodes("alpha")
        yield federation
    finally:
        federation.stop()


def test_one_authority_follows_another_while_everything_runs(short_lived: Federation) -> None:
    """Each step waits for who would be shut out; the agent's session stays up throughout, and at
    the end nobody trusts the former root."""
    federation = short_lived
    folder = federation.agent("alpha") / "identity"
    old_root = federation.installation.root_fingerprint
    lost: list[float] = []

    def behind() -> list[str]:
        with federation.client() as client:
            lost.extend(time.time() for one in client.nodes() if not one.connected)
        found = cli_json("coordinator", "ca-rollover", "status", "--dir", root(federation))
        return [one["identity"].rpartition("/")[2] for one in found["behind"]]

    def step(name: str) -> int:
        return run_cli("coordinator", "ca-rollover", name, "--dir", root(federation))[0]

    assert step("switch") == 1, "nothing was begun"
    assert step("begin") == 0
    assert step("begin") == 1
    assert sorted(behind()) == ["alpha", "operator"]
    assert step("switch") == 1, "they have not learned the new root"
    wait_for(
        "the coordinator tells of it",
        lambda: bool(named(federation, "coordinator", "authority_changed")),
        20,
    )
    assert run_cli("profile", "renew", "--dir", root(federation))[0] == 0
    wait_for("the agent has learned", lambda: behind() == [], 60)
    assert len(bundle_roots((folder / "bundle.pem").read_bytes())) == 2
    assert step("switch") == 0
    assert step("finish") == 1, "they show certificates of the former authority"
    wait_for(
        "the server shows the new one's",
        lambda: len(named(federation, "coordinator", "server_certificate_reloaded")) >= 2,
        20,
    )
    assert run_cli("profile", "renew", "--dir", root(federation))[0] == 0
    wait_for("the agent has followed", lambda: behind() == [], 60)
    assert step("finish") == 0
    wait_for(
        "the coordinator has heard",
        lambda: len(named(federation, "coordinator", "authority_changed")) == 3,
        20,
    )
    assert run_cli("profile", "renew", "--dir", root(federation))[0] == 0
    wait_for(
        "the agent trusts the new root alone",
        lambda: len(bundle_roots((folder / "bundle.pem").read_bytes())) == 1,
        60,
    )
    assert lost == []
    assert not named(federation, "alpha", "session_ended")
    shown = cli_json("profile", "show", "--dir", root(federation))
    assert len(shown["root_fingerprints"]) == 1
    assert shown["root_fingerprints"][0] != old_root
    pki = federation.installation.folder / "pki"
    assert not (pki / "issuing.key").exists()
    federation.add_node("beta")
    federation.start("beta")
    federation.wait_for_nodes("alpha", "beta")


def served(federation: Federation) -> x509.Certificate:
    """What the coordinator shows to a new connection, by a second TLS library."""
    import ssl

    host, port = enrolment_address(federation).split(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())


def test_the_servers_certificate_renews_and_reloads_without_a_restart(
    coordinator: Federation,
) -> None:
    """One that is due is replaced while the coordinator runs; files that do not belong together
    change nothing; a session that is open stays."""
    node = RawNode.enrolled(coordinator, "alpha")
    node.open()
    pki = coordinator.installation.folder / "pki"
    first = served(coordinator)
    authority = Authority.load(pki)
    # Files that do not fit: the present ones stay in use.
    fitting = (pki / "server.key").read_bytes()
    (pki / "server.key").write_bytes(private_pem(new_key()))
    wait_for(
        "it says so",
        lambda: bool(named(coordinator, "coordinator", "server_certificate_not_reloaded")),
        20,
    )
    assert served(coordinator) == first
    heads(RawNode(coordinator.address, node.identity))
    (pki / "server.key").write_bytes(fitting)
    # A certificate of which less than a third is left.
    long_ago = datetime.now(UTC) - timedelta(days=300)
    hosts = ["localhost"], ["127.0.0.1", "::1"]
    server_certificate.replace(pki, *server_certificate.issue(authority, *hosts, long_ago))
    said = "server_certificate_reloaded"
    wait_for("it is replaced", lambda: bool(named(coordinator, "coordinator", said)), 30)
    second = served(coordinator)
    assert second.not_valid_after_utc > datetime.now(UTC) + timedelta(days=360)
    names = second.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names == first.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    heads(node)
    heads(RawNode(coordinator.address, node.identity))
    with coordinator.client() as client:
        assert client.node("alpha").connected
    assert len(list(pki.glob("server*"))) == 2
    load_config(coordinator.installation.config, os.environ)


def test_a_person_is_warned_and_renews(coordinator: Federation) -> None:
    """In the last 30 days every command says so; one command replaces key and certificate, and the
    old pair is refused."""
    folder = coordinator.installation.profile
    old = Profile.load(folder)
    pki = Authority.load(coordinator.installation.folder / "pki")
    assert run_cli("node", "list", "--dir", root(coordinator))[2] == ""
    key, name = new_key(), SpiffeId("test.example", "user", "operator")
    soon = pki.issue(key.public_key(), name, now=datetime.now(UTC), lifetime=timedelta(days=9))
    database = Database(f"sqlite:///{coordinator.installation.folder / 'coordinator.db'}")
    database.write_now(lambda c: certificates.add(c, soon, key_digest(key.public_key())))
    database.close()
    (folder / "key.pem").write_bytes(private_pem(key))
    (folder / "chain.pem").write_bytes(soon.chain_pem)
    wait_for(
        "the coordinator knows it",
        lambda: run_cli("node", "list", "--dir", root(coordinator))[0] == 0,
        30,
    )
    warned = run_cli("node", "list", "--dir", root(coordinator))[2]
    assert "in 8 days; run `feddp profile renew`" in warned
    assert run_cli("node", "list", "--json", "--dir", root(coordinator))[2] == ""
    shown = cli_json("profile", "renew", "--dir", root(coordinator))
    assert shown["warning"] == ""
    assert {path.name for path in folder.iterdir()} == {
        "bundle.pem",
        "chain.pem",
        "key.pem",
        "orders.key",
        "orders.pub",
        "profile.yaml",
    }
    assert standing(Profile.load(folder)).expires_at > datetime.now(UTC) + timedelta(days=360)
    assert cli_json("node", "list", "--dir", root(coordinator)) == {"nodes": []}
    credentials = channel_credentials(old.bundle, old.key, old.chain)
    with grpc.secure_channel(old.address, credentials) as channel, reason_of() as reasons:
        jobs_pb2_grpc.JobsStub(channel).ListJobs(jobs_pb2.ListJobsRequest(), timeout=10)
    assert reasons == ["CERTIFICATE_SUPERSEDED"]


def test_an_ended_profile_is_given_another_on_the_coordinators_machine(
    coordinator: Federation,
) -> None:
    """`feddp coordinator reissue`, with the server running: it is known within 10 s."""
    folder = coordinator.installation.profile
    (folder / "key.pem").unlink()
    (folder / "chain.pem").unlink()
    done = run_cli("coordinator", "reissue", "--dir", root(coordinator), "--json")
    assert json.loads(done[1])["profile"] == str(folder)
    wait_for(
        "it is let in", lambda: run_cli("node", "list", "--dir", root(coordinator))[0] == 0, 20
    )
