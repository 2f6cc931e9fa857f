"""A new coordinator: its configuration, authority, server certificate and operator's profile."""

import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from sqlalchemy import Connection

from certs.authority import PERSON_LIFETIME, Authority
from certs.enrolment import key_digest, new_key, private_pem, save_private_key
from certs.profile_folder import NEXT_KEY, adopt, describe, waiting_key
from certs.spiffe import SpiffeId, check_trust_domain
from coordinator import server_certificate
from coordinator.config.sections import postgresql_url
from coordinator.keyring import ledger_key
from coordinator.store import certificates, users
from coordinator.store.database import Database
from protos.content import write_durable
from protos.errors import Conflict, Malformed, NotFound

CONFIG_FILE = "coordinator.yaml"
OPERATOR = "operator"
OPERATOR_ROLES = frozenset({"operator", "engineer", "privacy-officer"})


@dataclass(frozen=True, slots=True)
class Installation:
    """Where things are."""

    folder: Path
    config: Path
    profile: Path
    trust_domain: str
    root_fingerprint: str


def init(
    folder: Path,
    trust_domain: str,
    *,
    host: str = "localhost",
    enrollment_host: str = "",
    port: int = 8443,
    enrollment_port: int = 8444,
    health_port: int = 8080,
    database_url: str = "",
    keep_url: bool = True,
) -> Installation:
    """Make an installation in `folder`: all of it, or an error and nothing.

    Args:
        host: the name or address that nodes and people dial; it goes into the server's
            certificate, as does `enrollment_host`, which joining nodes dial if it is another: a
            gateway with one port tells them apart by it. With "localhost" or a loopback address the
            server listens on loopback.
        database_url: an empty PostgreSQL database instead of a SQLite file in `folder`.
        keep_url: whether to write it into the configuration; False where it comes from the
            environment, which also the server will have.

    Raises:
        Conflict: ALREADY_INITIALISED.
        Malformed: SPIFFE_INVALID, HOST_INVALID, DIRECTORY_UNUSABLE, DATABASE_URL_INVALID,
            DATABASE_DRIVER_MISSING, DATABASE_UNUSABLE.
        Unavailable: DATABASE_UNREACHABLE.
    """
    check_trust_domain(trust_domain)
    config = folder / CONFIG_FILE
    for path in (config, folder / "pki", folder / "coordinator.db", folder / "operator"):
        if path.exists():
            raise Conflict(
                "ALREADY_INITIALISED",
                f"{folder} already holds {path.name}; nothing was changed. Choose an empty "
                "directory, or serve what is there",
            )
    # Before anything is made: a database that cannot be had leaves nothing behind.
    database = _empty_database(database_url) if database_url else None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Malformed(
            "DIRECTORY_UNUSABLE", f"{folder} cannot be made ({error.strerror}); choose another"
        ) from None
    pki = folder / "pki"
    authority = Authority.create(pki, trust_domain)
    ledger_key(pki)
    if database is None:
        database = Database(f"sqlite:///{folder / 'coordinator.db'}")
        database.migrate()
    _issue_server(pki, authority, [host, enrollment_host] if enrollment_host else [host])
    profile = _issue_operator(folder / "operator", authority, database, f"{host}:{port}")
    database.close()
    settings: dict[str, dict[str, object]] = {
        "server": {
            "host": "127.0.0.1" if _is_loopback(host) else "0.0.0.0",  # noqa: S104
            "port": port,
            "enrollment_port": enrollment_port,
            "health_port": health_port,
            "public_host": host,
        }
    }
    if enrollment_host:
        settings["server"]["public_enrollment_host"] = enrollment_host
    if database_url and keep_url:
        settings["storage"] = {"database_url": database_url}
    text = (
        "# One coordinator. Every key, its meaning and its default: config/full.yaml of the\n"
        "# project, or `feddp coordinator check --config` on this file.\n"
        + yaml.safe_dump(settings, sort_keys=False)
    )
    write_durable(config, text.encode())
    fingerprint = authority.root.fingerprint(authority.root.signature_hash_algorithm)  # type: ignore[arg-type]
    return Installation(folder, config, profile, trust_domain, fingerprint.hex(":").upper())


def _empty_database(url: str) -> Database:
    """A PostgreSQL database with our tables and nobody in them."""
    try:
        database = Database(postgresql_url(url))
    except ValueError as error:
        raise Malformed("DATABASE_URL_INVALID", f"the database's address: {error}") from None
    database.migrate()
    if database.read_now(users.all_users):
        database.close()
        raise Conflict(
            "ALREADY_INITIALISED",
            "the database already belongs to an installation; nothing was changed. Give an empty "
            "one, or serve what is there",
        )
    return database


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _issue_server(pki: Path, authority: Authority, hosts: list[str]) -> None:
    names, addresses = server_certificate.names_and_addresses([*server_certificate.HERE, *hosts])
    key, chain = server_certificate.issue(authority, names, addresses, datetime.now(UTC))
    save_private_key(pki / server_certificate.KEY, key)
    write_durable(pki / server_certificate.CHAIN, chain, 0o644)


def reissue_operator(folder: Path) -> Path:
    """A new key and certificate for the operator's profile, and the roots to trust now.

    Raises:
        NotFound: INSTALLATION_MISSING, AUTHORITY_MISSING, USER_UNKNOWN.
        Malformed: CONFIG_INVALID, AUTHORITY_INVALID.
    """
    from coordinator.config.config import load_config

    if not (folder / CONFIG_FILE).is_file():
        raise NotFound("INSTALLATION_MISSING", f"{folder} holds no {CONFIG_FILE}")
    config = load_config(folder / CONFIG_FILE, os.environ)
    authority, database = (
        Authority.load(config.storage.pki_dir),
        Database(config.storage.database_url),
    )
    profile, key = folder / "operator", new_key()
    try:
        if OPERATOR not in database.read_now(users.all_users):
            raise NotFound("USER_UNKNOWN", f"there is no user {OPERATOR} in {folder}'s database")
        issued = authority.issue(
            key.public_key(),
            SpiffeId(authority.trust_domain, "user", OPERATOR),
            now=datetime.now(UTC),
            lifetime=PERSON_LIFETIME,
        )
        digest = key_digest(key.public_key())
        database.write_now(lambda connection: certificates.add(connection, issued, digest))
    finally:
        database.close()
    # As in a renewal: a reader finds a pair that works.
    write_durable(profile / NEXT_KEY, private_pem(key))
    adopt(profile, issued.chain_pem, authority.trust_bundle)
    return profile


def _issue_operator(folder: Path, authority: Authority, database: Database, address: str) -> Path:
    now = datetime.now(UTC)
    database.write_now(lambda inside: issue_operator(inside, folder, authority, address, now))
    user = users.User(OPERATOR, OPERATOR_ROLES, "default")
    database.write_now(lambda connection: users.add_user(connection, user))
    return folder


def issue_operator(
    connection: Connection, folder: Path, authority: Authority, address: str, now: datetime
) -> None:
    """Make the operator's profile in `folder`; its certificate counts once this commits.

    Args:
        address: "host:port" that the profile dials.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    key = waiting_key(folder)
    issued = authority.issue(
        key.public_key(),
        SpiffeId(authority.trust_domain, "user", OPERATOR),
        now=now,
        lifetime=PERSON_LIFETIME,
    )
    certificates.add(connection, issued, key_digest(key.public_key()))
    describe(folder, address, OPERATOR)
    adopt(folder, issued.chain_pem, authority.trust_bundle)
