"""The authority: what it writes, what it signs, what it refuses."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from certs.authority import CLOCK_SKEW, NODE_LIFETIME, Authority
from certs.enrolment import new_key, public_key_of_csr
from certs.spiffe import SpiffeId
from protos.errors import Conflict, InvariantBroken, Malformed, NotFound, WrongPhase

FILES = {"root.key": 0o600, "issuing.key": 0o600, "root.crt": 0o644, "issuing.crt": 0o644}
NODE = SpiffeId("hospitals.example", "node", "a")


def leaf_of(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


def openssl_verify(folder: Path, bundle: bytes, chain: bytes, purpose: str) -> str:
    """What `openssl verify` says about the first certificate of `chain`: "OK" or its complaint."""
    (folder / "bundle.pem").write_bytes(bundle)
    (folder / "chain.pem").write_bytes(chain)
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
    command += ["-CAfile", "bundle.pem", "-untrusted", "chain.pem", "chain.pem"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return "OK" if done.returncode == 0 else done.stderr


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """Keys are 0600 and the folder 0700 even where new files are open to everybody."""
    before = os.umask(0)
    try:
        Authority.create(tmp_path / "deep" / "ca", "hospitals.example")
    finally:
        os.umask(before)
    folder = tmp_path / "deep" / "ca"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()} == FILES


def test_existing_folder_is_closed_to_others(tmp_path: Path) -> None:
    """A folder that was there, and open, is closed."""
    tmp_path.chmod(0o755)
    Authority.create(tmp_path, "hospitals.example")
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", sorted(FILES))
def test_create_never_writes_over_a_file(tmp_path: Path, name: str) -> None:
    """One file of an authority is enough to refuse, and nothing else is touched."""
    (tmp_path / name).write_text("precious")
    tmp_path.chmod(0o755)
    with pytest.raises(Conflict) as caught:
        Authority.create(tmp_path, "hospitals.example")
    assert caught.value.reason == "ALREADY_INITIALISED"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_create_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle leaves no half authority that would block the next attempt."""
    written = []

    def fsync_with_full_disk(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync_with_full_disk)
    with pytest.raises(OSError, match="No space"):
        Authority.create(tmp_path, "hospitals.example")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    Authority.create(tmp_path, "hospitals.example")


def test_race_of_two_creations_keeps_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that appear after the first look are not written over either."""
    first = Authority.create(tmp_path, "hospitals.example")
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(Conflict) as caught:
        Authority.create(tmp_path, "hospitals.example")
    assert caught.value.reason == "ALREADY_INITIALISED"
    assert Authority.load(tmp_path).root == first.root


def test_wrong_trust_domain_makes_no_authority(tmp_path: Path) -> None:
    """A trust domain that cannot be one is refused before anything is written."""
    with pytest.raises(Malformed) as caught:
        Authority.create(tmp_path / "ca", "Hospitals/Example")
    assert caught.value.reason == "SPIFFE_INVALID"
    assert not (tmp_path / "ca").exists()


def test_load_gives_what_create_made(tmp_path: Path) -> None:
    """An authority survives a restart, and signs without its root key."""
    made = Authority.create(tmp_path, "hospitals.example")
    (tmp_path / "root.key").unlink()
    loaded = Authority.load(tmp_path)
    assert loaded.trust_domain == "hospitals.example"
    assert loaded.trust_bundle == made.trust_bundle == (tmp_path / "root.crt").read_bytes()
    issued = loaded.issue(
        new_key().public_key(), NODE, now=datetime.now(UTC), lifetime=NODE_LIFETIME
    )
    leaf_of(issued.chain_pem).verify_directly_issued_by(made.issuing)


@pytest.mark.parametrize("name", ["root.crt", "issuing.crt", "issuing.key"])
def test_load_names_a_missing_file(tmp_path: Path, name: str) -> None:
    """A folder without an authority is AUTHORITY_MISSING."""
    Authority.create(tmp_path, "hospitals.example")
    (tmp_path / name).unlink()
    with pytest.raises(NotFound) as caught:
        Authority.load(tmp_path)
    assert caught.value.reason == "AUTHORITY_MISSING"


@pytest.mark.parametrize("name", ["root.crt", "issuing.crt", "issuing.key"])
@pytest.mark.parametrize("how", ["garbage", "of another authority"])
def test_load_refuses_files_that_do_not_belong(
    tmp_path: Path, other_authority: Authority, name: str, how: str
) -> None:
    """Damaged or mixed-up files are AUTHORITY_INVALID, not an authority that signs rubbish."""
    Authority.create(tmp_path / "ca", "hospitals.example")
    others = (tmp_path / "other" / name).read_bytes()
    (tmp_path / "ca" / name).write_bytes(b"garbage" if how == "garbage" else others)
    with pytest.raises(Malformed) as caught:
        Authority.load(tmp_path / "ca")
    assert caught.value.reason == "AUTHORITY_INVALID"


def test_load_refuses_an_authority_without_trust_domain(tmp_path: Path) -> None:
    """Certificates that some other program made name no trust domain and are refused."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    bare = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    Authority.create(tmp_path, "hospitals.example")
    (tmp_path / "root.crt").write_bytes(bare)
    (tmp_path / "issuing.crt").write_bytes(bare)
    (tmp_path / "issuing.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(Malformed) as caught:
        Authority.load(tmp_path)
    assert caught.value.reason == "AUTHORITY_INVALID"


def test_authorities_have_their_shape(authority: Authority) -> None:
    """Root for ten years over one authority of five that can sign leaves only, both P-256."""
    for certificate, path_length, years in ((authority.root, 1, 10), (authority.issuing, 0, 5)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=path_length)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.key_cert_sign
        assert not usage.digital_signature
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)
        days = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days
        assert abs(days - years * 365.25) < 2
    assert authority.root.public_key() != authority.issuing.public_key()


