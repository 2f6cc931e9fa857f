"""The certificate of a gateway that ends TLS: issued, renewed in place, and told of in time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from structlog.testing import capture_logs

from certs.authority import Authority
from certs.enrolment import load_certificate_key, new_key, private_pem
from certs.spiffe import SpiffeId
from coordinator.checking.check import check
from coordinator.gateway import certificate as gateway_certificate
from coordinator.gateway.watch import GatewayState, GatewayWatch, state_of
from coordinator.installation import Installation, init
from coordinator.store import certificates
from coordinator.store.database import Database
from protos.errors import NotFound
from tests.integration.federation import run_cli

DAY_S = 86_400.0
LATER = timedelta(days=300)


@pytest.fixture
def installed(tmp_path: Path) -> Installation:
    """A coordinator that has never served."""
    return init(tmp_path / "c", "test.example", host="feddp.example")


def leaf(out: Path) -> x509.Certificate:
    """What is in place, with its own key."""
    found = x509.load_pem_x509_certificates((out / "gateway.crt").read_bytes())[0]
    assert load_certificate_key(out / "gateway.key").public_key() == found.public_key()
    return found


def registered(installed: Installation) -> dict[str, object]:
    """Fingerprint -> record of every certificate."""
    database = Database(f"sqlite:///{installed.folder / 'coordinator.db'}")
    try:
        return dict(database.read_now(certificates.records))
    finally:
        database.close()


def test_a_certificate_that_is_due_is_replaced_under_the_same_names(
    installed: Installation, tmp_path: Path
) -> None:
    """And is registered, with time for a coordinator to see it, before it is in place."""
    out = tmp_path / "gateway"
    gateway_certificate.issue(installed.folder, ["feddp.example", "192.0.2.7"], out)
    before = leaf(out)
    known = set(registered(installed))
    waited: list[float] = []

    def wait(seconds: float) -> None:
        assert leaf(out) == before
        assert len(set(registered(installed)) - known) == 1
        waited.append(seconds)

    now = datetime.now(UTC)
    assert gateway_certificate.renew(installed.folder, out, wait=wait) == (
        before.not_valid_after_utc,
        False,
    )
    assert not waited
    assert leaf(out) == before
    ends_at, is_new = gateway_certificate.renew(installed.folder, out, now=now + LATER, wait=wait)
    after = leaf(out)
    assert (is_new, waited) == (True, [gateway_certificate.KNOWN_AFTER_S])
    assert after.not_valid_after_utc == ends_at
    names = x509.SubjectAlternativeName
    assert after.extensions.get_extension_for_class(names) == (
        before.extensions.get_extension_for_class(names)
    )
    assert after.fingerprint(hashes.SHA256()).hex() in registered(installed)
    assert sorted(path.name for path in out.iterdir()) == [
        "bundle.pem",
        "gateway.crt",
        "gateway.key",
    ]


@pytest.mark.parametrize("renamed", [False, True])
def test_a_renewal_that_was_cut_off_is_finished_or_begun_anew(
    installed: Installation, tmp_path: Path, renamed: bool
) -> None:
    """Cut off before its certificate was in place, its key goes; after, its key is taken."""
    out = tmp_path / "gateway"
    gateway_certificate.issue(installed.folder, ["feddp.example"], out)
    if renamed:
        (out / "gateway.key").rename(out / "gateway-next.key")
        (out / "gateway.key").write_bytes(private_pem(new_key()))
    else:
        (out / "gateway-next.key").write_bytes(private_pem(new_key()))
    assert not gateway_certificate.renew(installed.folder, out)[1]
    leaf(out)
    assert not (out / "gateway-next.key").exists()


def test_there_is_nothing_to_renew_where_nothing_was_issued(
    installed: Installation, tmp_path: Path
) -> None:
    """The message says how to begin."""
    with pytest.raises(NotFound, match="gateway --host NAME") as refused:
        gateway_certificate.renew(installed.folder, tmp_path)
    assert refused.value.reason == "GATEWAY_CERTIFICATE_MISSING"


@pytest.mark.parametrize(
    ("days_left", "level", "told"),
    [
        (200, "ok", "ends at"),
        (29, "warning", "--renew"),
        (-1, "warning", "is over since"),
        (-31, None, ""),
    ],
)
def test_check_says_when_a_gateways_certificate_ends_and_what_to_do(
    installed: Installation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    days_left: float,
    level: str | None,
    told: str,
) -> None:
    """One that ended a month ago has no gateway any more."""
    ends_at = gateway_certificate.issue(installed.folder, ["feddp.example"], tmp_path / "gateway")
    monkeypatch.setattr(
        "coordinator.checking.check.time.time", lambda: ends_at.timestamp() - days_left * DAY_S
    )
    found = [one for one in check(installed.config) if one.subject == "gateway"]
    assert [one.level for one in found] == ([] if level is None else [level])
    assert all(told in one.text for one in found)


def test_check_says_nothing_of_gateways_where_there_is_none(installed: Installation) -> None:
    """Passthrough needs no certificate."""
    assert "gateway" not in {one.subject for one in check(installed.config)}


def test_a_later_certificate_ends_the_warning(installed: Installation, tmp_path: Path) -> None:
    """The newest one counts."""
    first = gateway_certificate.issue(installed.folder, ["feddp.example"], tmp_path / "gateway")
    authority = Authority.load(installed.folder / "pki")
    later = authority.issue(
        new_key().public_key(),
        SpiffeId("test.example", "gateway"),
        now=first - timedelta(days=100),
        lifetime=timedelta(days=365),
    )
    database = Database(f"sqlite:///{installed.folder / 'coordinator.db'}")
    states = []
    try:
        for _ in range(2):
            found = database.read_now(lambda c: state_of(c, "test.example", first.timestamp() + 1))
            states.append(found.state if found else None)
            if len(states) == 1:
                database.write_now(lambda c: certificates.add(c, later))
    finally:
        database.close()
    assert states == ["over", "valid"]


def test_the_log_says_it_once_when_it_ends_soon_and_once_when_it_is_over() -> None:
    """From the start of the coordinator on."""
    watch = GatewayWatch()
    with capture_logs() as said:
        for state in (None, "valid", "ends_soon", "ends_soon", "over", "over", "valid"):
            watch.found(None if state is None else GatewayState(state, 1.8e9))  # type: ignore[arg-type]
    assert [(one["log_level"], one["state"]) for one in said] == [
        ("warning", "ends_soon"),
        ("error", "over"),
    ]
    assert all("--renew" in one["detail"] for one in said)


def test_the_command_issues_renews_and_refuses_both_at_once(
    installed: Installation, tmp_path: Path
) -> None:
    """With --renew the names are those of the present certificate."""
    words = ["coordinator", "gateway", "--dir", str(installed.folder), "--out", str(tmp_path / "g")]
    code, _, error = run_cli(*words)
    assert code == 2
    assert "--renew" in error
    assert run_cli(*words, "--host", "feddp.example", "--renew")[0] == 2
    assert run_cli(*words, "--revoke")[0] == 2
    assert run_cli(*words, "--renew", "--keep", str(tmp_path))[0] == 2
    assert run_cli(*words[:4])[0] == 2
    assert run_cli(*words, "--host", "feddp.example")[0] == 0
    code, out, _ = run_cli(*words, "--renew")
    assert code == 0
    assert "not due yet" in out


def test_every_certificate_but_those_that_are_kept_is_revoked_for_good(
    installed: Installation, tmp_path: Path
) -> None:
    """Also those that a renewal replaced, which lie in no folder any more. Nobody else's is."""
    out, other = tmp_path / "gateway", tmp_path / "sidecar"
    before = set(registered(installed))
    for folder in (out, other):
        gateway_certificate.issue(installed.folder, ["feddp.example"], folder)
    now = datetime.now(UTC)
    gateway_certificate.renew(installed.folder, out, now=now + LATER, wait=lambda _: None)
    assert gateway_certificate.revoke(installed.folder, [out, other]) == 1
    assert gateway_certificate.revoke(installed.folder, [out, other]) == 0
    kept = {leaf(folder).fingerprint(hashes.SHA256()).hex() for folder in (out, other)}
    assert standing(installed) == before | kept
    assert gateway_certificate.revoke(installed.folder) == 2
    assert standing(installed) == before
    assert "gateway" not in {one.subject for one in check(installed.config)}


def test_a_folder_of_another_installation_is_kept_by_nobody(
    installed: Installation, tmp_path: Path
) -> None:
    """A slip in its name would shut the gateway out that serves."""
    other = init(tmp_path / "other", "test.example", host="feddp.example")
    gateway_certificate.issue(installed.folder, ["feddp.example"], tmp_path / "ours")
    gateway_certificate.issue(other.folder, ["feddp.example"], tmp_path / "theirs")
    for folder in (tmp_path / "theirs", tmp_path / "nowhere"):
        with pytest.raises(NotFound) as refused:
            gateway_certificate.revoke(installed.folder, [folder])
        assert refused.value.reason == "GATEWAY_CERTIFICATE_MISSING"
    assert leaf(tmp_path / "ours").fingerprint(hashes.SHA256()).hex() in standing(installed)


def standing(installed: Installation) -> set[str]:
    """Fingerprints of the certificates that are not revoked."""
    database = Database(f"sqlite:///{installed.folder / 'coordinator.db'}")
    try:
        found = database.read_now(certificates.records)
    finally:
        database.close()
    return {one.fingerprint for one in found.values() if not one.revoked}
