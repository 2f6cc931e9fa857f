"""Real gRPC servers on this machine: who gets through TLS, and what the server learns of them."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs import peer
from certs.authority import NODE_LIFETIME, Authority, IssuedCertificate
from certs.credentials import (
    Peer,
    channel_credentials,
    enrolment_server_credentials,
    only_changes,
    peer_of,
    server_credentials,
)
from certs.enrolment import new_key, private_pem
from certs.spiffe import SpiffeId
from certs.tokens import JoinToken, new_secret
from protos.errors import Malformed, Unauthenticated

DOMAIN = "hospitals.example"
METHOD = "/test/WhoAmI"

Identity = tuple[IssuedCertificate, bytes]
NodeOf = Callable[[Authority, str], Identity]
CoordinatorOf = Callable[[Authority], Identity]
AuthContext = Mapping[str, Iterable[bytes]]


class WhoAmI(grpc.GenericRpcHandler):
    """Answers every call with the caller's identity, or with the reason for refusing it."""

    def __init__(self) -> None:
        self.seen: list[Peer | str] = []
        self.contexts: list[AuthContext] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self.answer)

    async def answer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.contexts.append(context.auth_context())
        try:
            caller = peer_of(context.auth_context(), DOMAIN)
        except Unauthenticated as error:
            self.seen.append(error.reason)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message)
        self.seen.append(caller)
        return str(caller.spiffe_id).encode()


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials) -> AsyncIterator[tuple[int, WhoAmI]]:
    """A server on a free port of the loopback address, and what it has seen."""
    handler = WhoAmI()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port, handler
    finally:
        await server.stop(None)


async def call(port: int, credentials: grpc.ChannelCredentials, host: str = "127.0.0.1") -> bytes:
    async with grpc.aio.secure_channel(f"{host}:{port}", credentials) as channel:
        reply: bytes = await channel.unary_unary(METHOD)(b"", timeout=10)
        return reply


async def failure(port: int, credentials: grpc.ChannelCredentials, host: str = "127.0.0.1") -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(port, credentials, host)
    return str(caught.value.code().name)


def server_of(authority: Authority, identity: Identity) -> grpc.ServerCredentials:
    return server_credentials(identity[0].chain_pem, identity[1], authority.trust_bundle)


def client_of(authority: Authority, identity: Identity) -> grpc.ChannelCredentials:
    return channel_credentials(authority.trust_bundle, identity[1], identity[0].chain_pem)


def test_server_learns_who_calls(
    authority: Authority, node_of: NodeOf, coordinator_of: CoordinatorOf
) -> None:
    """A node of this federation gets in, over TLS 1.3, as exactly the one its certificate names."""
    node = node_of(authority, "a")

    async def scenario() -> None:
        async with serving(server_of(authority, coordinator_of(authority))) as (port, handler):
            for host in ("127.0.0.1", "localhost"):
                reply = await call(port, client_of(authority, node), host)
                assert reply == b"spiffe://hospitals.example/node/a"
        issued = node[0]
        expected = Peer(issued.fingerprint, issued.spiffe_id, issued.not_after)
        assert handler.seen == [expected, expected]
        assert list(handler.contexts[0]["ssl_tls_version"]) == [b"TLSv1.3"]

    asyncio.run(scenario())


def test_certificate_of_another_authority_is_refused(
    authority: Authority,
    other_authority: Authority,
    node_of: NodeOf,
    coordinator_of: CoordinatorOf,
) -> None:
    """The same name under another root does not pass the handshake, in either direction."""
    stranger = node_of(other_authority, "a")
    stranger_chain, stranger_key = stranger[0].chain_pem, stranger[1]
    mine = node_of(authority, "a")

    async def scenario() -> None:
        async with serving(server_of(authority, coordinator_of(authority))) as (port, handler):
            trusting = channel_credentials(authority.trust_bundle, stranger_key, stranger_chain)
            assert await failure(port, trusting) == "UNAVAILABLE"
            assert await failure(port, client_of(other_authority, mine)) == "UNAVAILABLE"
        assert handler.seen == []

    asyncio.run(scenario())


def test_client_without_certificate_is_refused(
    authority: Authority, coordinator_of: CoordinatorOf
) -> None:
    """The coordinator's port does not speak to anybody who shows no certificate."""

    async def scenario() -> None:
        async with serving(server_of(authority, coordinator_of(authority))) as (port, handler):
            nobody = channel_credentials(authority.trust_bundle)
            assert await failure(port, nobody) == "UNAVAILABLE"
        assert handler.seen == []

    asyncio.run(scenario())