def test_node_certificate_says_what_the_authority_says(authority: Authority) -> None:
    """One URI name, client use only, valid for 168 hours and backdated by one."""
    now = datetime(2026, 11, 23, 12, 0, 0, 999_999, tzinfo=UTC)
    issued = authority.issue(new_key().public_key(), NODE, now=now, lifetime=NODE_LIFETIME)
    leaf = leaf_of(issued.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://hospitals.example/node/a")]
    assert leaf.not_valid_before_utc == now.replace(microsecond=0) - timedelta(hours=1)
    assert leaf.not_valid_after_utc == now.replace(microsecond=0) + timedelta(hours=168)
    assert (issued.not_before, issued.not_after) == (
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
    )
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert issued.fingerprint == leaf.fingerprint(hashes.SHA256()).hex()
    assert int(issued.serial, 16) == leaf.serial_number
    assert issued.spiffe_id == NODE


def test_chain_is_leaf_then_issuing(authority: Authority) -> None:
    """The chain that a peer presents leads to the root in the bundle, which is not in it."""
    issued = authority.issue(
        new_key().public_key(), NODE, now=datetime.now(UTC), lifetime=NODE_LIFETIME
    )
    leaf, issuing = x509.load_pem_x509_certificates(issued.chain_pem)
    leaf.verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.trust_bundle))


