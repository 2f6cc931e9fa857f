"""From a join token to a folder that an agent can run in."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import BaseModel, ValidationError

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
from certs.keyfiles import key_in, stored_pem
from certs.proofs import prove_rejoin
from certs.redeeming import (
    CONNECT_TIMEOUT_S,
    JOIN_TIMEOUT_S,
    answer_invalid,
    answer_lost,
    check_answer,
    enrolment_channel,
    is_refusal,
)
from certs.spiffe import SpiffeId
from certs.tokens import JoinToken
from node_agent.connection.clock import off_by_issue
from node_agent.connection.proxy import OPTION, ProxyConfig, Route, route_to
from node_agent.folder.config import AgentConfig, Folder, load_config
from node_agent.folder.installation import require_not_moving
from node_agent.folder.ownership import require_access
from node_agent.folder.templates import DATASETS_YAML, POLICY_YAML
from node_agent.joining.identity import (
    BUNDLE,
    CHAIN,
    KEY,
    LEDGER_KEY,
    Identity,
    is_key_lost,
    load_identity,
    settle,
)
from node_agent.joining.kept_name import NOT_USED_UP, USED_UP, for_another, kept_name
from node_agent.joining.renewal import pending_key
from node_agent.joining.waiting_join import forget_waiting, note_waiting
from node_agent.ledger.lost_ledger import ledger_missing
from node_agent.state.state import State
from protos.content import beside_of, sync_directory, write_durable
from protos.errors import Conflict, FeddpError, Unavailable, WrongPhase
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc as pb_grpc
from protos.status import from_rpc

PENDING_S: Final = 2.0
"""Between two questions of a machine that waits to be let in."""

_ANSWERED: Final = frozenset({"coordinator", "enrollment", "trust_domain", "node", "node_class"})
"""Keys of agent.yaml that the coordinator's answer sets."""


@dataclass(frozen=True, slots=True)
class Moving:
    """A join of a folder that is with another coordinator until this one has let it in.

    Attributes:
        key: where the new certificate's key is made, and found by a join that goes on.
        let_in: makes room in the folder for a certificate that holds: from then on `key` is
            node.key. Before it nothing else of the folder was touched.
    """

    key: Path
    let_in: Callable[[], None]


@dataclass(frozen=True, slots=True)
class JoinResult:
    """What the machine has become.

    Attributes:
        coordinator: "host:port" of the mTLS port.
        expires_at: last moment of the certificate, UTC.
        policy_written: whether a policy file was made that allows nothing yet.
        root_fingerprint: SHA-256 of the root that the token pins, for people to compare.
        clock_off: what the new certificate says of this machine's clock; empty for nothing.
    """

    node: str
    node_class: str
    spiffe_id: str
    coordinator: str
    expires_at: datetime
    path: Path
    policy_written: bool
    root_fingerprint: str
    clock_off: str = ""


