"""From a join token to a folder that an agent can run in."""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import ValidationError

from certs.credentials import channel_credentials
from certs.enrolment import (
    load_certificate_key,
    load_ledger_key,
    make_csr,
    new_key,
    new_ledger_key,
    prove_ledger_key,
    public_bytes_of,
    save_private_key,
)
from certs.spiffe import SpiffeId
from certs.tokens import JoinToken
from node_agent.config import AgentConfig, Folder, read_yaml
from node_agent.identity import (
    BUNDLE,
    CHAIN,
    KEY,
    LEDGER_KEY,
    check_issued,
    load_identity,
    settle,
)
from node_agent.state import State, ledger_missing
from node_agent.templates import DATASETS_YAML, POLICY_YAML
from protos.content import write_durable
from protos.errors import Conflict, Malformed, Unavailable
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc as pb_grpc
from protos.status import from_rpc

CONNECT_TIMEOUT_S: Final = 10.0
JOIN_TIMEOUT_S: Final = 30.0

_REFUSALS: Final = (
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
)
"""Answers that say that the token was not redeemed for this key."""


@dataclass(frozen=True, slots=True)
class JoinResult:
    """What the machine has become.

    Attributes:
        coordinator: "host:port" of the mTLS port.
        expires_at: last moment of the certificate, UTC.
        policy_written: whether a policy file was made that allows nothing yet.
    """

    node: str
    node_class: str
    spiffe_id: str
    coordinator: str
    expires_at: datetime
    path: Path
    policy_written: bool


