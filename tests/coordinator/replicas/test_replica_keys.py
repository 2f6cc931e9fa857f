"""A replica gets the keys of its own installation, all of them, and none of an earlier step."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from certs import rollover
from certs.authority import Authority
from certs.authority_state import STATE_FILE, RolloverState, read_state, write_state
from certs.issued import bundle_roots
from coordinator import server_certificate
from coordinator.installation import init
from coordinator.keyring import ledger_public_key
from coordinator.replicas.keys import CHECKED, copy_keys
from protos.errors import Conflict, Malformed, NotFound

HOSTS = ("feddp.example", "join.feddp.example")
DOMAIN = "hospitals.example"


def secret(pki: Path, into: Path) -> Path:
    """The files of a pki folder as a Secret of them is mounted."""
    into.mkdir(exist_ok=True)
    for file in into.iterdir():
        file.unlink()
    for file in pki.rglob("*"):
        if file.is_file():
            (into / ".".join(file.relative_to(pki).parts)).write_bytes(file.read_bytes())
    return into


def leaf(folder: Path) -> x509.Certificate:
    chain = (folder / "pki" / server_certificate.CHAIN).read_bytes()
    return x509.load_pem_x509_certificates(chain)[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Of an installation, as `init` leaves it."""
    init(tmp_path / "made", DOMAIN, host=HOSTS[0])
    return tmp_path / "made/pki"


def test_every_replica_has_the_same_keys_and_a_certificate_of_its_own(
    pki: Path, tmp_path: Path
) -> None:
    """Under both names; the server's key in the Secret is nobody's, and modes are those of
    `init`."""
    mounted = secret(pki, tmp_path / "secret")
    keys = set()
    for name in ("a", "b"):
        replica = tmp_path / name
        done = copy_keys(mounted, replica, HOSTS, DOMAIN)
        assert (done.phase, done.is_ahead, done.made_certificate) == ("settled", False, True)
        for one in ("root.key", "root.crt", "issuing.key", "issuing.crt", "ledger.key"):
            assert (replica / "pki" / one).read_bytes() == (pki / one).read_bytes()
            mode = (replica / "pki" / one).stat().st_mode & 0o777
            assert mode == (pki / one).stat().st_mode & 0o777, one
        names, addresses = server_certificate.hosts_of(leaf(replica))
        assert {*HOSTS, "localhost"} <= set(names)
        assert "127.0.0.1" in addresses
        assert not (replica / CHECKED).exists()
        keys.add((replica / "pki/server.key").read_bytes())
    assert len(keys | {(pki / "server.key").read_bytes()}) == 3


def test_the_next_start_changes_nothing(pki: Path, tmp_path: Path) -> None:
    """No file is written, not even its own certificate while that is good."""
    mounted, replica = secret(pki, tmp_path / "secret"), tmp_path / "a"
    copy_keys(mounted, replica, HOSTS)
    before = {path: path.stat().st_ino for path in replica.rglob("*") if path.is_file()}
    assert not copy_keys(mounted, replica, HOSTS).made_certificate
    assert {path: path.stat().st_ino for path in replica.rglob("*") if path.is_file()} == before


def test_a_certificate_that_is_due_or_lacks_a_name_is_made_anew(pki: Path, tmp_path: Path) -> None:
    """A replica that has never led has not renewed it, and `check` would refuse one that ended."""
    mounted, replica = secret(pki, tmp_path / "secret"), tmp_path / "a"
    copy_keys(mounted, replica, HOSTS[:1])
    assert copy_keys(mounted, replica, HOSTS).made_certificate
    later = datetime.now(UTC) + timedelta(days=400)
    assert copy_keys(mounted, replica, HOSTS, now=later).made_certificate
    assert leaf(replica).not_valid_after_utc > later


def test_a_replica_follows_each_step_of_a_rollover(pki: Path, tmp_path: Path) -> None:
    """The next root is trusted, then the next authority issues and the server's certificate is of
    it; at the end nothing is left of the former but its certificates."""
    mounted, replica = tmp_path / "secret", tmp_path / "a"
    first = Authority.load(pki)
    copy_keys(secret(pki, mounted), replica, HOSTS)
    rollover.begin(pki, DOMAIN)
    assert copy_keys(secret(pki, mounted), replica, HOSTS).phase == "begun"
    assert len(bundle_roots(Authority.load(replica / "pki").trust_bundle)) == 2
    assert leaf(replica).issuer == first.issuing.subject
    rollover.switch(pki)
    done = copy_keys(secret(pki, mounted), replica, HOSTS)
    assert (done.phase, done.made_certificate) == ("switched", True)
    assert done.authority.root == Authority.load(pki).root != first.root
    leaf(replica).verify_directly_issued_by(done.authority.issuing)
    rollover.finish(pki)
    done = copy_keys(secret(pki, mounted), replica, HOSTS)
    assert (done.phase, done.made_certificate) == ("settled", False)
    assert done.authority.beside == ()
    assert not (replica / "pki/root.key").exists()
    assert not (replica / "pki/issuing.key").exists()
    assert contents(replica / "pki").keys() == contents(pki).keys()