def test_expired_certificate_is_refused_in_the_handshake(
    authority: Authority, coordinator_of: CoordinatorOf
) -> None:
    """A certificate of last month does not open a new connection."""
    key = new_key()
    then = datetime.now(UTC) - timedelta(days=30)
    identity = SpiffeId(DOMAIN, "node", "a")
    old = authority.issue(key.public_key(), identity, now=then, lifetime=NODE_LIFETIME)

    async def scenario() -> None:
        async with serving(server_of(authority, coordinator_of(authority))) as (port, handler):
            client = client_of(authority, (old, private_pem(key)))
            assert await failure(port, client) == "UNAVAILABLE"
        assert handler.seen == []

    asyncio.run(scenario())


def test_node_cannot_pose_as_the_coordinator(authority: Authority, node_of: NodeOf) -> None:
    """A server that shows a node's certificate convinces no agent, though the root is right."""

    async def scenario() -> None:
        async with serving(server_of(authority, node_of(authority, "evil"))) as (port, handler):
            client = client_of(authority, node_of(authority, "a"))
            assert await failure(port, client) == "UNAVAILABLE"
        assert handler.seen == []

    asyncio.run(scenario())


def test_token_is_enough_to_verify_the_enrolment_port(
    authority: Authority, other_authority: Authority, coordinator_of: CoordinatorOf
) -> None:
    """A joining machine verifies the server by its token alone, and another server fails."""

    async def scenario() -> None:
        for actual, expected in ((authority, "UNAUTHENTICATED"), (other_authority, "UNAVAILABLE")):
            certificate, key = coordinator_of(actual)
            server = enrolment_server_credentials(certificate.chain_pem, key)
            async with serving(server) as (port, handler):
                text = JoinToken(f"127.0.0.1:{port}", new_secret(), authority.root_der).encode()
                token = JoinToken.parse(text)
                # The call arrives and our handler refuses it: on this port nobody has a name.
                assert await failure(port, channel_credentials(token.root_pem)) == expected
            assert handler.seen == (["IDENTITY_UNREADABLE"] if actual is authority else [])

    asyncio.run(scenario())


def http2_call(path: str) -> bytes:
    """A gRPC call with an empty message, spelled out in HTTP/2 frames (RFC 9113, RFC 7541)."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return (
            struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
        )

    headers = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\x00" + bytes((len(k),)) + k.encode() + bytes((len(v),)) + v.encode()
        for k, v in headers.items()
    )
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return preface + frame(4, 0, 0, b"") + frame(1, 4, 1, block) + frame(0, 1, 1, bytes(5))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_tls_1_2_is_refused_by_our_check(
    tmp_path: Path,
    authority: Authority,
    node_of: NodeOf,
    coordinator_of: CoordinatorOf,
    version: ssl.TLSVersion,
) -> None:
    """gRPC lets TLS 1.2 in; a good certificate over it is refused, and over TLS 1.3 it is not."""
    certificate, key = node_of(authority, "a")
    (tmp_path / "node.pem").write_bytes(certificate.chain_pem + key)
    context = ssl.create_default_context(cadata=authority.trust_bundle.decode())
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(tmp_path / "node.pem")
    context.set_alpn_protocols(["h2"])

    async def scenario() -> None:
        async with serving(server_of(authority, coordinator_of(authority))) as (port, handler):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )
            writer.write(http2_call(METHOD))
            async with asyncio.timeout(10):
                while not handler.seen:
                    assert await reader.read(4096)
            writer.close()
        if version is ssl.TLSVersion.TLSv1_2:
            assert handler.seen == ["TLS_VERSION"]
        else:
            (seen,) = handler.seen
            assert isinstance(seen, Peer)
            assert seen.fingerprint == certificate.fingerprint

    asyncio.run(scenario())


def certificate_with(names: list[x509.GeneralName] | None) -> bytes:
    """A self-signed leaf, PEM, with these names; None for no name extension at all."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def context_of(pem: bytes, version: bytes = b"TLSv1.3") -> AuthContext:
    """An auth context in the form that a live server gives (seen in the tests above)."""
    return {
        "transport_security_type": [b"ssl"],
        "x509_pem_cert": [pem],
        "ssl_tls_version": [version],
        "peer_spiffe_id": [b"spiffe://hospitals.example/node/a"],
    }


def refusal(context: AuthContext) -> str:
    with pytest.raises(Unauthenticated) as caught:
        peer_of(context, DOMAIN)
    return caught.value.reason


