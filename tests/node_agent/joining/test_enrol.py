"""Joining: over real TLS that trusts the token's root alone; whole, or nothing, or resumable."""

import json
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from certs.authority import NODE_LIFETIME, Authority
from certs.credentials import enrolment_server_credentials
from certs.enrolment import check_ledger_key, new_key, public_key_of_csr
from certs.spiffe import SpiffeId
from certs.tokens import JoinToken, new_secret
from feddp.cli.app import app
from node_agent.connection.proxy import ProxyConfig
from node_agent.folder.config import Folder, load_config
from node_agent.joining.enrol import join
from node_agent.joining.identity import load_identity
from node_agent.ledger.copies import export
from node_agent.policy.steward import Steward
from node_agent.status import status
from protos.errors import (
    Conflict,
    FeddpError,
    Malformed,
    NotAllowed,
    NotFound,
    Unauthenticated,
    Unavailable,
    WrongPhase,
)
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc
from protos.status import DETAILS_KEY, details
from tests.node_agent.agent_federation import TRUST_DOMAIN, machine_certificate
from tests.node_agent.proxies import ConnectProxy, closed_port
from tests.node_agent.samples import NODE


class FakeEnrolment(enrollment_pb2_grpc.EnrollmentServicer):
    """Certifies whoever asks, unless told otherwise.

    Attributes:
        signs: the authority that certifies; not always the one that the token names.
        lose_answers: so many answers get lost.
        ahead: of this machine's clock, the coordinator's.
        changes: fields of the answer that are told wrongly.
    """

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.signs = authority
        self.kind: Any = "node"
        self.refusal: FeddpError | None = None
        self.lose_answers = 0
        self.ahead = timedelta(0)
        self.swap_key = False
        self.changes: dict[str, Any] = {}
        self.csrs: list[bytes] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(self, self._server)
        chain, key = machine_certificate(authority)
        credentials = enrolment_server_credentials(chain, key)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.stop(None).wait()

    def token(self, port: int = 0) -> str:
        """A token for this coordinator."""
        address = f"127.0.0.1:{port or self.port}"
        return JoinToken(address, new_secret(), self.authority.root_der).encode()

    def Join(self, request: Any, context: Any) -> Any:  # noqa: N802
        check_ledger_key(request.ledger_public_key, request.csr, request.ledger_key_proof)
        self.csrs.append(request.csr)
        if self.refusal is not None:
            context.set_trailing_metadata(((DETAILS_KEY, details(self.refusal)),))
            context.abort(grpc.StatusCode[self.refusal.code], self.refusal.message)
        if self.lose_answers:
            self.lose_answers -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer got lost")
        key = new_key().public_key() if self.swap_key else public_key_of_csr(request.csr)
        name = SpiffeId(TRUST_DOMAIN, self.kind, NODE)
        now = datetime.now(UTC) + self.ahead
        issued = self.signs.issue(key, name, now=now, lifetime=NODE_LIFETIME)
        fields = {
            "certificate_chain": issued.chain_pem,
            "trust_bundle": self.authority.trust_bundle,
            "spiffe_id": str(name),
            "node": NODE,
            "node_class": "hpc",
            "coordinator_address": "127.0.0.1:8443",
        }
        return pb.JoinResponse(**{**fields, **self.changes})


@pytest.fixture
def enrolment(tmp_path: Path) -> Iterator[FakeEnrolment]:
    """A coordinator's enrolment port on this machine."""
    server = FakeEnrolment(Authority.create(tmp_path / "ca", TRUST_DOMAIN))
    yield server
    server.stop()


