"""Certificates renew themselves under way: real processes, real TLS, lives of seconds."""

import dataclasses
import json
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.enrolment import make_csr, new_key, private_pem
from node_agent.joining.identity import Identity, load_identity
from protos.feddp.v1 import (
    renewal_pb2,
    renewal_pb2_grpc,
    witness_pb2,
    witness_pb2_grpc,
)
from tests.integration.federation import NODES, Federation, cli_json, job_file, wait_for
from tests.integration.raw_node import RawNode, reason_of

LIFE_S = 20
THREE = NODES[:3]


def set_life(federation: Federation, life_s: int) -> None:
    """What the coordinator will issue once it starts."""
    settings = yaml.safe_load(federation.installation.config.read_text())
    settings["security"] = {"node_certificate_life_s": life_s}
    federation.installation.config.write_text(yaml.safe_dump(settings))


@pytest.fixture
def short_lived(tmp_path: Path) -> Iterator[Federation]:
    """Three agents whose certificates are valid for 20 s."""
    federation = Federation(tmp_path)
    set_life(federation, LIFE_S)
    try:
        federation.start("coordinator")
        for name in THREE:
            federation.add_node(name, tick_s=4.0)
            federation.start(name)
        federation.wait_for_nodes(*THREE)
        yield federation
    finally:
        federation.stop()


def events(federation: Federation, process: str) -> list[dict[str, Any]]:
    """What a process has logged."""
    lines = federation.log(process).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def named(federation: Federation, process: str, event: str) -> list[dict[str, Any]]:
    return [one for one in events(federation, process) if one["event"] == event]


def test_a_renewed_node_outlives_its_first_certificate_with_its_session_and_its_work(
    short_lived: Federation,
) -> None:
    """Rounds go on over the renewals and past the old ends: no stream breaks, each attempt is
    booked once and none is tried again."""
    federation = short_lived
    folders = {name: federation.agent(name) / "identity" for name in THREE}
    first = {name: load_identity(folder) for name, folder in folders.items()}
    job_id = federation.submit(job_file(federation={"rounds": 6, "local_steps": 2}))
    end_s = max(one.expires_at.timestamp() for one in first.values())
    lost: list[str] = []

    def past_every_old_end() -> bool:
        with federation.client() as client:
            lost.extend(one.name for one in client.nodes() if not one.connected)
        return time.time() > end_s + 3

    wait_for("the first certificates have ended", past_every_old_end)
    assert lost == []
    job = federation.wait_for_end(job_id)
    assert job.status == "completed", job.message
    booked = Counter(
        (one.statement.node, one.statement.round, one.statement.kind)
        for one in federation.entries()
    )
    kinds = ("reserve", "post")
    assert booked == {(n, r, kind): 1 for n in THREE for r in range(1, 7) for kind in kinds}
    for name in THREE:
        now = load_identity(folders[name])
        assert now.spiffe_id == first[name].spiffe_id
        assert now.key != first[name].key
        assert now.expires_at > first[name].expires_at
        assert stat.S_IMODE((folders[name] / "node.key").stat().st_mode) == 0o600
        assert {path.name for path in folders[name].iterdir()} == {
            "node.key",
            "node.crt",
            "bundle.pem",
            "ledger.key",
        }
        assert named(federation, name, "certificate_renewed")
        assert named(federation, name, "session_moved")
        for broken in ("session_ended", "coordinator_unreachable", "node_shut_out"):
            assert not named(federation, name, broken)
    status = cli_json("agent", "status", "--dir", str(federation.agent("alpha")))
    assert status["connected"]
    # Another renewal may be due just now.
    assert status["certificate_renews_at"] < status["certificate_expires_at"]
    assert time.time() < status["certificate_expires_at"]
    assert not named(federation, "coordinator", "superseded_certificate_shown")


def ask(node: RawNode, csr: bytes) -> renewal_pb2.RenewResponse:
    """One call of Renew, with the node's certificate."""
    request = renewal_pb2.RenewRequest(csr=csr)
    return renewal_pb2_grpc.RenewalStub(node.channel).Renew(request, timeout=10)


def renewed(federation: Federation, node: RawNode) -> RawNode:
    """The same node with a newer certificate, on a connection of its own."""
    key = new_key()
    chain = ask(node, make_csr(key)).certificate_chain
    return RawNode(federation.address, replaced(node.identity, chain, key))


def replaced(identity: Identity, chain: bytes, key: ec.EllipticCurvePrivateKey) -> Identity:
    return dataclasses.replace(identity, chain=chain, key=private_pem(key))


def heads(node: RawNode) -> None:
    """Any call that a node may make."""
    witness_pb2_grpc.WitnessStub(node.channel).ReadHeads(witness_pb2.ReadHeadsRequest(), timeout=10)


