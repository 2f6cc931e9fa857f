"""Redeeming a join token, as a node and as a person do: the way there, and what an answer is."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.credentials import channel_credentials
from certs.issued import check_bundle, check_issued
from certs.spiffe import SpiffeId
from certs.tokens import JoinToken
from protos.errors import FeddpError, Malformed, Unavailable

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


@contextlib.contextmanager
def enrolment_channel(
    token: JoinToken, timeout_s: float, options: Sequence[tuple[str, Any]] = ()
) -> Iterator[grpc.Channel]:
    """A connection to the enrolment port that trusts the token's root and no other.

    Raises:
        grpc.FutureTimeoutError: there is none within `timeout_s`.
    """
    credentials = channel_credentials(token.root_pem)
    with grpc.secure_channel(token.address, credentials, options) as channel:
        grpc.channel_ready_future(channel).result(timeout=timeout_s)
        yield channel


def is_refusal(error: FeddpError) -> bool:
    """Whether an answer says that the token was not redeemed for this key."""
    return error.code in _REFUSALS


def answer_lost(token: JoinToken, error: FeddpError) -> Unavailable:
    """What to raise where the token may have been redeemed, and the answer is not here."""
    return Unavailable(
        "UNREACHABLE",
        f"the answer of {token.address} was lost ({error.reason}); the same command, with the same "
        "token and folder, goes on from there within 15 minutes",
    )


def check_answer(
    token: JoinToken,
    key: ec.EllipticCurvePublicKey,
    chain: bytes,
    bundle: bytes,
    named: tuple[str, str],
) -> tuple[SpiffeId, x509.Certificate]:
    """The certificate is for our key, names whom the token is for, and chains to roots of which the
    token pins one.

    Args:
        named: the name and the SPIFFE ID that the answer gives beside the certificate.

    Raises:
        Malformed: JOIN_ANSWER_INVALID.
    """
    try:
        roots = check_bundle(bundle, token.root_pem)
        spiffe_id, leaf = check_issued(chain, roots, key, token.kind)
    except Malformed as error:
        raise answer_invalid(error.message) from None
    if named != (spiffe_id.name, str(spiffe_id)):
        raise answer_invalid(f"its certificate names another {token.kind}")
    if leaf.not_valid_after_utc <= datetime.now(UTC):
        raise answer_invalid("its certificate has ended; check the clocks of both machines")
    return spiffe_id, leaf


def answer_invalid(what: str) -> Malformed:
    """How an answer is refused that cannot be believed."""
    return Malformed(
        "JOIN_ANSWER_INVALID",
        f"the coordinator's answer cannot be trusted: {what}; ask its operator for a new token",
    )
