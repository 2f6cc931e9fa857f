"""Who could still connect after the next step of a rollover of the authority, read from the
database with the server running or stopped."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from certs import rollover
from certs.authority import Authority
from certs.authority_state import Phase, read_state
from coordinator.config.config import CoordinatorConfig, load_config
from coordinator.installation import CONFIG_FILE
from coordinator.store import certificates
from coordinator.store.database import Database
from protos.errors import NotFound, WrongPhase


@dataclass(frozen=True, slots=True)
class Rollover:
    """Where a rollover stands.

    Attributes:
        behind: SPIFFE ID and end of the certificate of each who would be shut out by the next step;
            also of nodes that are off and may still replace one that has ended.
        roots: fingerprints of the roots that are trusted, the issuing one first.
    """

    phase: Phase
    behind: tuple[tuple[str, float], ...]
    roots: tuple[str, ...]


def status(folder: Path) -> Rollover:
    """How the rollover of an installation stands.

    Raises:
        NotFound: INSTALLATION_MISSING, AUTHORITY_MISSING.
        Malformed: CONFIG_INVALID, AUTHORITY_INVALID.
        Unavailable: DATABASE_UNREACHABLE.
    """
    config = _config(folder)
    pki, database = config.storage.pki_dir, Database(config.storage.database_url)
    recovery_s = config.security.recovery_days * 86_400.0
    now_s = time.time()
    try:
        authority, phase = Authority.load(pki), read_state(pki).phase
        users = database.read_now(lambda c: certificates.in_use(c, now_s, recovery_s))
    finally:
        database.close()
    if phase == "begun":
        late = [one for one in users if one.bundle != authority.bundle_digest]
    elif phase == "switched":
        # Recovery shows no certificate to the server: it is enough to trust what the server shows.
        late = [
            one
            for one in users
            if one.issuer != authority.issuer
            and (one.ends_at_s > now_s or one.bundle != authority.bundle_digest)
        ]
    else:
        late = []
    algorithm = authority.root.signature_hash_algorithm
    roots = (authority.root, *authority.beside)
    return Rollover(
        phase,
        tuple((one.spiffe_id, one.ends_at_s) for one in late),
        tuple(one.fingerprint(algorithm).hex(":").upper() for one in roots),  # type: ignore[arg-type]
    )


def begin(folder: Path) -> Rollover:
    """Make the authority that is to follow; a running coordinator tells of it within seconds.

    Raises:
        WrongPhase: ROLLOVER_UNDER_WAY.
    """
    pki, database = _open(folder)
    database.close()
    rollover.begin(pki, Authority.load(pki).trust_domain)
    return status(folder)


def switch(folder: Path, *, force: bool = False) -> Rollover:
    """Let the next authority issue.

    Args:
        force: also if somebody would be shut out.

    Raises:
        WrongPhase: ROLLOVER_NOT_BEGUN, ROLLOVER_TOO_EARLY.
    """
    _check_ready(status(folder), "switch", force)
    rollover.switch(_open(folder)[0])
    return status(folder)


def finish(folder: Path, *, force: bool = False) -> Rollover:
    """End the trust in the former authority.

    Args:
        force: also if somebody would be shut out.

    Raises:
        WrongPhase: ROLLOVER_NOT_BEGUN, ROLLOVER_TOO_EARLY.
    """
    _check_ready(status(folder), "finish", force)
    rollover.finish(_open(folder)[0])
    return status(folder)


def _check_ready(found: Rollover, step: str, force: bool) -> None:
    if found.behind and not force:
        names = ", ".join(name for name, _ in found.behind[:5])
        more = "" if len(found.behind) <= 5 else f" and {len(found.behind) - 5} more"
        raise WrongPhase(
            "ROLLOVER_TOO_EARLY",
            f"{step} would shut out {names}{more}: nodes follow with their next renewal (one that "
            "is off, when its agent runs again), people with `feddp profile renew`; wait for them, "
            "or give --force: who is shut out joins again with a new token",
        )


def _open(folder: Path) -> tuple[Path, Database]:
    config = _config(folder)
    return config.storage.pki_dir, Database(config.storage.database_url)


def _config(folder: Path) -> CoordinatorConfig:
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise NotFound("INSTALLATION_MISSING", f"{folder} holds no {CONFIG_FILE}")
    return load_config(config_path, os.environ)