def test_the_old_certificate_is_refused_once_the_new_one_is_in_use(
    coordinator: Federation,
) -> None:
    """Until then both are let in; afterwards, also after a restart, the old one is refused as what
    it is, and the coordinator's log says so."""
    old = RawNode.enrolled(coordinator, "alpha")
    old.open()
    new = renewed(coordinator, old)
    for one in (old, new, old):
        heads(one)
    new.open()
    heads(new)
    for _ in range(2):
        with reason_of() as reasons:
            heads(old)
        assert reasons == ["CERTIFICATE_SUPERSEDED"]
        with reason_of() as reasons:
            ask(old, make_csr(new_key()))
        assert reasons == ["CERTIFICATE_SUPERSEDED"]
        with reason_of() as reasons:
            old.open()
        assert reasons == ["CERTIFICATE_SUPERSEDED"]
        with coordinator.client() as client:
            assert client.node("alpha").connected
        coordinator.kill("coordinator")
        coordinator.start("coordinator")
        new = RawNode(coordinator.address, new.identity)
        new.open()
        old = RawNode(coordinator.address, old.identity)
    shown = named(coordinator, "coordinator", "superseded_certificate_shown")
    assert {(one["identity"], one["generation"], one["level"]) for one in shown} == {
        ("spiffe://test.example/node/alpha", 1, "warning")
    }
    assert len(shown) == 2, "said once a minute and process, however often it is shown"


def test_a_lost_reply_is_given_again_and_no_old_key_is_certified(coordinator: Federation) -> None:
    """The same key gets the same bytes; the key in use gets nothing."""
    node = RawNode.enrolled(coordinator, "alpha")
    csr = make_csr(new_key())
    first = ask(node, csr)
    assert first.generation == 2
    assert ask(node, csr) == first
    leaf = x509.load_pem_x509_certificates(first.certificate_chain)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [one.value for one in names] == ["spiffe://test.example/node/alpha"]
    own = serialization.load_pem_private_key(node.identity.key, None)
    with reason_of() as reasons:
        ask(node, make_csr(own))
    assert reasons == ["CSR_KEY_USED"]


@pytest.mark.parametrize(
    "names",
    [
        ["spiffe://test.example/node/beta"],
        ["spiffe://test.example/node/alpha", "spiffe://test.example/node/beta"],
        ["spiffe://test.example/node/alpha,URI:spiffe://test.example/node/beta"],
        ["spiffe://test.example/coordinator"],
    ],
)
def test_a_request_for_another_name_gets_nothing(coordinator: Federation, names: list[str]) -> None:
    """Its own reason, no certificate, and the one in use goes on."""
    node = RawNode.enrolled(coordinator, "alpha")
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(one) for one in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(san, critical=False).sign(new_key(), hashes.SHA256())
    with reason_of() as reasons:
        ask(node, request.public_bytes(serialization.Encoding.DER))
    assert reasons == ["CSR_NAMES"]
    heads(node)
    with coordinator.database() as database:
        found = "SELECT count(*) FROM certificates WHERE spiffe_id LIKE '%/node/%'"
        assert database.execute(found).fetchone() == (1,)


def test_only_a_node_that_is_let_in_renews(coordinator: Federation) -> None:
    """A disabled node does not; and what is no request is said to be none."""
    node = RawNode.enrolled(coordinator, "alpha")
    with reason_of() as reasons:
        ask(node, b"no request")
    assert reasons == ["CSR_INVALID"]
    with coordinator.client() as client:
        client.disable("alpha")
    with reason_of() as reasons:
        ask(node, make_csr(new_key()))
    assert reasons == ["NODE_DISABLED"]


def test_a_node_that_does_not_renew_is_cut_at_its_certificates_end(tmp_path: Path) -> None:
    """Its live stream, its open connection, and a renewal that comes too late are all refused."""
    federation = Federation(tmp_path)
    set_life(federation, 10)
    try:
        federation.start("coordinator")
        node = RawNode.enrolled(federation, "alpha")
        node.open()
        end_s = node.identity.expires_at.timestamp()
        too_late = threading.Timer(30, node.channel.close)
        too_late.start()
        with reason_of() as reasons:
            node.next("drain")  # never comes
        too_late.cancel()
        assert reasons == ["CERTIFICATE_EXPIRED"]
        assert end_s < time.time() < end_s + 5
        for late in (lambda: heads(node), lambda: ask(node, make_csr(new_key()))):
            with reason_of() as reasons:
                late()
            assert reasons == ["CERTIFICATE_EXPIRED"]
    finally:
        federation.stop()
