"""A certificate for a gateway that ends TLS in front of the coordinator."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from certs.authority import Authority
from certs.enrolment import new_key, save_private_key
from certs.spiffe import SpiffeId
from coordinator.config import load_config
from coordinator.installation import CONFIG_FILE
from coordinator.server_certificate import LIFETIME as SERVER_LIFETIME
from coordinator.server_certificate import names_and_addresses
from coordinator.store import certificates
from coordinator.store.database import Database
from protos.content import write_durable


def issue(folder: Path, hosts: Sequence[str], out: Path) -> datetime:
    """Write `out`/gateway.key, gateway.crt and bundle.pem. When the certificate ends, UTC.

    A coordinator that runs knows the certificate from its next start on.

    Args:
        folder: of `feddp coordinator init`.
        hosts: names or addresses that nodes dial.

    Raises:
        Malformed: CONFIG_INVALID, HOST_INVALID.
        NotFound: AUTHORITY_MISSING.
        Conflict: FILE_EXISTS.
    """
    storage = load_config(folder / CONFIG_FILE, os.environ).storage
    authority = Authority.load(storage.pki_dir)
    names, addresses = names_and_addresses(hosts)
    key = new_key()
    issued = authority.issue(
        key.public_key(),
        SpiffeId(authority.trust_domain, "gateway"),
        now=datetime.now(UTC),
        lifetime=SERVER_LIFETIME,
        dns_names=names,
        ip_addresses=addresses,
    )
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    save_private_key(out / "gateway.key", key)
    database = Database(storage.database_url)
    try:
        database.write_now(lambda connection: certificates.add(connection, issued))
    finally:
        database.close()
    write_durable(out / "gateway.crt", issued.chain_pem, 0o644)
    write_durable(out / "bundle.pem", authority.trust_bundle, 0o644)
    return issued.not_after
