"""The certificate authority of a federation: a root, an issuing authority, short-lived leaves."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority_state import read_state
from certs.keyfiles import load_certificate_key, private_pem, write_new
from certs.profiles import (
    SERVER_KINDS,
    IpAddress,
    authority_certificate,
    host_names,
    leaf_certificate,
)
from certs.spiffe import SpiffeId, check_trust_domain
from protos.content import sync_directory
from protos.errors import Conflict, Malformed, NotFound, WrongPhase, invariant

NODE_LIFETIME = timedelta(hours=168)
PERSON_LIFETIME = timedelta(days=365)
CLOCK_SKEW = timedelta(hours=1)
"""How far notBefore lies back: a machine whose clock is behind must accept a new certificate."""

ROOT_LIFETIME = timedelta(days=3652)
ISSUING_LIFETIME = timedelta(days=1826)

_FILES = ("root.key", "issuing.key", "root.crt", "issuing.crt")


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate as it goes to its owner, and what the registry keeps of it.

    Attributes:
        chain_pem: the leaf, then the issuing authority's certificate.
        fingerprint: SHA-256 of the leaf's DER, hexadecimal.
        serial: serial number, hexadecimal.
        not_before: first moment of validity, UTC, whole seconds.
        not_after: last moment of validity, UTC, whole seconds.
        issuer: fingerprint of the issuing authority's certificate.
        bundle: digest of the roots that its owner is told to trust with it.
    """

    chain_pem: bytes
    fingerprint: str
    serial: str
    spiffe_id: SpiffeId
    not_before: datetime
    not_after: datetime
    issuer: str = ""
    bundle: str = ""


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates for one trust domain. Build it by `create` or `load`.

    Attributes:
        beside: another root that is trusted while one authority follows the other.
    """

    trust_domain: str
    root: x509.Certificate
    issuing: x509.Certificate
    _issuing_key: ec.EllipticCurvePrivateKey = field(repr=False)
    beside: tuple[x509.Certificate, ...] = ()

    @classmethod
    def create(cls, folder: Path, trust_domain: str, now: datetime | None = None) -> "Authority":
        """Make a new root and issuing authority in `folder`; either all four files or none.

        Raises:
            Conflict: ALREADY_INITIALISED, if one of the files exists.
            Malformed: SPIFFE_INVALID, for a trust domain that cannot be one.
        """
        check_trust_domain(trust_domain)
        for name in _FILES:
            if os.path.lexists(folder / name):
                raise _already_initialised(folder, name)
        start = (now or datetime.now(UTC)) - CLOCK_SKEW
        root_key = ec.generate_private_key(ec.SECP256R1())
        issuing_key = ec.generate_private_key(ec.SECP256R1())
        root = authority_certificate(
            trust_domain, root_key.public_key(), (start, start + ROOT_LIFETIME), None
        ).sign(root_key, hashes.SHA256())
        issuing = authority_certificate(
            trust_domain, issuing_key.public_key(), (start, start + ISSUING_LIFETIME), root
        ).sign(root_key, hashes.SHA256())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        _write_all(
            folder, (private_pem(root_key), private_pem(issuing_key), _pem(root), _pem(issuing))
        )
        sync_directory(folder.parent)
        return cls(trust_domain, root, issuing, issuing_key)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """Read what `create` wrote, or the authority that has followed it (`certs.rollover`).
        `root.key` is not needed and may be kept elsewhere.

        Raises:
            NotFound: AUTHORITY_MISSING.
            Malformed: AUTHORITY_INVALID, if the files are unreadable or do not belong together.
        """
        state = read_state(folder)
        pki, folder = folder, folder / state.current
        try:
            root = x509.load_pem_x509_certificate((folder / "root.crt").read_bytes())
            beside = tuple(
                x509.load_pem_x509_certificate((pki / name / "root.crt").read_bytes())
                for name in (state.next, state.former)
                if name
            )
            issuing = x509.load_pem_x509_certificate((folder / "issuing.crt").read_bytes())
            key = load_certificate_key(folder / "issuing.key")
        except (FileNotFoundError, NotFound):
            raise NotFound(
                "AUTHORITY_MISSING",
                f"{folder} does not hold root.crt, issuing.crt and issuing.key; run "
                "`feddp coordinator init`, or restore them from a backup",
            ) from None
        except (ValueError, x509.InvalidVersion, Malformed):
            raise _invalid(folder, "root.crt, issuing.crt or issuing.key cannot be read") from None
        if issuing.public_key() != key.public_key():
            raise _invalid(folder, "issuing.key is not the key of issuing.crt")
        try:
            issuing.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            raise _invalid(folder, "root.crt did not sign issuing.crt") from None
        return cls(_trust_domain_of(issuing, folder), root, issuing, key, beside)

    @property
    def trust_bundle(self) -> bytes:
        """The root, and one more while authorities change, PEM: all that a peer has to trust."""
        return b"".join(map(_pem, (self.root, *self.beside)))

    @property
    def bundle_digest(self) -> str:
        """The same for the same roots, whichever of them issues."""
        roots = sorted(one.fingerprint(hashes.SHA256()) for one in (self.root, *self.beside))
        return hashlib.sha256(b"".join(roots)).hexdigest()

    @property
    def issuer(self) -> str:
        """Fingerprint of the issuing authority's certificate, hexadecimal."""
        return self.issuing.fingerprint(hashes.SHA256()).hex()

    @property
    def root_der(self) -> bytes:
        """The root, DER: what a join token carries."""
        return self.root.public_bytes(serialization.Encoding.DER)

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        identity: SpiffeId,
        *,
        now: datetime,
        lifetime: timedelta,
        dns_names: Sequence[str] = (),
        ip_addresses: Sequence[str | IpAddress] = (),
    ) -> IssuedCertificate:
        """Certify that `public_key` belongs to `identity`.

        Every name in the certificate is written here; nothing is taken from a request. A lifetime
        that would outlast the issuing authority is cut at its end.

        Args:
            public_key: a P-256 key whose owner has proved possession (`public_key_of_csr`).
            identity: of this trust domain.
            now: aware; the certificate is valid from `CLOCK_SKEW` before it.
            lifetime: how long after `now` the certificate ends.
            dns_names: host names that a coordinator or router is reached by.
            ip_addresses: addresses that a coordinator or router is reached by.

        Raises:
            Malformed: HOST_INVALID.
            WrongPhase: AUTHORITY_EXPIRED.
        """
        serves = identity.kind in SERVER_KINDS
        invariant(isinstance(public_key.curve, ec.SECP256R1), "only P-256 keys are certified")
        invariant(identity.trust_domain == self.trust_domain, "identity of another trust domain")
        invariant(now.tzinfo is not None and lifetime > timedelta(0), "no validity period")
        invariant(serves or not (dns_names or ip_addresses), "only servers have host names")
        last = self.issuing.not_valid_after_utc
        if now >= last:
            raise WrongPhase(
                "AUTHORITY_EXPIRED",
                f"the issuing authority of {self.trust_domain} ended at {last:%Y-%m-%d %H:%M} UTC "
                "and can certify nothing; check this machine's clock, then renew the authority",
            )
        leaf = leaf_certificate(
            identity,
            public_key,
            (now - CLOCK_SKEW, min(now + lifetime, last)),
            self.issuing,
            host_names(dns_names, ip_addresses),
        ).sign(self._issuing_key, hashes.SHA256())
        return IssuedCertificate(
            chain_pem=_pem(leaf) + _pem(self.issuing),
            fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
            serial=f"{leaf.serial_number:x}",
            spiffe_id=identity,
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
            issuer=self.issuer,
            bundle=self.bundle_digest,
        )


def _trust_domain_of(issuing: x509.Certificate, folder: Path) -> str:
    try:
        names = issuing.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return check_trust_domain(uri.removeprefix("spiffe://"))
    except (x509.ExtensionNotFound, ValueError, Malformed):
        raise _invalid(folder, "issuing.crt names no trust domain") from None


def _write_all(folder: Path, contents: Iterable[bytes]) -> None:
    written: list[Path] = []
    try:
        for name, data in zip(_FILES, contents, strict=True):
            write_new(folder / name, data, 0o600 if name.endswith(".key") else 0o644)
            written.append(folder / name)
    except (OSError, Conflict) as error:
        # Half an authority would make every later attempt fail.
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, Conflict):
            raise _already_initialised(folder, "an authority's file") from None
        raise


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _already_initialised(folder: Path, what: str) -> Conflict:
    return Conflict(
        "ALREADY_INITIALISED",
        f"{folder} holds {what} already, and an authority is never written over; choose another "
        "folder",
    )


def _invalid(folder: Path, what: str) -> Malformed:
    return Malformed(
        "AUTHORITY_INVALID",
        f"the certificate authority in {folder} is damaged: {what}; restore it from a backup",
    )
