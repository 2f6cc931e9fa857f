"""What happens to a job when the gateway in front dies, drains, or changes its certificate."""

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from coordinator.gateway import certificate as gateway_certificate
from protos.feddp.v1.jobs_pb2 import Job
from tests.chaos import books
from tests.integration.federation import NODES, null_job, wait_for
from tests.integration.gateway import (
    HOST,
    PAST_THE_GATE,
    GatewayFederation,
    Mode,
    fingerprint_of,
    reason_as_gateway,
)

NAMES = NODES[:3]


@pytest.fixture(params=["passthrough", "terminate"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GatewayFederation]:
    """A coordinator behind Envoy, and three connected nodes; the parameter is Envoy's mode."""
    mode: Mode = request.param
    federation = GatewayFederation(tmp_path, mode)
    try:
        federation.open()
        for name in NAMES:
            federation.add_node(name)
            federation.start(name)
        federation.wait_for_nodes(*NAMES)
        yield federation
    finally:
        federation.close()


def in_a_round(gateway: GatewayFederation, job_id: str, at_least: int) -> None:
    """Wait until so many rounds are done and the job goes on."""

    def under_way() -> bool:
        with gateway.client() as client:
            job: Job = client.job(job_id)
        return job.rounds_done >= at_least and job.ended_at == 0

    wait_for(f"{at_least} rounds are done", under_way)


def ends_well(gateway: GatewayFederation, job_id: str) -> None:
    """The job completes, and no update was lost, trained again or charged twice."""
    job = gateway.wait_for_end(job_id)
    assert job.status == "completed", job.message
    books.check_job(gateway, job)
    books.check_ledgers(gateway)


def test_a_gateway_that_is_killed_in_a_round_costs_nothing(gateway: GatewayFederation) -> None:
    """kill -9 of Envoy, twice, while 12 MB updates are on their way."""
    job_id = gateway.submit(null_job(rounds=8, parameters=3_000_000))
    for rounds in (1, 4):
        in_a_round(gateway, job_id, rounds)
        gateway.kill_envoy()
        gateway.start_envoy()
    ends_well(gateway, job_id)


def test_a_gateway_that_drains_and_ends_costs_nothing(gateway: GatewayFederation) -> None:
    """Listeners are drained as a rolling update does it: no new connection, then the end."""
    job_id = gateway.submit(null_job(rounds=8, parameters=1_000_000))
    in_a_round(gateway, job_id, 1)
    assert gateway.admin("drain_listeners?graceful", post=True) == "OK\n"
    gateway.stop_envoy()
    gateway.start_envoy()
    ends_well(gateway, job_id)


@pytest.mark.parametrize("gateway", ["terminate"], indirect=True)
def test_a_renewed_certificate_is_taken_while_everything_runs(gateway: GatewayFederation) -> None:
    """The coordinator knows it before Envoy shows it; then Envoy shows it on both sides."""
    out, before = gateway.folder / "gateway", shown(gateway)
    job_id = gateway.submit(null_job(rounds=60, parameters=1_000_000))
    in_a_round(gateway, job_id, 1)
    due = datetime.now(UTC) + timedelta(days=300)
    ends_at, is_new = gateway_certificate.renew(gateway.installation.folder, out, now=due)
    after = x509.load_pem_x509_certificates((out / "gateway.crt").read_bytes())[0]
    assert (is_new, after.not_valid_after_utc) == (True, ends_at)
    assert reason_as_gateway(gateway, f"Hash={fingerprint_of(gateway, 'alpha')}") == PAST_THE_GATE
    wait_for("Envoy shows it", lambda: shown(gateway) == after.fingerprint(hashes.SHA256()), 30)
    assert before != after.fingerprint(hashes.SHA256())
    ends_well(gateway, job_id)
    # Who still showed the old one to the coordinator would be nobody now.
    with gateway.database() as database:
        removed = database.execute(
            "DELETE FROM certificates WHERE fingerprint = ?", (before.hex(),)
        )
        assert removed.rowcount == 1
    gateway.terminate("coordinator")
    gateway.start("coordinator")
    gateway.wait_for_nodes(*NAMES)


def shown(gateway: GatewayFederation) -> bytes:
    """SHA-256 of the certificate that Envoy shows to who dials it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", gateway.port), 10) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as greeted,
    ):
        der = greeted.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256())