def test_a_join_makes_a_folder_that_an_agent_can_run_in(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """Identity, configuration and the steward's files; keys for their owner only."""
    root = tmp_path / "site" / "agent"
    result = join(enrolment.token(), root)
    folder = Folder(root)
    assert (result.node, result.node_class, result.policy_written) == (NODE, "hpc", True)
    assert load_config(folder).coordinator == "127.0.0.1:8443"
    identity = load_identity(folder.identity)
    assert str(identity.spiffe_id) == f"spiffe://{TRUST_DOMAIN}/node/{NODE}"
    assert identity.bundle == enrolment.authority.trust_bundle
    identity.credentials()
    for name in ("node.key", "ledger.key"):
        assert stat.S_IMODE((folder.identity / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.identity.stat().st_mode) == 0o700


def test_a_fresh_agent_allows_nothing(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """The steward's files are there to be filled in, and valid as they are."""
    join(enrolment.token(), tmp_path / "agent")
    rules = Steward(Folder(tmp_path / "agent")).rules()
    assert (rules.policy.accounts, rules.policy.allow, rules.data_sets) == ([], [], ())


def test_the_stewards_files_are_never_written_over(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """A policy that was laid out before the join stays as it is."""
    root = tmp_path / "agent"
    root.mkdir()
    (root / "policy.yaml").write_text("accounts: []  # mine\n")
    assert not join(enrolment.token(), root).policy_written
    assert (root / "policy.yaml").read_text() == "accounts: []  # mine\n"


def test_a_folder_joins_once(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """The second join is refused before it asks anybody, and the identity stays."""
    join(enrolment.token(), tmp_path / "agent")
    before = (tmp_path / "agent/identity/node.crt").read_bytes()
    with pytest.raises(Conflict) as caught:
        join(enrolment.token(), tmp_path / "agent")
    assert caught.value.reason == "ALREADY_JOINED"
    assert len(enrolment.csrs) == 1
    assert (tmp_path / "agent/identity/node.crt").read_bytes() == before


@pytest.mark.parametrize("reason", ["TOKEN_USED", "TOKEN_EXPIRED", "TOKEN_INVALID"])
def test_a_refused_join_leaves_nothing(
    enrolment: FakeEnrolment, tmp_path: Path, reason: str
) -> None:
    """The coordinator says no: not even an empty folder stays."""
    enrolment.refusal = Unauthenticated(reason, "no")
    with pytest.raises(Unauthenticated) as caught:
        join(enrolment.token(), tmp_path / "site/agent")
    assert caught.value.reason == reason
    assert not (tmp_path / "site").exists()


def test_a_refused_join_leaves_what_was_there(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """A folder and a policy that the steward made are not ours to remove."""
    enrolment.refusal = Unauthenticated("TOKEN_USED", "no")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/policy.yaml").write_text("accounts: []")
    with pytest.raises(Unauthenticated):
        join(enrolment.token(), tmp_path / "agent")
    assert [one.name for one in (tmp_path / "agent").iterdir()] == ["policy.yaml"]


def test_a_join_that_waits_is_seen_by_whoever_comes_back(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """Every command of the folder says for whom it waits, and with which key, until it is over."""
    folder = Folder(tmp_path / "agent")
    said = "the coordinator's operator must let this machine in as alpha; its key is 0123-4567"
    enrolment.refusal = WrongPhase("JOIN_PENDING", f"{said}\x1b[2J", retry_after_s=2.0)
    token = enrolment.token()
    with pytest.raises(WrongPhase) as caught:
        join(token, folder.root)
    assert "its key is 0123-4567" in caught.value.message
    assert "the same command with the same token goes on from here" in caught.value.message
    for use in (lambda: load_config(folder), lambda: status(folder.root)):
        with pytest.raises(NotFound) as seen:
            use()
        assert seen.value.reason == "NOT_JOINED"
        assert said in seen.value.message
        assert JoinToken.parse(token).address in seen.value.message
        assert "\x1b" not in seen.value.message
        assert "goes on from here" in seen.value.message
    enrolment.refusal = Unauthenticated("TOKEN_EXPIRED", "another token was not good")
    with pytest.raises(Unauthenticated):
        join(enrolment.token(), folder.root)
    with pytest.raises(NotFound) as seen:
        load_config(folder)
    assert said in seen.value.message  # that one waits all the same
    enrolment.refusal = None
    join(token, folder.root)
    assert load_config(folder).node == NODE
    assert not (folder.identity / "waiting.json").exists()


def test_a_join_that_was_rejected_waits_no_more(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """Nor does a note of another hand's that cannot be read."""
    folder, token = Folder(tmp_path / "agent"), enrolment.token()
    enrolment.refusal = WrongPhase("JOIN_PENDING", "it waits", retry_after_s=2.0)
    with pytest.raises(WrongPhase):
        join(token, folder.root)
    enrolment.refusal = NotAllowed("JOIN_REJECTED", "the operator has rejected it")
    with pytest.raises(NotAllowed):
        join(token, folder.root)
    for text in (None, "[" * 5000, "[]", '{"since_s": "x"}', '{"since_s": 1e400}'):
        if text is not None:
            (folder.identity / "waiting.json").write_text(text)
        with pytest.raises(NotFound) as caught:
            load_config(folder)
        assert "holds no agent; join with" in caught.value.message


def test_a_lost_answer_is_asked_for_again_with_the_same_keys(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """The token may be redeemed by now, for these keys and no others."""
    token = enrolment.token()
    enrolment.lose_answers = 1
    with pytest.raises(Unavailable) as caught:
        join(token, tmp_path / "agent")
    assert caught.value.reason == "UNREACHABLE"
    ledger_key = (tmp_path / "agent/identity/ledger.key").read_bytes()
    join(token, tmp_path / "agent")
    first, second = (public_key_of_csr(csr) for csr in enrolment.csrs)
    assert first == second
    assert (tmp_path / "agent/identity/ledger.key").read_bytes() == ledger_key


def test_an_unreachable_coordinator_is_named_and_nothing_stays(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """Host and port stand in the error."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(Unavailable) as caught:
            join(enrolment.token(port), tmp_path / "agent", connect_timeout_s=0.3)
    assert caught.value.reason == "UNREACHABLE"
    assert f"127.0.0.1:{port}" in caught.value.message
    assert not (tmp_path / "agent").exists()


def test_a_coordinator_of_another_root_never_sees_the_secret(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """The token pins the root: someone else at that address is not spoken to."""
    other = Authority.create(tmp_path / "other", TRUST_DOMAIN)
    token = JoinToken(f"127.0.0.1:{enrolment.port}", new_secret(), other.root_der).encode()
    with pytest.raises(Unavailable) as caught:
        join(token, tmp_path / "agent", connect_timeout_s=0.5)
    assert enrolment.csrs == []
    # What came is known to be another's: it is said, and not left to a second command.
    text = caught.value.message
    assert "another's certificate came instead of the coordinator's" in text
    assert JoinToken.parse(token).fingerprint in text
    assert "the token is another coordinator's" in text


def test_a_port_where_nothing_listens_is_said_when_joining(tmp_path: Path) -> None:
    """Where the way ends is looked at, not only that it does."""
    root = Authority.create(tmp_path / "ca", TRUST_DOMAIN).root_der
    with closed_port() as port:
        token = JoinToken(f"127.0.0.1:{port}", new_secret(), root).encode()
        with pytest.raises(Unavailable) as caught:
            join(token, tmp_path / "agent", connect_timeout_s=0.3)
    assert "refuses: nothing listens there" in caught.value.message
    assert "--firewall-request" in caught.value.message
    assert "agent.yaml" not in caught.value.message


@pytest.mark.parametrize(
    ("ahead", "found"),
    [
        (timedelta(days=-2), "this machine's clock is 2 days ahead of the coordinator's"),
        (timedelta(days=2), "this machine's clock is 2 days behind the coordinator's"),
        (timedelta(minutes=3), "this machine's clock is 3 minutes behind the coordinator's"),
        (timedelta(minutes=-15), ""),  # the answer to a join that is repeated
        (timedelta(0), ""),
    ],
)
def test_the_certificate_that_a_join_brings_tells_of_the_clock(
    enrolment: FakeEnrolment, tmp_path: Path, ahead: timedelta, found: str
) -> None:
    """It begins an hour before the coordinator's clock at its issue."""
    enrolment.ahead = ahead
    said = join(enrolment.token(), tmp_path / "agent").clock_off
    assert said.startswith(found)
    assert bool(said) is bool(found)


@pytest.mark.parametrize("fault", ["root", "key", "kind", "name", "class", "chain"])
def test_an_answer_that_does_not_hold_is_not_written(
    enrolment: FakeEnrolment, tmp_path: Path, fault: str
) -> None:
    """Another root, key, kind or name than promised: no certificate and no configuration."""
    match fault:
        case "root":
            enrolment.signs = Authority.create(tmp_path / "other", TRUST_DOMAIN)
        case "key":
            enrolment.swap_key = True
        case "kind":
            enrolment.kind = "user"
        case "name":
            enrolment.changes = {"node": "beta"}
        case "class":
            enrolment.changes = {"node_class": "laptop"}
        case "chain":
            enrolment.changes = {"certificate_chain": b"-"}
    with pytest.raises(Malformed) as caught:
        join(enrolment.token(), tmp_path / "agent")
    assert caught.value.reason == "JOIN_ANSWER_INVALID"
    assert not (tmp_path / "agent/identity/node.crt").exists()
    assert not (tmp_path / "agent/agent.yaml").exists()


def test_a_broken_token_touches_nothing(tmp_path: Path) -> None:
    """It is refused before a folder is made, and no part of it is told."""
    with pytest.raises(Malformed) as caught:
        join("feddp1.c2VjcmV0", tmp_path / "agent")
    assert caught.value.reason == "TOKEN_INVALID"
    assert "c2VjcmV0" not in json.dumps(caught.value.message)
    assert not (tmp_path / "agent").exists()


@pytest.mark.parametrize("credentials", [False, True])
def test_a_proxy_that_wants_credentials_is_named_when_joining(
    enrolment: FakeEnrolment, tmp_path: Path, credentials: bool
) -> None:
    """407, what to do, and how the doctor is asked about the same way; no agent.yaml yet."""
    with ConnectProxy(credentials="user:right") as proxy:
        config = ProxyConfig(url=f"http://127.0.0.1:{proxy.port}")
        if credentials:
            file = tmp_path / "proxy"
            file.write_text("user:wrong")
            file.chmod(0o600)
            config = config.model_copy(update={"credentials_file": file})
        with pytest.raises(Unavailable) as caught:
            join(enrolment.token(), tmp_path / "agent", connect_timeout_s=0.5, proxy=config)
    text = caught.value.message
    assert f"127.0.0.1:{proxy.port} answers 407 to CONNECT" in text
    assert f"doctor --token TOKEN --proxy http://127.0.0.1:{proxy.port}" in text
    assert ("--proxy-credentials-file FILE" in text) is credentials
    assert "agent.yaml" not in text
    assert "wrong" not in text


def test_a_ledger_is_read_while_a_join_for_a_lost_key_waits_or_was_refused(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """What patients have spent, and by which key the join waits; the certificate goes when another
    takes its place."""
    folder = Folder(tmp_path / "agent")
    join(enrolment.token(), folder.root)
    chain = (folder.identity / "node.crt").read_bytes()
    (folder.identity / "node.key").unlink()
    token = enrolment.token()
    enrolment.refusal = WrongPhase("JOIN_PENDING", "its key is 0123", retry_after_s=2.0)
    for _ in range(2):  # the second goes on with the first one's key
        with pytest.raises(WrongPhase):
            join(token, folder.root)
        told = status(folder.root)["keys_lost"]
        assert "its key is 0123" in told
        assert "A new token is not needed" in told
        assert "from a backup" not in told
        assert export(folder.root, tmp_path / "copy.db") == 0
        (tmp_path / "copy.db").unlink()
    with pytest.raises(Malformed, match="its key is 0123"):
        load_identity(folder.identity)
    assert public_key_of_csr(enrolment.csrs[-1]) == public_key_of_csr(enrolment.csrs[-2])
    enrolment.refusal = NotAllowed("JOIN_REJECTED", "the operator has rejected it")
    with pytest.raises(NotAllowed):
        join(token, folder.root)
    assert "its key is 0123" not in status(folder.root)["keys_lost"]
    assert (folder.identity / "node.crt").read_bytes() == chain
    enrolment.refusal = None
    join(enrolment.token(), folder.root)
    assert status(folder.root)["keys_lost"] == ""
    assert (folder.identity / "node.crt").read_bytes() != chain


def test_a_folder_that_waits_to_join_again_says_so(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """A node that was revoked, say, whose steward must be heard; by which key, too."""
    folder = Folder(tmp_path / "agent")
    join(enrolment.token(), folder.root)
    command = ["agent", "status", "--dir", str(folder.root)]
    assert "JOIN WAITS" not in CliRunner().invoke(app, command).stdout
    enrolment.refusal = WrongPhase("JOIN_PENDING", "its key is 0123", retry_after_s=2.0)
    token = enrolment.token()
    with pytest.raises(WrongPhase):
        join(token, folder.root, again=True)
    told = CliRunner().invoke(app, command).stdout
    assert "JOIN WAITS" in told
    assert "its key is 0123" in " ".join(told.split())
    enrolment.refusal = None
    join(token, folder.root, again=True)
    assert status(folder.root)["join_waits"] == ""