def join(token: str, path: Path, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> JoinResult:
    """Redeem a token and write identity, configuration and, where absent, the steward's files.

    A join whose answer was lost is done again with the same token and keeps its keys; one that was
    refused or never reached the coordinator leaves nothing behind. A node whose certificate has
    ended joins again in its own folder with a new token, and keeps its ledger.

    Raises:
        Malformed: TOKEN_INVALID; JOIN_ANSWER_INVALID, the coordinator's answer does not hold.
        Conflict: ALREADY_JOINED.
        Unauthenticated: TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_USED.
        Unavailable: UNREACHABLE.
    """
    parsed = JoinToken.parse(token)
    folder = Folder(path.absolute())
    former = _former(folder)
    # Undone unless the coordinator may have redeemed the token for these keys.
    with contextlib.ExitStack() as undo:
        for part in (*reversed(folder.root.parents), folder.root, folder.identity):
            if not part.exists():
                part.mkdir(mode=0o700)
                undo.callback(_remove_folder, part)
        key, ledger_key = _keys(folder.identity, undo)
        csr = make_csr(key)
        request = pb.JoinRequest(
            secret=parsed.secret,
            csr=csr,
            ledger_public_key=public_bytes_of(ledger_key),
            ledger_key_proof=prove_ledger_key(ledger_key, csr),
        )
        answer = _ask(parsed, request, connect_timeout_s, undo)
        undo.pop_all()
    spiffe_id, leaf = _check(parsed, key, answer)
    if former not in ("", spiffe_id.name):
        raise _answer_invalid(f"it is for node {spiffe_id.name} and this folder is {former}'s")
    return _write(folder, parsed, answer, spiffe_id, leaf, ledger_key)


def _former(folder: Folder) -> str:
    """The node that this folder belonged to until its certificate ended; empty for a new folder.

    Raises:
        Conflict: ALREADY_JOINED, the certificate is valid.
        Malformed: IDENTITY_INVALID.
    """
    if not (folder.identity / CHAIN).exists():
        return ""
    identity = load_identity(folder.identity)
    if identity.expires_at > datetime.now(UTC):
        raise Conflict(
            "ALREADY_JOINED",
            f"{folder.root} holds the identity of node {identity.node} already; join with another "
            "--dir",
        )
    if not folder.state_db.exists():
        raise ledger_missing(folder)
    settle(folder.identity)
    return identity.node


def _remove_folder(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def _keys(
    folder: Path, undo: contextlib.ExitStack
) -> tuple[ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey]:
    """The keys of an earlier join whose answer was lost, or new ones."""
    if not (folder / KEY).exists():
        save_private_key(folder / KEY, new_key())
        undo.callback((folder / KEY).unlink)
    if not (folder / LEDGER_KEY).exists():
        save_private_key(folder / LEDGER_KEY, new_ledger_key())
        undo.callback((folder / LEDGER_KEY).unlink)
    return load_certificate_key(folder / KEY), load_ledger_key(folder / LEDGER_KEY)


def _ask(
    token: JoinToken, request: pb.JoinRequest, timeout_s: float, undo: contextlib.ExitStack
) -> pb.JoinResponse:
    """Call Join over TLS that trusts the token's root and no other."""
    with grpc.secure_channel(token.address, channel_credentials(token.root_pem)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            raise Unavailable(
                "UNREACHABLE",
                f"no trusted connection to {token.address} within {timeout_s:g} s: check that the "
                "coordinator runs, the firewall, this machine's clock, and that the token is of "
                "this coordinator; then join again with the same token",
            ) from None
        try:
            return pb_grpc.EnrollmentStub(channel).Join(request, timeout=JOIN_TIMEOUT_S)
        except grpc.RpcError as error:
            found = from_rpc(error)
            if found.code in _REFUSALS:
                raise found from None
            undo.pop_all()
            raise Unavailable(
                "UNREACHABLE",
                f"the answer of {token.address} was lost ({found.reason}); join again with the "
                f"same token and folder within 15 minutes",
            ) from None


def _check(
    token: JoinToken, key: ec.EllipticCurvePrivateKey, answer: pb.JoinResponse
) -> tuple[SpiffeId, x509.Certificate]:
    """The certificate is ours, names a node, and chains to the root that the token pins."""
    root = x509.load_der_x509_certificate(token.root_der)
    try:
        spiffe_id, leaf = check_issued(answer.certificate_chain, root, key.public_key())
    except Malformed as error:
        raise _answer_invalid(error.message) from None
    if (answer.node, answer.spiffe_id) != (spiffe_id.name, str(spiffe_id)):
        raise _answer_invalid("its certificate names another node")
    if leaf.not_valid_after_utc <= datetime.now(UTC):
        raise _answer_invalid("its certificate has ended; check the clocks of both machines")
    return spiffe_id, leaf


def _write(
    folder: Folder,
    token: JoinToken,
    answer: pb.JoinResponse,
    spiffe_id: SpiffeId,
    leaf: x509.Certificate,
    ledger_key: ed25519.Ed25519PrivateKey,
) -> JoinResult:
    """The certificate comes last: with it the join is complete."""
    # What IT has set besides stays as it was.
    kept = read_yaml(folder.agent_yaml, "CONFIG_INVALID") if folder.agent_yaml.exists() else {}
    config = {
        **kept,
        "coordinator": answer.coordinator_address,
        "trust_domain": spiffe_id.trust_domain,
        "node": spiffe_id.name,
        "node_class": answer.node_class,
    }
    try:
        AgentConfig.model_validate(config)
    except ValidationError:
        raise _answer_invalid("its address or node class cannot be used") from None
    for part in (folder.spool, folder.logs):
        part.mkdir(mode=0o700, exist_ok=True)
    policy_written = not folder.policy_yaml.exists()
    if policy_written:
        write_durable(folder.policy_yaml, POLICY_YAML.encode())
    if not folder.datasets_yaml.exists():
        write_durable(folder.datasets_yaml, DATASETS_YAML.encode())
    # The ledger begins here and nowhere else: an agent that finds none does not run.
    State(folder.state_db, spiffe_id.name, ledger_key).close()
    write_durable(folder.identity / BUNDLE, token.root_pem, 0o644)
    write_durable(folder.agent_yaml, yaml.safe_dump(config, sort_keys=False).encode())
    write_durable(folder.identity / CHAIN, answer.certificate_chain, 0o644)
    return JoinResult(
        node=spiffe_id.name,
        node_class=answer.node_class,
        spiffe_id=str(spiffe_id),
        coordinator=answer.coordinator_address,
        expires_at=leaf.not_valid_after_utc,
        path=folder.root,
        policy_written=policy_written,
    )


def _answer_invalid(what: str) -> Malformed:
    return Malformed(
        "JOIN_ANSWER_INVALID",
        f"the coordinator's answer cannot be trusted: {what}; ask its operator for a new token",
    )