def join(
    token: str,
    path: Path,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    proxy: ProxyConfig | None = None,
    *,
    again: bool = False,
    encrypt_keys: bool = False,
    pending: Callable[[FeddpError], bool] = lambda _: False,
    moving: Moving | None = None,
) -> JoinResult:
    """Redeem a token and write identity, configuration and, where absent, the steward's files.

    A join whose answer was lost, or that waited for approval, is done again with the same token and
    keeps its keys; one that was refused or never reached the coordinator leaves nothing behind. A
    node whose certificate has ended joins again in its own folder with a new token, and keeps its
    ledger and agent.yaml's settings: it makes a new key, and proves the old one.

    Args:
        proxy: goes into agent.yaml; None for what stands there, or the environment's.
        again: also a node whose certificate is valid.
        encrypt_keys: under the passphrase of `certs.keyfiles.passphrase`.
        pending: told each time that the join still waits for a person; whether to go on waiting.
        moving: the caller leaves another coordinator for this one, and holds the folder.

    Raises:
        Malformed: TOKEN_INVALID, PROXY_INVALID; JOIN_ANSWER_INVALID, the coordinator's answer does
            not hold; PASSPHRASE_MISSING, PASSPHRASE_SHORT, PASSPHRASE_WRONG.
        Conflict: ALREADY_JOINED, AGENT_RUNNING.
        Malformed: TOKEN_FOR_ANOTHER_NODE, the folder keeps another one's ledger; LEDGER_INVALID.
        NotAllowed: JOIN_REJECTED, LEDGER_KEY_CHANGED, LEDGER_KEY_OF_ANOTHER, NODE_DISABLED;
            OTHER_USER.
        WrongPhase: JOIN_PENDING, MOVE_CUT_SHORT.
        Unauthenticated: TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_USED.
        Unavailable: UNREACHABLE.
    """
    parsed = JoinToken.parse(token)
    if encrypt_keys:
        stored_pem(new_key(), encrypted=True)  # says what is wrong before anything is made
    folder = Folder(path.absolute())
    require_access(folder.root)
    if moving is None:
        require_not_moving(folder)
    former = None if moving is not None else _former(folder, again)
    settings = _settings(folder, proxy)
    route = route_to(
        parsed.address, settings.get("proxy") or ProxyConfig(), folder.root, os.environ
    )
    if proxy is not None and route.source == "agent.yaml":  # it is not written yet
        route = replace(route, source=OPTION)

    def waits(error: FeddpError) -> bool:
        if moving is None:
            note_waiting(folder.identity, parsed, error)
        return pending(error)

    def ask(request: pb.JoinRequest, undo: contextlib.ExitStack) -> pb.JoinResponse:
        return _ask(parsed, route, request, connect_timeout_s, undo, waits)

    if moving is not None:
        return _joined(parsed, folder, None, settings, encrypt_keys, ask, moving)
    with _alone(folder, former):
        return _joined(parsed, folder, former, settings, encrypt_keys, ask)


def _joined(
    parsed: JoinToken,
    folder: Folder,
    former: Identity | None,
    settings: dict[str, Any],
    encrypt_keys: bool,
    ask: Callable[[pb.JoinRequest, contextlib.ExitStack], pb.JoinResponse],
    moving: Moving | None = None,
) -> JoinResult:
    kept = kept_name(folder, former)
    # Undone unless the coordinator may have redeemed the token for these keys.
    with contextlib.ExitStack() as undo:
        for part in (*reversed(folder.root.parents), folder.root, folder.identity):
            if not part.exists():
                part.mkdir(mode=0o700)
                undo.callback(_remove_folder, part)
        at = moving.key if moving is not None else folder.identity / KEY
        key, ledger_key = _keys(folder.identity, at, former, encrypt_keys, undo)
        csr = make_csr(key, kept)
        request = pb.JoinRequest(
            secret=parsed.secret,
            csr=csr,
            ledger_public_key=public_bytes_of(ledger_key),
            ledger_key_proof=prove_ledger_key(ledger_key, csr),
        )
        if former is not None:
            request.former_certificate = former.chain
            request.former_key_proof = prove_rejoin(key_in(former.key), csr)
        try:
            answer = ask(request, undo)
        except FeddpError as error:
            if is_refusal(error) and error.reason != "JOIN_PENDING":
                forget_waiting(folder.identity, parsed)
            if kept and error.reason == "CSR_NAMES":
                raise for_another(folder, kept, NOT_USED_UP) from None
            raise
        made = undo.pop_all()
    spiffe_id, leaf = check_answer(
        parsed,
        key.public_key(),
        answer.certificate_chain,
        answer.trust_bundle,
        (answer.node, answer.spiffe_id),
    )
    if kept not in ("", spiffe_id.name):  # by a coordinator that does not look at names
        made.close()
        raise for_another(folder, kept, USED_UP)
    if moving is not None:
        moving.let_in()
    return _write(folder, parsed, answer, spiffe_id, leaf, ledger_key, settings)


