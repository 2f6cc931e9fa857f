"""Headers in which a gateway says who called, over real gRPC with a gateway's own certificate."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from coordinator.gateway import certificate as gateway_certificate
from coordinator.gateway.shown import HEADER, forwarded_fingerprint
from node_agent.joining.identity import load_identity
from tests.chaos import books
from tests.integration.federation import NODES, cli_json, null_job, wait_for
from tests.integration.gateway import (
    HOST,
    PAST_THE_GATE,
    GatewayFederation,
    fingerprint_of,
    reason_as_gateway,
    session_refusal,
)

REFUSED = "FORWARDED_IDENTITY"


@pytest.fixture
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GatewayFederation]:
    """A coordinator that knows a gateway; the parameter says whether a second proxy is behind."""
    federation = GatewayFederation(tmp_path, "terminate")
    try:
        settings = yaml.safe_load(federation.installation.config.read_text())
        settings["server"]["gateway_sidecar"] = request.param
        federation.installation.config.write_text(yaml.safe_dump(settings))
        federation.start("coordinator")
        yield federation
    finally:
        federation.close()


ONE = pytest.mark.parametrize("gateway", [False], indirect=True, ids=["one"])
TWO = pytest.mark.parametrize("gateway", [True], indirect=True, ids=["two"])
BY = "By=spiffe://test.example/gateway;"


def enrol(gateway: GatewayFederation, *names: str) -> list[str]:
    """Let nodes join through Envoy, unopened; their certificates' fingerprints."""
    gateway.start_envoy()
    gateway.proxy.__enter__()
    for name in names:
        gateway.add_node(name)
    return [fingerprint_of(gateway, name) for name in names]


@ONE
def test_one_element_of_one_fingerprint_is_taken_and_nothing_else(
    gateway: GatewayFederation,
) -> None:
    """Missing, doubled, appended, injected, in capitals, of other lengths: nobody is let in."""
    alpha, beta = enrol(gateway, "alpha", "beta")
    node = "URI=spiffe://test.example/node"
    for taken in (f"Hash={alpha}", f'{BY}Hash={alpha};Subject="CN=alpha";{node}/alpha'):
        assert reason_as_gateway(gateway, taken) == PAST_THE_GATE, taken
    for refused in (
        (),
        ("",),
        (f"Hash={alpha}", f"Hash={beta}"),
        (f"Hash={alpha}", f"Hash={alpha}"),
        (f"Hash={alpha},Hash={beta}",),
        (f"{BY}Hash={alpha},{BY}Hash={fingerprint_of(gateway, 'gateway')}",),
        (f"{BY}Hash={alpha};{node}/alpha,{BY}Hash={beta}",),
        (f"{node}/alpha;Hash={alpha}",),
        (f"Hash={alpha.upper()}",),
        (f"hash={alpha}",),
        (f" Hash={alpha}0",),
        (f"Hash={alpha[:-1]}",),
        (f'Hash="{alpha}"',),
        (f"By=spiffe://evil.example/node/x;Hash={alpha}",),
    ):
        assert reason_as_gateway(gateway, *refused) == REFUSED, refused
    assert reason_as_gateway(gateway, f"Hash={'0' * 64}") == "CERTIFICATE_UNKNOWN"
    # A gateway does not let itself in.
    own = fingerprint_of(gateway, "gateway")
    assert reason_as_gateway(gateway, f"Hash={own}") == "USER_UNKNOWN"


@ONE
def test_envoy_writes_its_own_uri_before_the_fingerprint(gateway: GatewayFederation) -> None:
    """Why `By=` of a gateway is taken before `Hash=`: Envoy writes it wherever its own certificate
    has a URI, which each of this authority has, and no setting leaves it out. A header that must
    begin with `Hash=` would come from no gateway at all."""
    written = gateway.folder / "written"

    def noted(manager: Any, config: Any) -> None:
        manager["access_log"] = [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3"
                    ".FileAccessLog",
                    "path": str(written),
                    "log_format": {
                        "text_format_source": {"inline_string": "%REQ(X-FORWARDED-CLIENT-CERT)%\n"}
                    },
                },
            }
        ]

    gateway.start_envoy(noted)
    gateway.proxy.__enter__()
    gateway.add_node("alpha")
    identity = load_identity(gateway.agent("alpha") / "identity")
    way = (("grpc.http_proxy", gateway.proxy.url()),)
    with grpc.secure_channel(f"{HOST}:443", identity.credentials(), way) as channel:
        assert session_refusal(channel, [(HEADER, "Hash=" + "0" * 64)]) == PAST_THE_GATE
    gateway.stop_envoy()
    [line] = written.read_text().splitlines()
    alpha = fingerprint_of(gateway, "alpha")
    assert re.fullmatch(
        rf'{BY}Hash={alpha};Subject="[^"]*";URI=spiffe://test.example/node/alpha', line
    )
    assert forwarded_fingerprint([(HEADER, line)]) == alpha


