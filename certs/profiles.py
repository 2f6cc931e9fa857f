"""What our certificates look like: authorities and leaves, each field and extension."""

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.spiffe import SpiffeId
from protos.errors import Malformed

SERVER_KINDS = ("coordinator", "router", "gateway")
"""Those that others connect to: their certificates carry host names and may serve."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Validity = tuple[datetime, datetime]

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")


def authority_certificate(
    trust_domain: str,
    key: ec.EllipticCurvePublicKey,
    validity: Validity,
    issuer: x509.Certificate | None,
) -> x509.CertificateBuilder:
    """An unsigned root (no `issuer`) or issuing authority, which may sign leaves only.

    It carries its trust domain as a SPIFFE ID without a path (X.509-SVID, section 4.2).
    """
    subject = _subject(f"feddp {'root' if issuer is None else 'issuing'} {trust_domain}")
    builder = (
        _certificate(subject, key, validity)
        .issuer_name(subject if issuer is None else issuer.subject)
        .add_extension(x509.BasicConstraints(True, 1 if issuer is None else 0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]
            ),
            critical=False,
        )
    )
    if issuer is None:
        return builder
    return builder.add_extension(_authority_key_identifier(issuer), critical=False)


def leaf_certificate(
    identity: SpiffeId,
    key: ec.EllipticCurvePublicKey,
    validity: Validity,
    issuer: x509.Certificate,
    hosts: Sequence[x509.GeneralName],
) -> x509.CertificateBuilder:
    """An unsigned certificate of `identity`; `hosts` come beside its one URI name."""
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity.kind in SERVER_KINDS:
        purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
    names = [x509.UniformResourceIdentifier(str(identity)), *hosts]
    return (
        _certificate(_subject(identity.name or identity.kind), key, validity)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_authority_key_identifier(issuer), critical=False)
    )


def host_names(
    dns_names: Sequence[str], ip_addresses: Sequence[str | IpAddress]
) -> list[x509.GeneralName]:
    """Names by which a server is reached, in the form that a certificate carries them.

    Raises:
        Malformed: HOST_INVALID.
    """
    hosts: list[x509.GeneralName] = []
    for name in dns_names:
        lowered = name.lower()
        if not _DNS_NAME.fullmatch(lowered) or lowered.rpartition(".")[2].isdigit():
            raise Malformed(
                "HOST_INVALID",
                f"{name[:80]!a} is not a host name that a certificate can carry; use a plain DNS "
                "name without a wildcard, and list an IP address as an address",
            )
        hosts.append(x509.DNSName(lowered))
    for address in ip_addresses:
        try:
            hosts.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            raise Malformed(
                "HOST_INVALID", f"{str(address)[:80]!a} is not an IPv4 or IPv6 address"
            ) from None
    return hosts


def _certificate(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _subject(text: str) -> x509.Name:
    """A subject for people; nothing reads it. A common name holds at most 64 characters."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])