def _settings(folder: Folder, proxy: ProxyConfig | None) -> dict[str, Any]:
    """What agent.yaml says besides the coordinator's answer, and `proxy` in it if that is given."""
    kept: dict[str, Any] = {}
    if folder.agent_yaml.exists():
        before = load_config(folder)
        kept = {name: getattr(before, name) for name in before.model_fields_set - _ANSWERED}
    return kept | ({"proxy": proxy} if proxy is not None else {})


def _alone(folder: Folder, former: Identity | None) -> contextlib.AbstractContextManager[None]:
    """Holds a folder that an agent may run in: two would write one identity.

    Raises:
        Conflict: AGENT_RUNNING.
    """
    if former is None and not folder.state_db.exists():
        return contextlib.nullcontext()
    # It loads what an agent needs, which a first join does not.
    from node_agent.folder.installation import locked

    return locked(folder)


def _former(folder: Folder, again: bool) -> Identity | None:
    """What this folder was until now; None for a new folder, and for one whose certificate's key is
    lost: it joins as a new one does, with its ledger.

    Raises:
        Conflict: ALREADY_JOINED, the certificate is valid and `again` is not said.
        Malformed: IDENTITY_INVALID.
    """
    if not (folder.identity / CHAIN).exists():
        return None
    if is_key_lost(folder.identity):
        # No other key goes with the certificate, which is of no use but to read the ledger by: it
        # stays until another takes its place, as long as that may take.
        return None
    identity = load_identity(folder.identity)
    if identity.expires_at > datetime.now(UTC) and not again:
        raise Conflict(
            "ALREADY_JOINED",
            f"{folder.root} holds the identity of node {identity.node} already: to bring it back, "
            "or if its operator asked for it, join with --again; another node needs another --dir",
        )
    if not folder.has_ledger:
        raise ledger_missing(folder.state_db)
    settle(folder.identity)
    return identity


