"""A certificate for a gateway that ends TLS in front of the coordinator, and its successor."""

import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority, IssuedCertificate
from certs.enrolment import load_certificate_key, new_key, private_pem, save_private_key
from certs.spiffe import SpiffeId
from coordinator.config.config import CoordinatorConfig, load_config
from coordinator.installation import CONFIG_FILE
from coordinator.server_certificate import LIFETIME as SERVER_LIFETIME
from coordinator.server_certificate import (
    hosts_of,
    is_due,
    names_and_addresses,
)
from coordinator.store import certificates
from coordinator.store.database import Database
from protos.content import sync_directory, write_durable
from protos.errors import NotFound

KEY, NEXT_KEY, CHAIN, BUNDLE = "gateway.key", "gateway-next.key", "gateway.crt", "bundle.pem"
KNOWN_AFTER_S: Final = 12.0
"""A coordinator that runs looks for new certificates every 5 s; by then it knows one for sure."""


def issue(folder: Path, hosts: Sequence[str], out: Path) -> datetime:
    """Write `out`/gateway.key, gateway.crt and bundle.pem. When the certificate ends, UTC.

    A coordinator that runs knows the certificate within seconds.

    Args:
        folder: of `feddp coordinator init`.
        hosts: names or addresses that nodes dial.

    Raises:
        Malformed: CONFIG_INVALID, HOST_INVALID.
        NotFound: AUTHORITY_MISSING.
        Conflict: FILE_EXISTS.
    """
    config = load_config(folder / CONFIG_FILE, os.environ)
    authority = Authority.load(config.storage.pki_dir)
    key = new_key()
    issued = _issued(authority, key, *names_and_addresses(hosts))
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    save_private_key(out / KEY, key)
    _register(config, issued)
    write_durable(out / CHAIN, issued.chain_pem, 0o644)
    write_durable(out / BUNDLE, authority.trust_bundle, 0o644)
    return issued.not_after


def renew(
    folder: Path,
    out: Path,
    *,
    now: datetime | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> tuple[datetime, bool]:
    """Replace what `issue` wrote to `out` if it is due: a third of its life is left, or another
    authority issues now. Safe to run as often as one likes, and again after it was cut off.

    The new certificate is registered first and put in place when a coordinator that runs knows it.
    Its key waits beside the present one, the certificate is renamed over, then the key; between
    the two a reader may find a pair that does not fit, which Envoy refuses and reads again.

    Args:
        now: aware; the present time unless a test has another.
        wait: gets seconds.

    Returns:
        When the certificate in place ends, UTC, and whether it is a new one.

    Raises:
        Malformed: CONFIG_INVALID.
        NotFound: AUTHORITY_MISSING, GATEWAY_CERTIFICATE_MISSING.
    """
    config = load_config(folder / CONFIG_FILE, os.environ)
    authority = Authority.load(config.storage.pki_dir)
    leaf = _present(out)
    _finish(out, leaf)
    if (out / BUNDLE).read_bytes() != authority.trust_bundle:
        write_durable(out / BUNDLE, authority.trust_bundle, 0o644)
    if not is_due(leaf, authority, now or datetime.now(UTC)):
        return leaf.not_valid_after_utc, False
    key = new_key()
    issued = _issued(authority, key, *hosts_of(leaf))
    write_durable(out / NEXT_KEY, private_pem(key))
    _register(config, issued)
    wait(KNOWN_AFTER_S)
    write_durable(out / CHAIN, issued.chain_pem, 0o644)
    _finish(out, _present(out))
    return issued.not_after, True


def revoke(folder: Path, keep: Sequence[Path] = ()) -> int:
    """Refuse every certificate that a gateway ever got, for good. A coordinator that runs cuts who
    came through one within seconds, and keeps it in `storage.revocations_file`.

    Args:
        keep: folders of `issue`, whose certificates stay.

    Returns:
        How many were not revoked before.

    Raises:
        Malformed: CONFIG_INVALID.
        NotFound: AUTHORITY_MISSING, GATEWAY_CERTIFICATE_MISSING.
    """
    config = load_config(folder / CONFIG_FILE, os.environ)
    identity = SpiffeId(Authority.load(config.storage.pki_dir).trust_domain, "gateway")
    kept = [_present(out).fingerprint(hashes.SHA256()).hex() for out in keep]
    database = Database(config.storage.database_url)
    try:
        known = database.read_now(certificates.records)
        if strange := [one for one, print_ in zip(keep, kept, strict=True) if print_ not in known]:
            raise NotFound(
                "GATEWAY_CERTIFICATE_MISSING",
                f"what {strange[0] / CHAIN} holds is no certificate of this installation, and "
                "nothing was revoked: give the folder that the gateway has its files from",
            )
        return database.write_now(lambda inside: certificates.revoke(inside, identity, but=kept))
    finally:
        database.close()


def _present(out: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates((out / CHAIN).read_bytes())[0]
    except (OSError, ValueError):
        raise NotFound(
            "GATEWAY_CERTIFICATE_MISSING",
            f"{out / CHAIN} is no certificate that can be renewed; issue one with `feddp "
            "coordinator gateway --host NAME` into an empty folder",
        ) from None


def _finish(out: Path, leaf: x509.Certificate) -> None:
    """Put the key in place that waits for the present certificate; drop one that waits for none."""
    waiting = out / NEXT_KEY
    if not waiting.exists():
        return
    if load_certificate_key(waiting).public_key() == leaf.public_key():
        waiting.replace(out / KEY)
    else:
        waiting.unlink()
    sync_directory(out)


def _issued(
    authority: Authority,
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    addresses: Sequence[str],
) -> IssuedCertificate:
    return authority.issue(
        key.public_key(),
        SpiffeId(authority.trust_domain, "gateway"),
        now=datetime.now(UTC),
        lifetime=SERVER_LIFETIME,
        dns_names=names,
        ip_addresses=addresses,
    )


def _register(config: CoordinatorConfig, issued: IssuedCertificate) -> None:
    database = Database(config.storage.database_url)
    try:
        database.write_now(lambda connection: certificates.add(connection, issued))
    finally:
        database.close()