@pytest.mark.parametrize("version", [b"TLSv1.2", b"TLSv1", b"", b"TLSv1.3 "])
def test_other_tls_versions_are_refused(version: bytes) -> None:
    """Only the exact report of TLS 1.3 counts."""
    good = certificate_with([uri("spiffe://hospitals.example/node/a")])
    assert str(peer_of(context_of(good), DOMAIN).spiffe_id) == "spiffe://hospitals.example/node/a"
    assert refusal(context_of(good, version)) == "TLS_VERSION"


def test_connection_without_report_is_refused() -> None:
    """A plaintext connection reports nothing; nothing is not TLS 1.3."""
    assert refusal({}) == "TLS_VERSION"
    good = certificate_with([uri("spiffe://hospitals.example/node/a")])
    assert refusal({"x509_pem_cert": [good]}) == "TLS_VERSION"
    twice = {"x509_pem_cert": [good], "ssl_tls_version": [b"TLSv1.3", b"TLSv1.2"]}
    assert refusal(twice) == "TLS_VERSION"


@pytest.mark.parametrize(
    "names",
    [
        None,
        [x509.DNSName("localhost")],
        [uri("spiffe://hospitals.example/node/a"), uri("spiffe://hospitals.example/node/b")],
        [uri("spiffe://hospitals.example/node/a"), uri("https://hospitals.example")],
        [uri("spiffe://other.example/node/a")],
        [uri("spiffe://hospitals.example")],
        [uri("spiffe://hospitals.example/node/a/b")],
        [uri("https://hospitals.example/node/a")],
    ],
)
def test_leaf_that_names_nobody_here_is_refused(names: list[x509.GeneralName] | None) -> None:
    """Exactly one URI name, of our trust domain and of a known form, or no identity."""
    assert refusal(context_of(certificate_with(names))) == "IDENTITY_UNREADABLE"


def test_missing_double_or_unreadable_leaf_is_refused() -> None:
    """The identity comes from the one leaf; what else the connection reports does not count."""
    good = certificate_with([uri("spiffe://hospitals.example/node/a")])
    for leaves in ([], [good, good], [b""], [b"rubbish"], [good[:200]]):
        assert refusal({**context_of(good), "x509_pem_cert": leaves}) == "IDENTITY_UNREADABLE"


def test_leaf_is_read_once_and_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rpc asks, so a leaf is read once; a flood of certificates does not fill the memory."""
    good = certificate_with([uri("spiffe://hospitals.example/node/a")])
    first = peer_of(context_of(good), DOMAIN)
    monkeypatch.setattr(x509, "load_pem_x509_certificate", None)
    assert peer_of(context_of(good), DOMAIN) is first
    assert peer._peer_of_leaf.cache_info().maxsize == peer.LEAVES_CACHED_MAX


def test_cached_leaf_is_not_another_domains_peer() -> None:
    """A leaf that one trust domain knows is still refused for another."""
    good = certificate_with([uri("spiffe://hospitals.example/node/a")])
    peer_of(context_of(good), DOMAIN)
    with pytest.raises(Unauthenticated):
        peer_of(context_of(good), "other.example")


def test_incomplete_credentials_are_named(
    authority: Authority, node_of: NodeOf, other_authority: Authority
) -> None:
    """A forgotten or mixed-up argument is an error here, never a weaker connection."""
    (a, a_key), (_, b_key) = node_of(authority, "a"), node_of(authority, "b")
    bundle, chain = authority.trust_bundle, a.chain_pem
    attempts: list[Callable[[], object]] = [
        lambda: channel_credentials(b""),
        lambda: channel_credentials(b"rubbish"),
        lambda: channel_credentials(bundle, a_key),
        lambda: channel_credentials(bundle, chain=chain),
        lambda: channel_credentials(bundle, b_key, chain),
        lambda: channel_credentials(bundle, b"rubbish", chain),
        lambda: server_credentials(chain, a_key, b""),
        lambda: server_credentials(chain, b_key, bundle),
        lambda: server_credentials(b"", a_key, bundle),
        lambda: enrolment_server_credentials(chain, b_key),
        lambda: enrolment_server_credentials(chain, b""),
    ]
    for attempt in attempts:
        with pytest.raises(Malformed) as caught:
            attempt()
        assert caught.value.reason == "CREDENTIALS_INVALID"
        assert "BEGIN" not in caught.value.message


def test_grpc_is_given_a_certificate_only_when_it_is_another() -> None:
    """Given the same one at each handshake, it replaces what others are made from, and dies."""
    old, new = [1], [1]
    held = [old]
    changed = only_changes(lambda: held[0], old)
    assert [changed(), changed()] == [None, None]
    held[0] = new
    assert changed() is new
    assert [changed(), changed()] == [None, None]
    held[0] = old
    assert changed() is old