def _remove_folder(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def _keys(
    folder: Path, at: Path, former: Identity | None, encrypt: bool, undo: contextlib.ExitStack
) -> tuple[ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey]:
    """The keys of an earlier join whose answer was lost, or new ones; a node that joins again keeps
    its ledger key.

    Args:
        at: where the certificate's key is, or is made.
    """
    if not (folder / LEDGER_KEY).exists():
        save_private_key(folder / LEDGER_KEY, new_ledger_key(), encrypted=encrypt)
        undo.callback((folder / LEDGER_KEY).unlink)
    if former is not None:
        return pending_key(folder), load_ledger_key(folder / LEDGER_KEY)
    if not at.exists():
        save_private_key(at, new_key(), encrypted=encrypt)
        undo.callback(at.unlink)
    return load_certificate_key(at), load_ledger_key(folder / LEDGER_KEY)


def _ask(
    token: JoinToken,
    route: Route,
    request: pb.JoinRequest,
    timeout_s: float,
    undo: contextlib.ExitStack,
    pending: Callable[[FeddpError], bool],
) -> pb.JoinResponse:
    """Call Join over TLS that trusts the token's root and no other, until a person has decided."""
    try:
        with enrolment_channel(token, timeout_s, route.options()) as channel:
            return _answered(token, pb_grpc.EnrollmentStub(channel), request, undo, pending)
    except grpc.FutureTimeoutError:
        from node_agent.doctor.unreached import found_on_the_way  # most joins need none of it

        way = f" --proxy http://{route.proxy}" if route.source == OPTION else ""
        way += " --proxy-credentials-file FILE" if way and route.credentials else ""
        doctor = f"`feddp agent doctor --token TOKEN{way}`"
        if cause := found_on_the_way(token, route):
            then = f"{cause}. Then try again; {doctor} looks at all of the way"
        else:
            then = (
                f"{doctor} says whether it is the name, the firewall, the proxy, this "
                "machine's clock, a TLS inspection or the coordinator; then try again with "
                "the same token"
            )
        raise Unavailable(
            "UNREACHABLE",
            f"no trusted connection to {token.address} within {timeout_s:g} s, "
            f"{route.said()}: {then}",
        ) from None


def _answered(
    token: JoinToken,
    stub: Any,
    request: pb.JoinRequest,
    undo: contextlib.ExitStack,
    pending: Callable[[FeddpError], bool],
) -> pb.JoinResponse:
    waited = False
    while True:
        try:
            answer: pb.JoinResponse = stub.Join(request, timeout=JOIN_TIMEOUT_S)
            return answer
        except grpc.RpcError as error:
            found = from_rpc(error)
        if found.reason == "JOIN_PENDING":
            # The token is this key's from now on, whatever becomes of this process.
            waited = True
            undo.pop_all()
            if not pending(found):
                raise WrongPhase(
                    "JOIN_PENDING",
                    f"{found.message}. Tell them this key by a way that both know; then the same "
                    "command with the same token goes on from here",
                    retry_after_s=found.retry_after_s,
                )
            time.sleep(found.retry_after_s or PENDING_S)
        elif waited and found.retryable:
            time.sleep(PENDING_S)
        elif is_refusal(found):
            raise found
        else:
            undo.pop_all()
            raise answer_lost(token, found)


def _write(
    folder: Folder,
    token: JoinToken,
    answer: pb.JoinResponse,
    spiffe_id: SpiffeId,
    leaf: x509.Certificate,
    ledger_key: ed25519.Ed25519PrivateKey,
    settings: dict[str, Any],
) -> JoinResult:
    """The certificate comes last: with it the join is complete."""
    config = {
        "coordinator": answer.coordinator_address,
        "enrollment": token.address,
        "trust_domain": spiffe_id.trust_domain,
        "node": spiffe_id.name,
        "node_class": answer.node_class,
        **{name: _plain(value) for name, value in settings.items()},
    }
    try:
        AgentConfig.model_validate(config)
    except ValidationError:
        raise answer_invalid("its address or node class cannot be used") from None
    for part in (folder.spool, folder.logs):
        part.mkdir(mode=0o700, exist_ok=True)
    policy_written = not folder.policy_yaml.exists()
    if policy_written:
        write_durable(folder.policy_yaml, POLICY_YAML.encode())
    if not folder.datasets_yaml.exists():
        write_durable(folder.datasets_yaml, DATASETS_YAML.encode())
    # The ledger begins here and nowhere else: an agent that finds none does not run.
    _begin_ledger(folder, spiffe_id.name, ledger_key)
    write_durable(folder.agent_yaml, yaml.safe_dump(config, sort_keys=False).encode())
    write_durable(folder.identity / BUNDLE, answer.trust_bundle, 0o644)
    # With a pending key it is the switch of a renewal: the folder works before and after it.
    write_durable(folder.identity / CHAIN, answer.certificate_chain, 0o644)
    settle(folder.identity)
    forget_waiting(folder.identity)
    return JoinResult(
        node=spiffe_id.name,
        node_class=answer.node_class,
        spiffe_id=str(spiffe_id),
        coordinator=answer.coordinator_address,
        expires_at=leaf.not_valid_after_utc,
        path=folder.root,
        policy_written=policy_written,
        root_fingerprint=token.fingerprint,
        clock_off=off_by_issue(leaf, datetime.now(UTC)),
    )


def _begin_ledger(folder: Folder, node: str, key: ed25519.Ed25519PrivateKey) -> None:
    """A new ledger has its tables before it has its name; one that is there goes on."""
    if folder.state_db.exists():
        State(folder.state_db, node, key).close()
        return
    beside = beside_of(folder.state_db)
    for suffix in ("", "-wal", "-shm"):  # of a join that was cut short
        Path(f"{beside}{suffix}").unlink(missing_ok=True)
    State(beside, node, key).close()
    beside.replace(folder.state_db)
    sync_directory(folder.root)


def _plain(value: Any) -> Any:
    """As YAML writes it, without what was not given."""
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