def test_names_in_the_request_are_ignored(authority: Authority) -> None:
    """A node that asks for another's name, a host name and an authority's rights gets none."""
    key = new_key()
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")]))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier("spiffe://hospitals.example/coordinator"),
                    x509.DNSName("localhost"),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    issued = authority.issue(
        public_key_of_csr(csr), NODE, now=datetime.now(UTC), lifetime=NODE_LIFETIME
    )
    leaf = leaf_of(issued.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://hospitals.example/node/a")]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.subject.rfc4514_string() == "CN=a"


@pytest.mark.parametrize(
    ("identity", "server"),
    [
        (NODE, False),
        (SpiffeId("hospitals.example", "user", "ada"), False),
        (SpiffeId("hospitals.example", "coordinator"), True),
        (SpiffeId("hospitals.example", "router"), True),
    ],
)
def test_openssl_verifies_each_kind_for_its_purpose(
    tmp_path: Path,
    authority: Authority,
    other_authority: Authority,
    identity: SpiffeId,
    server: bool,
) -> None:
    """Under OpenSSL's strict rules all are good clients, and only servers are good servers."""
    issued = authority.issue(
        new_key().public_key(),
        identity,
        now=datetime.now(UTC),
        lifetime=NODE_LIFETIME,
        dns_names=["Coordinator.hospitals.example"] if server else [],
        ip_addresses=["127.0.0.1", "::1"] if server else [],
    )
    chain = issued.chain_pem
    assert openssl_verify(tmp_path, authority.trust_bundle, chain, "sslclient") == "OK"
    as_server = openssl_verify(tmp_path, authority.trust_bundle, chain, "sslserver")
    assert (as_server == "OK") is server
    elsewhere = openssl_verify(tmp_path, other_authority.trust_bundle, chain, "sslclient")
    assert elsewhere != "OK"


def test_web_rules_verify_the_chain_for_its_lifetime_only(authority: Authority) -> None:
    """An independent verifier takes the chain for its names while it lasts, and not after."""
    now = datetime.now(UTC)
    issued = authority.issue(
        new_key().public_key(),
        SpiffeId("hospitals.example", "coordinator"),
        now=now,
        lifetime=NODE_LIFETIME,
        dns_names=["coordinator.hospitals.example"],
    )
    leaf, issuing = x509.load_pem_x509_certificates(issued.chain_pem)
    policy = PolicyBuilder().store(Store([authority.root]))
    name = x509.DNSName("coordinator.hospitals.example")
    policy.time(now).build_server_verifier(name).verify(leaf, [issuing])
    verified = policy.time(now).build_client_verifier().verify(leaf, [issuing])
    assert verified.subjects is not None
    with pytest.raises(VerificationError):
        policy.time(now).build_server_verifier(x509.DNSName("a.example")).verify(leaf, [issuing])
    late = policy.time(now + NODE_LIFETIME + timedelta(seconds=1)).build_client_verifier()
    with pytest.raises(VerificationError):
        late.verify(leaf, [issuing])


def test_leaf_cannot_sign_a_certificate(tmp_path: Path, authority: Authority) -> None:
    """A node that signs a certificate with its own key convinces nobody."""
    key, victim = new_key(), new_key()
    now = datetime.now(UTC)
    issued = authority.issue(key.public_key(), NODE, now=now, lifetime=NODE_LIFETIME)
    leaf = leaf_of(issued.chain_pem)
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")]))
        .issuer_name(leaf.subject)
        .public_key(victim.public_key())
        .serial_number(1)
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    chain = forged + issued.chain_pem
    assert openssl_verify(tmp_path, authority.trust_bundle, chain, "sslclient") != "OK"


def test_certificate_never_outlasts_its_authority(tmp_path: Path) -> None:
    """Near the authority's end the lifetime is cut; after it nothing is signed."""
    made = datetime(2026, 1, 1, tzinfo=UTC)
    authority = Authority.create(tmp_path, "hospitals.example", made)
    last = authority.issuing.not_valid_after_utc
    issued = authority.issue(
        new_key().public_key(), NODE, now=last - timedelta(hours=1), lifetime=NODE_LIFETIME
    )
    assert issued.not_after == last
    with pytest.raises(WrongPhase) as caught:
        authority.issue(new_key().public_key(), NODE, now=last, lifetime=NODE_LIFETIME)
    assert caught.value.reason == "AUTHORITY_EXPIRED"


@pytest.mark.parametrize(
    ("dns_names", "ip_addresses"),
    [
        (["*.example"], []),
        (["a b"], []),
        ([""], []),
        (["a..b"], []),
        (["-a.example"], []),
        (["a" * 64], []),
        (["a." * 128 + "a"], []),
        (["127.0.0.1"], []),
        (["\u00e4.example"], []),
        (["a.example\n"], []),
        ([], ["localhost"]),
        ([], ["10.0.0.0/8"]),
        ([], [""]),
    ],
)
def test_wrong_host_names_are_refused(
    authority: Authority, dns_names: list[str], ip_addresses: list[str]
) -> None:
    """A server's certificate carries plain DNS names and addresses, nothing else."""
    with pytest.raises(Malformed) as caught:
        authority.issue(
            new_key().public_key(),
            SpiffeId("hospitals.example", "coordinator"),
            now=datetime.now(UTC),
            lifetime=NODE_LIFETIME,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
        )
    assert caught.value.reason == "HOST_INVALID"


def test_authority_signs_nothing_that_it_should_not(authority: Authority) -> None:
    """Another trust domain, curve, host names for a node, a time without zone: never signed."""
    key = new_key().public_key()
    now = datetime.now(UTC)
    week = NODE_LIFETIME
    elsewhere = SpiffeId("other.example", "node", "a")
    with pytest.raises(InvariantBroken):
        authority.issue(key, elsewhere, now=now, lifetime=week)
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(InvariantBroken):
        authority.issue(p384, NODE, now=now, lifetime=week)
    with pytest.raises(InvariantBroken):
        authority.issue(key, NODE, now=now, lifetime=week, dns_names=["localhost"])
    with pytest.raises(InvariantBroken):
        authority.issue(key, NODE, now=now, lifetime=week, ip_addresses=["127.0.0.1"])
    with pytest.raises(InvariantBroken):
        authority.issue(key, NODE, now=now.replace(tzinfo=None), lifetime=week)
    with pytest.raises(InvariantBroken):
        authority.issue(key, NODE, now=now, lifetime=timedelta(0))


def test_repr_shows_no_key(authority: Authority) -> None:
    """An authority in a log line names its certificates and nothing of its key."""
    assert "key" not in repr(authority).lower()
