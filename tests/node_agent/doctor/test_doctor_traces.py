"""`feddp agent doctor` on the hospital's trace collector: a real one, and each way it can fail."""

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from certs.authority import Authority
from certs.enrolment import new_key, private_pem
from certs.spiffe import SpiffeId
from node_agent.doctor.report import Check
from node_agent.doctor.traces import check_traces
from node_agent.folder.tracing_config import TracingConfig
from protos import otlp
from tests.node_agent.doctor.test_doctor import Site, site
from tests.node_agent.proxies import closed_port
from tests.otlp_receiver import Receiver, receiver

__all__ = ["site"]

HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No header and no proxy of this machine."""
    for name in (HEADERS, "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def examined(endpoint: str, root: Path, ca_file: str = "") -> Check:
    """The one line."""
    return check_traces(TracingConfig(endpoint=endpoint, ca_file=ca_file), root)


@contextlib.contextmanager
def secured(root: Path, name: str, hosts: list[str]) -> Iterator[Receiver]:
    """A collector with a certificate for some names; its authority is NAME.pem in the folder."""
    authority = Authority.create(root / name, "test.example", datetime.now(UTC))
    key = new_key()
    issued = authority.issue(
        key.public_key(),
        SpiffeId("test.example", "coordinator"),
        now=datetime.now(UTC),
        lifetime=timedelta(days=1),
        dns_names=hosts,
    )
    (root / f"{name}.pem").write_bytes(authority.trust_bundle)
    credentials = grpc.ssl_server_credentials([(private_pem(key), issued.chain_pem)])
    with receiver(credentials, "localhost:0") as made:
        yield made


class _Token(grpc.ServerInterceptor):
    """Lets in who has the token."""

    def intercept_service(self, continuation, details):  # type: ignore[no-untyped-def]
        if ("authorization", "Bearer word") in details.invocation_metadata:
            return continuation(details)

        def refuse(_request: object, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")

        return grpc.unary_unary_rpc_method_handler(refuse)


@contextlib.contextmanager
def grpc_server(interceptor: grpc.ServerInterceptor | None, *, collects: bool) -> Iterator[int]:
    """The port of a server of gRPC, which takes spans or not."""
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

    interceptors = () if interceptor is None else (interceptor,)
    server = grpc.server(ThreadPoolExecutor(1), interceptors=interceptors)
    if collects:
        pb_grpc.add_TraceServiceServicer_to_server(Receiver(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def test_a_collector_that_takes_spans_is_found_and_gets_none(tmp_path: Path) -> None:
    """With TLS by its own authority, and without TLS; without `tracing` nothing is asked."""
    assert check_traces(TracingConfig(), tmp_path).result == "skipped"
    with receiver() as plain, secured(tmp_path, "ca", ["localhost"]) as tls:
        found = examined(f"http://{plain.address}", tmp_path)
        assert (found.name, found.result) == ("traces", "ok"), found
        found = examined(f"https://{tls.address}", tmp_path, "ca.pem")
        assert found.result == "ok", found
        assert (plain.spans, tls.spans) == ([], [])


def test_a_name_and_a_port_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    """As the checks of the coordinator say it, of the collector."""
    found = examined("https://no-such-host.invalid:4317", tmp_path)
    assert found.result == "failed"
    assert "the collector's name no-such-host.invalid" in found.found
    with closed_port() as port:
        found = examined(f"http://127.0.0.1:{port}", tmp_path)
    assert found.result == "failed"
    assert f"the collector's port 127.0.0.1:{port} cannot be reached" in found.found


def test_a_certificate_that_does_not_hold_is_told_with_whom_to_trust(tmp_path: Path) -> None:
    """Of another authority, of another name, by the usual authorities; and a file that is not
    there."""
    with (
        secured(tmp_path, "ca", ["localhost"]) as one,
        secured(tmp_path, "other", ["elsewhere.example"]) as other,
    ):
        for address, ca_file, said in (
            (one.address, "other.pem", "does not hold by `ca_file`"),
            (one.address, "", "does not hold by the usual authorities"),
            (other.address, "other.pem", "not valid for 'localhost'"),
            (one.address, "none.pem", "none.pem cannot be read"),
        ):
            found = examined(f"https://{address}", tmp_path, ca_file)
            assert (found.result, said in found.found) == ("failed", True), found


def test_a_port_that_speaks_something_else_is_told(tmp_path: Path) -> None:
    """No TLS where https was said; gRPC that takes no spans; a port that says nothing."""
    with grpc_server(None, collects=False) as port:
        found = examined(f"https://127.0.0.1:{port}", tmp_path)
        assert (found.result, "does not speak TLS" in found.found) == ("failed", True), found
        found = examined(f"http://127.0.0.1:{port}", tmp_path)
        assert (found.result, "(UNIMPLEMENTED)" in found.found) == ("failed", True), found
        assert "4317" in found.do


def test_a_mute_port_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and never answers: after the time of an export, not after ever."""
    monkeypatch.setattr(otlp, "EXPORT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        found = examined(f"http://127.0.0.1:{mute.getsockname()[1]}", tmp_path)
    assert (found.result, "(DEADLINE_EXCEEDED)" in found.found) == ("failed", True), found


def test_a_collector_that_wants_a_token_gets_it_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the agent's own spans do; without it here the service may still have it: a warning. The
    token is in no line."""
    with grpc_server(_Token(), collects=True) as port:
        endpoint = f"http://127.0.0.1:{port}"
        found = examined(endpoint, tmp_path)
        assert (found.result, HEADERS in found.found) == ("warning", True), found
        monkeypatch.setenv(HEADERS, "authorization=Bearer%20wrong")
        found = examined(endpoint, tmp_path)
        assert (found.result, "refuses" in found.found) == ("failed", True), found
        assert "wrong" not in found.found + found.do
        monkeypatch.setenv(HEADERS, "authorization=Bearer%20word")
        assert examined(endpoint, tmp_path).result == "ok"


def test_the_doctor_has_a_line_for_it(site: Site) -> None:
    """From agent.yaml, and a relative file from the agent's folder; skipped without `tracing`."""
    assert site.examined()["traces"].result == "skipped"
    with secured(site.folder.root, "ca", ["localhost"]) as tls:
        site.write(tracing={"endpoint": f"https://{tls.address}", "ca_file": "ca.pem"})
        assert site.examined()["traces"].result == "ok"
