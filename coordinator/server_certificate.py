"""What the coordinator shows and trusts on its ports, kept current while it serves.

Its own certificate is replaced when a third of its life remains, or when another authority has
begun to issue; files that an operator gave (`server.ssl_cert`) are read again when they change.
gRPC asks for the present state at each handshake; streams that are open are not touched.
"""

import contextlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority
from certs.credentials import (
    check_server_credentials,
    reloading_server_credentials,
    server_configuration,
)
from certs.enrolment import load_certificate_key, new_key, private_pem
from certs.rotation import renewal_due_at
from certs.spiffe import SpiffeId
from coordinator.config.config import CoordinatorConfig
from protos.content import sync_directory, write_durable
from protos.errors import FeddpError, NotFound

log = structlog.get_logger(__name__)

LIFETIME: Final = timedelta(days=365)
CHAIN, KEY, NEXT_KEY = "server.crt", "server.key", "server-next.key"
HERE: Final = ("localhost", "127.0.0.1", "::1")
"""In every certificate, so that the machine's own commands reach its server."""


def issue(
    authority: Authority, names: Sequence[str], addresses: Sequence[str], now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A new key for the server, and its certificate's chain, PEM.

    Raises:
        Malformed: HOST_INVALID.
    """
    key = new_key()
    issued = authority.issue(
        key.public_key(),
        SpiffeId(authority.trust_domain, "coordinator"),
        now=now,
        lifetime=LIFETIME,
        dns_names=sorted(set(names)),
        ip_addresses=sorted(set(addresses)),
    )
    return key, issued.chain_pem


def replace(pki: Path, key: ec.EllipticCurvePrivateKey, chain: bytes) -> None:
    """Put them in the place of the present ones: a reader finds a pair that works.

    The key is written beside the present one, the certificate renamed over the present one, then
    the key; `read_pair` takes the key that the certificate is for.
    """
    write_durable(pki / NEXT_KEY, private_pem(key))
    write_durable(pki / CHAIN, chain, 0o644)
    (pki / NEXT_KEY).replace(pki / KEY)
    sync_directory(pki)


def read_pair(config: CoordinatorConfig) -> tuple[bytes, bytes]:
    """(chain, key) of the server, PEM.

    Raises:
        NotFound: SERVER_CERTIFICATE_MISSING.
    """
    server, pki = config.server, config.storage.pki_dir
    chain, key = server.ssl_cert or pki / CHAIN, server.ssl_key or pki / KEY
    try:
        text = chain.read_bytes()
        with contextlib.suppress(FeddpError, ValueError, OSError):
            leaf = x509.load_pem_x509_certificates(text)[0]
            waiting = pki / NEXT_KEY
            is_ours = server.ssl_cert is None and waiting.exists()
            if is_ours and load_certificate_key(waiting).public_key() == leaf.public_key():
                key = waiting
        return text, key.read_bytes()
    except OSError as error:
        raise NotFound(
            "SERVER_CERTIFICATE_MISSING",
            f"{error.filename} cannot be read ({error.strerror}); `feddp coordinator init` makes "
            "one, or set server.ssl_cert and server.ssl_key",
        ) from None


class ServerCertificate:
    """The state of both ports, replaced as a whole.

    Args:
        adopt: takes an authority that has changed.

    Attributes:
        authority: what issues now, and what is trusted.
        expires_at: end of the certificate that the server shows, UTC.

    Raises:
        Malformed: AUTHORITY_INVALID, CREDENTIALS_INVALID.
        NotFound: AUTHORITY_MISSING, SERVER_CERTIFICATE_MISSING.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        adopt: Callable[[Authority], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._adopt = adopt
        self._now = now
        self._pki = config.storage.pki_dir
        self.authority = Authority.load(self._pki)
        self._said = ""
        self._take(*read_pair(config))

    def _take(self, chain: bytes, key: bytes) -> None:
        check_server_credentials(chain, key, self.authority.trust_bundle)
        self._pair = (chain, key)
        self._trusted = self.authority.trust_bundle
        self._mutual = server_configuration(chain, key, self._trusted)
        self._enrolment = server_configuration(chain, key)
        self._leaf = x509.load_pem_x509_certificates(chain)[0]
        self.expires_at = self._leaf.not_valid_after_utc

    def mutual(self) -> grpc.ServerCredentials:
        """For the port that requires client certificates."""
        return reloading_server_credentials(lambda: self._mutual, require_client_auth=True)

    def enrolment(self) -> grpc.ServerCredentials:
        """For the port whose callers have none yet."""
        return reloading_server_credentials(lambda: self._enrolment, require_client_auth=False)

    def refresh(self) -> bool:
        """Read what has changed on the disk, and renew what is due; whether anything was taken.

        What cannot be used leaves everything as it was, and is said once.
        """
        try:
            return self._refresh()
        except (FeddpError, OSError) as error:
            detail = error.message if isinstance(error, FeddpError) else str(error.strerror)
            if detail != self._said:
                self._said = detail
                log.error(
                    "server_certificate_not_reloaded",
                    detail=detail,
                    until=self.expires_at.isoformat(),
                    do="the present one goes on; mend the files before it ends",
                )
            return False

    def _refresh(self) -> bool:
        authority = Authority.load(self._pki)
        changed = (authority.root, authority.trust_bundle) != (
            self.authority.root,
            self.authority.trust_bundle,
        )
        if changed:
            self.authority = authority
            self._adopt(authority)
            log.warning("authority_changed", root=authority.issuer, phase=len(authority.beside))
        taken = self._taken()
        is_own = self._config.server.ssl_cert is None
        named = with_host(hosts_of(self._leaf), self._config.server.transfer_host)
        due = is_due(self._leaf, self.authority, self._now()) or named != hosts_of(self._leaf)
        if is_own and due:
            replace(self._pki, *issue(self.authority, *named, self._now()))
            taken = self._taken()
        if taken:
            self._said = ""
            log.warning("server_certificate_reloaded", until=self.expires_at.isoformat())
        return taken or changed

    def _taken(self) -> bool:
        """Whether there was something else to show or to trust."""
        pair = read_pair(self._config)
        if pair == self._pair and self._trusted == self.authority.trust_bundle:
            return False
        self._take(*pair)
        return True


def is_due(leaf: x509.Certificate, authority: Authority, now: datetime) -> bool:
    """Whether another authority issues, or a third of the certificate's life remains."""
    issuer = leaf.issuer, _key_id(leaf)
    present = authority.issuing.subject, _own_key_id(authority.issuing)
    return issuer != present or now >= renewal_due_at(leaf)


def names_and_addresses(hosts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Hosts as a certificate holds them: DNS names, and IP addresses in their usual spelling."""
    names, addresses = list[str](), list[str]()
    for host in hosts:
        try:
            addresses.append(str(ipaddress.ip_address(host)))
        except ValueError:
            names.append(host)
    return names, addresses


def with_host(named: tuple[list[str], list[str]], host: str) -> tuple[list[str], list[str]]:
    """DNS names and IP addresses of a certificate, and one host more that it has to show."""
    names, addresses = names_and_addresses([host] if host else [])
    return (
        [*named[0], *(one for one in names if one not in named[0])],
        [*named[1], *(one for one in addresses if one not in named[1])],
    )


def hosts_of(leaf: x509.Certificate) -> tuple[list[str], list[str]]:
    """The names and addresses by which the server is reached, as it shows them now."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        one
        for one in names.get_values_for_type(x509.IPAddress)
        if isinstance(one, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    return names.get_values_for_type(x509.DNSName), [str(one) for one in found]


def _key_id(leaf: x509.Certificate) -> bytes | None:
    found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return found.key_identifier


def _own_key_id(authority: x509.Certificate) -> bytes:
    return authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
