"""The installation's keys, from a Secret to the folder of one of several coordinators.

A Secret has no folders: `pki/ca-2/root.crt` is its key `ca-2.root.crt`. Each replica makes the
server's certificate itself, as any of them can: a private key that one has need not travel.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from certs.authority import Authority
from certs.authority_state import STATE_FILE, Phase, RolloverState, read_state
from certs.enrolment import load_ledger_key, public_bytes_of
from certs.rollover import FORMER_KEYS
from coordinator import keyring, server_certificate
from protos.content import sync_directory, write_durable
from protos.errors import Conflict, NotFound

CHECKED: Final = "pki.checked"
"""Where the copy is looked at as a whole before anything is replaced."""

_NEEDED: Final = ("root.crt", "issuing.crt", "issuing.key")
_OF_AN_AUTHORITY: Final = re.compile(
    r"(?:(ca-[1-9][0-9]*)\.)?(root\.key|root\.crt|issuing\.key|issuing\.crt)"
)
_ORDER: Final[dict[Phase, int]] = {"switched": 0, "settled": 1, "begun": 2}


@dataclass(frozen=True, slots=True)
class Copied:
    """What was done.

    Attributes:
        authority: what this replica now issues with.
        phase: of a rollover of the authority.
        is_ahead: the replica's own rollover is further than the Secret's, and was kept.
        made_certificate: the server's certificate was made anew.
    """

    authority: Authority
    phase: Phase
    is_ahead: bool
    made_certificate: bool


def copy_keys(
    source: Path,
    folder: Path,
    hosts: Sequence[str],
    trust_domain: str = "",
    now: datetime | None = None,
) -> Copied:
    """Let `folder`/pki have the keys that `source` holds; each start of a replica does it again.

    Args:
        source: files as the keys of a Secret are mounted, one folder.
        hosts: names and addresses that nodes and people dial, for the server's certificate.
        trust_domain: what the authority must be of; empty for any.

    Raises:
        NotFound: KEYS_INCOMPLETE.
        Malformed: AUTHORITY_INVALID, KEY_INVALID, HOST_INVALID.
        Conflict: OTHER_INSTALLATION.
        WrongPhase: AUTHORITY_EXPIRED.
    """
    pki, checked = folder / "pki", folder / CHECKED
    shutil.rmtree(checked, ignore_errors=True)
    checked.mkdir(mode=0o700, parents=True)
    try:
        files = _files(source)
        for path, data in files.items():
            (checked / path).parent.mkdir(mode=0o700, exist_ok=True)
            write_durable(checked / path, data)
        state = read_state(checked)
        _check_complete(files, state, source)
        _check_same(checked, pki, trust_domain)
    finally:
        shutil.rmtree(checked, ignore_errors=True)
    pki.mkdir(mode=0o700, exist_ok=True)
    present = read_state(pki)
    is_ahead = _progress(present) > _progress(state)
    if not is_ahead:
        _replace(pki, files)
        _remove_former_keys(pki, state)
    authority = Authority.load(pki)
    made = _keep_server_certificate(pki, authority, hosts, now or datetime.now(UTC))
    return Copied(authority, (present if is_ahead else state).phase, is_ahead, made)


def _files(source: Path) -> dict[Path, bytes]:
    """Path within `pki` -> what it holds, of the authorities' files and the ledger's key."""
    found = {}
    for file in sorted(source.iterdir()) if source.is_dir() else ():
        if match := _OF_AN_AUTHORITY.fullmatch(file.name):
            path = Path(match[1] or ".", match[2])
        elif file.name in (STATE_FILE, keyring.FILE):
            path = Path(file.name)
        else:
            continue
        found[path] = file.read_bytes()
    return found


def _check_complete(files: Mapping[Path, bytes], state: RolloverState, source: Path) -> None:
    missing = [path for path in _needed(state) if path not in files]
    if missing:
        names = ", ".join(".".join(path.parts) for path in missing)
        raise NotFound(
            "KEYS_INCOMPLETE",
            f"{source} lacks {names}: it holds the files of the installation's pki folder, those "
            "of folders in it as ca-2.root.crt; make it from the whole folder",
        )


def _needed(state: RolloverState) -> Iterator[Path]:
    yield Path(keyring.FILE)
    for name in (state.current, state.next):
        if name:
            yield from (Path(name, one) for one in _NEEDED)
    if state.former:
        yield Path(state.former, "root.crt")


def _check_same(checked: Path, pki: Path, trust_domain: str) -> None:
    """That these keys fit together, and belong to what this replica has been till now."""
    found = Authority.load(checked).trust_domain
    if trust_domain and found != trust_domain:
        raise Conflict(
            "OTHER_INSTALLATION",
            f"the keys are of the trust domain {found}, and {trust_domain} is expected; nothing "
            "was changed",
        )
    key = load_ledger_key(checked / keyring.FILE)
    present = keyring.ledger_public_key(pki)
    if present and present != public_bytes_of(key):
        raise Conflict(
            "OTHER_INSTALLATION",
            f"{pki} has another ledger key: it belongs to another installation, and nothing was "
            "changed. Give a new volume, or the keys of that installation",
        )


def _progress(state: RolloverState) -> tuple[int, int]:
    """Grows with each step of a rollover."""
    number = state.current.removeprefix("ca-")
    return int(number) if number.isdecimal() else 1, _ORDER[state.phase]


def _replace(pki: Path, files: Mapping[Path, bytes]) -> None:
    """What is cut off is done again at the next start; which authority issues comes last."""
    for path, data in sorted(files.items(), key=lambda one: one[0] == Path(STATE_FILE)):
        target = pki / path
        if target.exists() and target.read_bytes() == data:
            continue
        target.parent.mkdir(mode=0o700, exist_ok=True)
        write_durable(target, data, 0o644 if target.suffix == ".crt" else 0o600)


def _remove_former_keys(pki: Path, state: RolloverState) -> None:
    """As `finish` does where it is run."""
    in_use = {state.current, state.next, state.former}
    for folder in (pki, *pki.glob("ca-*")):
        if ("." if folder == pki else folder.name) in in_use:
            continue
        for name in FORMER_KEYS:
            (folder / name).unlink(missing_ok=True)
        sync_directory(folder)


def _keep_server_certificate(
    pki: Path, authority: Authority, hosts: Sequence[str], now: datetime
) -> bool:
    """Make it where there is none, or where it is due: a replica that never led renews none."""
    wanted = server_certificate.names_and_addresses([*server_certificate.HERE, *hosts])
    try:
        leaf = x509.load_pem_x509_certificates((pki / server_certificate.CHAIN).read_bytes())[0]
    except (FileNotFoundError, ValueError):
        pass
    else:
        keys = (pki / server_certificate.KEY, pki / server_certificate.NEXT_KEY)
        names, addresses = server_certificate.hosts_of(leaf)
        has_all = set(wanted[0]) <= set(names) and set(wanted[1]) <= set(addresses)
        is_due = server_certificate.is_due(leaf, authority, now)
        if has_all and not is_due and any(key.exists() for key in keys):
            return False
    server_certificate.replace(pki, *server_certificate.issue(authority, *wanted, now))
    return True
