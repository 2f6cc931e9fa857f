"""A person's certificate: how long it is good for, and another one in its place."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certs.credentials import channel_credentials
from certs.enrolment import make_csr
from certs.profile_folder import NEXT_KEY, adopt, waiting_key
from feddp.profile import Profile
from protos.errors import FeddpError, Malformed
from protos.feddp.v1 import renewal_pb2, renewal_pb2_grpc
from protos.status import from_rpc

WARN_DAYS: Final = 30
TIMEOUT_S: Final = 20.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Standing:
    """How a profile's certificate stands.

    Attributes:
        identity: its SPIFFE ID.
        fingerprints: of the roots that the profile trusts, as people compare them.
    """

    identity: str
    expires_at: datetime
    fingerprints: tuple[str, ...]

    def warning(self, now: datetime | None = None) -> str:
        """What to do now; empty while there is nothing to do."""
        left = self.expires_at - (now or datetime.now(UTC))
        if left.total_seconds() <= 0:
            return (
                f"this profile's certificate ended on {self.expires_at:%Y-%m-%d}; ask an operator "
                "for a new invitation (`feddp user invite NAME`), and join in another folder; that "
                "of the installation itself: `feddp coordinator reissue` on its machine"
            )
        if left.days < WARN_DAYS:
            return (
                f"this profile's certificate ends on {self.expires_at:%Y-%m-%d}, in {left.days} "
                "days; run `feddp profile renew` with the same --dir or --profile"
            )
        return ""


def standing(profile: Profile) -> Standing:
    """Read a profile's certificate.

    Raises:
        Malformed: PROFILE_INVALID.
    """
    try:
        leaf = x509.load_pem_x509_certificates(profile.chain)[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        roots = x509.load_pem_x509_certificates(profile.bundle)
    except (ValueError, IndexError, x509.ExtensionNotFound):
        raise Malformed(
            "PROFILE_INVALID", f"the certificates in {profile.folder} are not readable PEM"
        ) from None
    return Standing(
        ", ".join(names.get_values_for_type(x509.UniformResourceIdentifier)),
        leaf.not_valid_after_utc,
        tuple(one.fingerprint(hashes.SHA256()).hex(":").upper() for one in roots),
    )


def renew(profile: Profile) -> Profile:
    """Replace a profile's key and certificate, and learn the roots to trust from now on.

    At every moment the folder holds a pair that works: the new key lies beside the present one
    before anybody is asked, the certificate is renamed over the present one, then the key. The old
    certificate is refused once the new one has spoken.

    Raises:
        FeddpError: the coordinator refused, or was not reached; then nothing has changed.
        Malformed: RENEWAL_ANSWER_INVALID.
    """
    folder = profile.folder
    key = waiting_key(folder)
    try:
        answer = _ask(profile, make_csr(key))
    except FeddpError as error:
        if error.reason == "CSR_KEY_USED":
            (folder / NEXT_KEY).unlink()
        raise
    leaf = x509.load_pem_x509_certificates(answer.certificate_chain)[0]
    if leaf.public_key() != key.public_key():
        raise Malformed("RENEWAL_ANSWER_INVALID", "the coordinator certified another key")
    adopt(folder, answer.certificate_chain, answer.trust_bundle)
    renewed = Profile.load(folder)
    with _channel(renewed) as channel:
        request = renewal_pb2.ConfirmRequest()
        _told(lambda: renewal_pb2_grpc.RenewalStub(channel).Confirm(request, timeout=TIMEOUT_S))
    return renewed


def _ask(profile: Profile, csr: bytes) -> renewal_pb2.RenewResponse:
    with _channel(profile) as channel:
        request = renewal_pb2.RenewRequest(csr=csr)
        answer: renewal_pb2.RenewResponse = _told(
            lambda: renewal_pb2_grpc.RenewalStub(channel).Renew(request, timeout=TIMEOUT_S)
        )
    return answer


def _channel(profile: Profile) -> grpc.Channel:
    credentials = channel_credentials(profile.bundle, profile.key, profile.chain)
    return grpc.secure_channel(profile.address, credentials)


def _told(call: Callable[[], T]) -> T:
    try:
        return call()
    except grpc.RpcError as error:
        raise from_rpc(error) from None