@TWO
def test_two_elements_of_which_the_last_names_the_gateway_are_taken_and_nothing_else(
    gateway: GatewayFederation,
) -> None:
    """One, three, turned round, a node in the gateway's place: nobody is let in."""
    alpha, beta = enrol(gateway, "alpha", "beta")
    own = fingerprint_of(gateway, "gateway")
    node = "URI=spiffe://test.example/node"
    for taken in (
        f"Hash={alpha},Hash={own}",
        f'{BY}Hash={alpha};Subject="CN=alpha";{node}/alpha,{BY}Hash={own};Subject="CN=gateway"',
    ):
        assert reason_as_gateway(gateway, taken) == PAST_THE_GATE, taken
    for refused in (
        (),
        (f"Hash={alpha}",),
        (f"Hash={alpha}", f"Hash={own}"),
        (f"Hash={beta},Hash={alpha},Hash={own}",),
        (f"Hash={own},Hash={alpha}",),
        # A node that reaches the second proxy itself, and says that it is another.
        (f"{BY}Hash={alpha},{BY}Hash={beta};{node}/beta",),
        (f"Hash={alpha},Hash={'0' * 64}",),
        (f"Hash={alpha.upper()},Hash={own}",),
        (f"Hash={alpha},Hash={own.upper()}",),
        (f"Hash={alpha},Hash={own},",),
        (f"Hash={alpha};{node}/a;Hash={beta},Hash={own}",),
        (f"{node}/alpha,Hash={own}",),
    ):
        assert reason_as_gateway(gateway, *refused) == REFUSED, refused
    assert reason_as_gateway(gateway, f"Hash={'0' * 64},Hash={own}") == "CERTIFICATE_UNKNOWN"


@TWO
def test_a_job_goes_through_a_gateway_and_a_second_proxy(gateway: GatewayFederation) -> None:
    """Two real Envoys, each of which ends TLS; who knows one element only lets nobody in."""
    gateway.start_sidecar()
    gateway.start_envoy()
    gateway.proxy.__enter__()
    for name in NODES[:3]:
        gateway.add_node(name)
        gateway.start(name)
    gateway.wait_for_nodes(*NODES[:3])
    job = gateway.wait_for_end(gateway.submit(null_job(rounds=2, parameters=1_000_000)))
    assert job.status == "completed", job.message
    books.check_job(gateway, job)
    books.check_ledgers(gateway)


@ONE
def test_a_gateway_whose_key_was_copied_is_shut_out_while_it_serves(
    gateway: GatewayFederation,
) -> None:
    """A session that began through it ends within seconds; the next one of the same name serves."""
    (alpha,) = enrol(gateway, "alpha")
    gateway.start("alpha")
    gateway.wait_for_nodes("alpha")
    copied, own = gateway.folder / "gateway", gateway.folder / "next"
    gateway_certificate.issue(gateway.installation.folder, [HOST], own)
    words = ("coordinator", "gateway", "--dir", str(gateway.installation.folder), "--revoke")
    said = cli_json(*words, "--keep", str(own))
    assert said == {"revoked": 1, "kept": [str(own)]}
    wait_for("the session ends", lambda: not connected(gateway, "alpha"), 15)
    assert reason_as_gateway(gateway, f"Hash={alpha}") == "GATEWAY_REVOKED"
    assert "GATEWAY_REVOKED" in gateway.log("alpha")
    kept = revocations_kept(gateway)
    assert fingerprint_of(gateway, "gateway") in kept
    assert alpha not in kept
    for name in ("gateway.crt", "gateway.key"):
        (own / name).replace(copied / name)
    gateway.stop_envoy()
    gateway.start_envoy()
    gateway.wait_for_nodes("alpha")


def connected(gateway: GatewayFederation, name: str) -> bool:
    """As an operator sees it, who needs no gateway."""
    with gateway.client() as client:
        return client.node(name).connected


def revocations_kept(gateway: GatewayFederation) -> str:
    """What a restore would replay."""
    return (gateway.installation.folder / "revocations.jsonl").read_text()