def test_an_older_secret_takes_no_step_of_a_rollover_back(pki: Path, tmp_path: Path) -> None:
    """The replica on which `ca-rollover` was run may start again before the Secret is made anew."""
    mounted, replica = secret(pki, tmp_path / "secret"), tmp_path / "a"
    copy_keys(mounted, replica, HOSTS)
    own = replica / "pki"
    for step in (lambda: rollover.begin(own, DOMAIN), lambda: rollover.switch(own)):
        step()
        state = read_state(own)
        assert copy_keys(mounted, replica, HOSTS).is_ahead
        assert read_state(own) == state
    secret(own, mounted)
    rollover.finish(own)
    assert copy_keys(mounted, replica, HOSTS).is_ahead
    assert not Authority.load(own).beside
    assert not copy_keys(secret(own, mounted), replica, HOSTS).is_ahead


@pytest.mark.parametrize(
    ("step", "lost"),
    [
        (0, "ledger.key"),
        (0, "issuing.key"),
        (1, "ca-2.issuing.key"),
        (1, "ca-2.root.crt"),
        (2, "root.crt"),
        (3, "ca-2.issuing.crt"),
    ],
)
def test_keys_that_are_not_whole_change_nothing(
    pki: Path, tmp_path: Path, step: int, lost: str
) -> None:
    """As of a Secret made from the files of the folder alone, without the folders in it."""
    mounted, replica = tmp_path / "secret", tmp_path / "a"
    copy_keys(secret(pki, mounted), replica, HOSTS)
    before = contents(replica)
    steps = (lambda: rollover.begin(pki, DOMAIN), lambda: rollover.switch(pki))
    for one in (*steps, lambda: rollover.finish(pki))[:step]:
        one()
    (secret(pki, mounted) / lost).unlink()
    with pytest.raises(NotFound, match=lost) as refused:
        copy_keys(mounted, replica, HOSTS)
    assert refused.value.reason == "KEYS_INCOMPLETE"
    assert contents(replica) == before
    assert not (replica / CHECKED).exists()


def test_an_authority_that_may_be_kept_elsewhere_is_not_asked_for(
    pki: Path, tmp_path: Path
) -> None:
    """The root's key is needed for nothing that a coordinator does."""
    mounted, replica = secret(pki, tmp_path / "secret"), tmp_path / "a"
    (mounted / "root.key").unlink()
    copy_keys(mounted, replica, HOSTS)
    assert not (replica / "pki/root.key").exists()


def test_keys_of_another_installation_are_refused(pki: Path, tmp_path: Path) -> None:
    """By the trust domain that is expected, and by the ledger key that nodes remember."""
    replica = tmp_path / "a"
    with pytest.raises(Conflict, match=r"trust domain hospitals\.example"):
        copy_keys(secret(pki, tmp_path / "secret"), replica, HOSTS, "other.example")
    copy_keys(tmp_path / "secret", replica, HOSTS)
    before = contents(replica)
    init(tmp_path / "other", DOMAIN)
    with pytest.raises(Conflict, match="another installation"):
        copy_keys(secret(tmp_path / "other/pki", tmp_path / "secret"), replica, HOSTS)
    assert contents(replica) == before


def test_keys_that_do_not_fit_together_are_refused(pki: Path, tmp_path: Path) -> None:
    """Before anything is replaced by them."""
    mounted, replica = secret(pki, tmp_path / "secret"), tmp_path / "a"
    copy_keys(mounted, replica, HOSTS)
    before = contents(replica)
    init(tmp_path / "other", DOMAIN)
    (mounted / "root.crt").write_bytes((tmp_path / "other/pki/root.crt").read_bytes())
    with pytest.raises(Malformed, match=r"root\.crt did not sign"):
        copy_keys(mounted, replica, HOSTS)
    assert contents(replica) == before


def test_a_copy_that_was_cut_off_is_made_whole_by_the_next_start(pki: Path, tmp_path: Path) -> None:
    """Which authority issues is written last, so that what was begun is not taken for done."""
    mounted, replica = secret(pki, tmp_path / "secret"), tmp_path / "a"
    copy_keys(mounted, replica, HOSTS)
    rollover.begin(pki, DOMAIN)
    rollover.switch(pki)
    secret(pki, mounted)
    (replica / CHECKED).mkdir()
    (replica / CHECKED / STATE_FILE).write_bytes(b"half")
    (replica / "pki/ca-2").mkdir()
    (replica / "pki/ca-2/root.crt").write_bytes((pki / "ca-2/root.crt").read_bytes())
    assert copy_keys(mounted, replica, HOSTS).phase == "switched"
    assert Authority.load(replica / "pki").issuer == Authority.load(pki).issuer
    assert ledger_public_key(replica / "pki") == ledger_public_key(pki)


def test_a_path_in_the_rollovers_state_leads_nowhere(pki: Path, tmp_path: Path) -> None:
    """An authority's folder is one of those that the Secret can hold."""
    mounted, replica = secret(pki, tmp_path / "secret"), tmp_path / "a"
    write_state(mounted, RolloverState(".."))
    with pytest.raises(NotFound):
        copy_keys(mounted, replica, HOSTS)
