"""From an invitation to a profile: a person's own key, their certificate, whom they trust."""

import contextlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import grpc

from certs.enrolment import make_csr
from certs.profile_folder import (
    BUNDLE,
    CHAIN,
    DEFAULT_PROJECT,
    DESCRIPTION,
    KEY,
    NEXT_KEY,
    adopt,
    describe,
    waiting_key,
)
from certs.redeeming import (
    CONNECT_TIMEOUT_S,
    JOIN_TIMEOUT_S,
    answer_lost,
    check_answer,
    enrolment_channel,
    is_refusal,
)
from certs.tokens import JoinToken
from protos.errors import Conflict, Unavailable, WrongPhase
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc as pb_grpc
from protos.status import from_rpc

_OURS: Final = (DESCRIPTION, KEY, CHAIN, BUNDLE)


@dataclass(frozen=True, slots=True)
class Joined:
    """What the person has become.

    Attributes:
        identity: their SPIFFE ID.
        address: "host:port" of the mTLS port.
        expires_at: last moment of the certificate, UTC.
        root_fingerprint: SHA-256 of the root that the token pins, for people to compare.
        project: whose jobs and models they see and submit, if they are an engineer.
    """

    name: str
    roles: tuple[str, ...]
    identity: str
    address: str
    folder: Path
    expires_at: datetime
    root_fingerprint: str
    project: str


def join(token: str, folder: Path, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Joined:
    """Redeem an invitation and write the profile.

    A join whose answer was lost is done again with the same token and folder, and keeps its key;
    one that was refused or never reached the coordinator leaves nothing behind.

    Raises:
        Malformed: TOKEN_INVALID, TOKEN_FOR_NODE; JOIN_ANSWER_INVALID, the coordinator's answer does
            not hold.
        Conflict: PROFILE_EXISTS, the folder holds a profile; USER_EXISTS.
        Unauthenticated: TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_USED, TOKEN_WITHDRAWN.
        WrongPhase: COORDINATOR_TOO_OLD.
        Unavailable: UNREACHABLE.
    """
    parsed = JoinToken.parse(token, "user")
    folder = folder.absolute()
    _require_none(folder)
    # Undone unless the coordinator may have redeemed the token for this key.
    with contextlib.ExitStack() as undo:
        for part in (*reversed(folder.parents), folder):
            if not part.exists():
                part.mkdir(mode=0o700)
                undo.callback(_remove_folder, part)
        if not (folder / NEXT_KEY).exists():
            undo.callback((folder / NEXT_KEY).unlink, missing_ok=True)
        key = waiting_key(folder)
        request = pb.JoinUserRequest(secret=parsed.secret, csr=make_csr(key))
        answer = _ask(parsed, request, connect_timeout_s, undo)
        undo.pop_all()
    identity, leaf = check_answer(
        parsed,
        key.public_key(),
        answer.certificate_chain,
        answer.trust_bundle,
        (answer.user, answer.spiffe_id),
    )
    project = answer.project or DEFAULT_PROJECT
    describe(folder, answer.coordinator_address, identity.name, project)
    adopt(folder, answer.certificate_chain, answer.trust_bundle)
    return Joined(
        identity.name,
        tuple(answer.roles),
        str(identity),
        answer.coordinator_address,
        folder,
        leaf.not_valid_after_utc,
        parsed.fingerprint,
        project,
    )


def _require_none(folder: Path) -> None:
    """A profile is never written over. Without `key.pem` and with a waiting key it is a join that
    was cut short, which goes on."""
    began = (folder / NEXT_KEY).exists() and not (folder / KEY).exists()
    found = [] if began else [name for name in _OURS if (folder / name).exists()]
    if found:
        raise Conflict(
            "PROFILE_EXISTS",
            f"{folder} already holds {found[0]} of a profile, and nothing is written over; give "
            "another folder with --profile (`feddp profile renew` if only the certificate ends)",
        )


def _ask(
    token: JoinToken, request: pb.JoinUserRequest, timeout_s: float, undo: contextlib.ExitStack
) -> pb.JoinUserResponse:
    try:
        with enrolment_channel(token, timeout_s) as channel:
            stub = pb_grpc.EnrollmentStub(channel)
            answer: pb.JoinUserResponse = stub.JoinUser(request, timeout=JOIN_TIMEOUT_S)
            return answer
    except grpc.FutureTimeoutError:
        raise Unavailable(
            "UNREACHABLE",
            f"no trusted connection to {token.address} within {timeout_s:g} s: check the name, the "
            "firewall, this machine's clock and $https_proxy, and that the coordinator runs; "
            "`openssl s_client -connect` to that address shows whose certificate comes. Then join "
            "again with the same token",
        ) from None
    except grpc.RpcError as error:
        found = from_rpc(error)
    if found.reason == "UNIMPLEMENTED":
        raise WrongPhase(
            "COORDINATOR_TOO_OLD",
            f"the coordinator at {token.address} lets no people in yet; its operator upgrades it",
        )
    if is_refusal(found):
        raise found
    undo.pop_all()
    raise answer_lost(token, found)


def _remove_folder(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()
