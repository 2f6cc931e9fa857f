"""The node's keys, and the proofs that it holds them."""

import hashlib
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from certs import enrolment
from protos.errors import Conflict, Malformed, NotFound

IDENTITY_POINT = b"\x01" + bytes(31)


def csr_reason(der: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        enrolment.public_key_of_csr(der)
    return caught.value.reason


def ledger_reason(public: bytes, csr: bytes, proof: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        enrolment.check_ledger_key(public, csr, proof)
    return caught.value.reason


@pytest.mark.parametrize("make", [enrolment.new_key, enrolment.new_ledger_key])
def test_key_file_is_private_from_the_start(
    tmp_path: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is born with mode 0600, whatever the umask; no later chmod closes a gap."""
    assert callable(make)
    monkeypatch.setattr(os, "chmod", None)
    monkeypatch.setattr(os, "fchmod", None)
    before = os.umask(0)
    try:
        enrolment.save_private_key(tmp_path / "node.key", make())
    finally:
        os.umask(before)
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "node.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


def test_key_is_read_back(tmp_path: Path) -> None:
    """What was saved is what a restart loads."""
    key, ledger_key = enrolment.new_key(), enrolment.new_ledger_key()
    enrolment.save_private_key(tmp_path / "node.key", key)
    enrolment.save_private_key(tmp_path / "ledger.key", ledger_key)
    assert enrolment.load_certificate_key(tmp_path / "node.key").private_numbers() == (
        key.private_numbers()
    )
    loaded = enrolment.load_ledger_key(tmp_path / "ledger.key")
    assert loaded.private_bytes_raw() == ledger_key.private_bytes_raw()


def test_key_file_is_never_written_over(tmp_path: Path) -> None:
    """A second enrolment in the same folder does not destroy the first one's identity."""
    path = tmp_path / "node.key"
    enrolment.save_private_key(path, enrolment.new_key())
    before = path.read_bytes()
    with pytest.raises(Conflict) as caught:
        enrolment.save_private_key(path, enrolment.new_key())
    assert caught.value.reason == "FILE_EXISTS"
    assert path.read_bytes() == before


def test_link_is_not_followed(tmp_path: Path) -> None:
    """A link that somebody planted where the key will be does not carry the key elsewhere."""
    (tmp_path / "node.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict):
        enrolment.save_private_key(tmp_path / "node.key", enrolment.new_key())
    assert not (tmp_path / "elsewhere").exists()


def test_failed_write_leaves_no_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves no half key that would block the next attempt."""

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        enrolment.save_private_key(tmp_path / "node.key", enrolment.new_key())
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_key_files_are_named(tmp_path: Path) -> None:
    """The error names the file, and never its contents."""
    with pytest.raises(NotFound) as missing:
        enrolment.load_certificate_key(tmp_path / "node.key")
    assert missing.value.reason == "KEY_MISSING"
    (tmp_path / "bad").write_bytes(b"-----BEGIN PRIVATE KEY-----\nsecret stuff")
    enrolment.save_private_key(tmp_path / "ledger.key", enrolment.new_ledger_key())
    enrolment.save_private_key(tmp_path / "p384.key", ec.generate_private_key(ec.SECP384R1()))
    enrolment.save_private_key(tmp_path / "node.key", enrolment.new_key())
    for name in ("bad", "ledger.key", "p384.key"):
        with pytest.raises(Malformed) as caught:
            enrolment.load_certificate_key(tmp_path / name)
        assert caught.value.reason == "KEY_INVALID"
        assert name in caught.value.message
        assert "secret" not in caught.value.message
    with pytest.raises(Malformed):
        enrolment.load_ledger_key(tmp_path / "node.key")


def test_request_gives_its_public_key() -> None:
    """The authority learns exactly the key that the node made."""
    key = enrolment.new_key()
    assert enrolment.public_key_of_csr(enrolment.make_csr(key)) == key.public_key()


def test_request_names_nobody() -> None:
    """A node's own request asks for no name at all."""
    csr = x509.load_der_x509_csr(enrolment.make_csr(enrolment.new_key()))
    assert list(csr.subject) == []
    assert list(csr.extensions) == []


def test_request_for_a_key_of_somebody_else_is_refused() -> None:
    """A request with another's public key put in fails its self-signature."""
    mine, theirs = enrolment.new_key(), enrolment.new_key()
    form = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    der = enrolment.make_csr(mine)
    forged = der.replace(
        mine.public_key().public_bytes(*form), theirs.public_key().public_bytes(*form)
    )
    assert forged != der
    assert csr_reason(forged) == "CSR_INVALID"


def test_every_damaged_request_is_refused_or_means_the_same() -> None:
    """Each single flipped bit gives CSR_INVALID; none gives another key or another error.

    The one byte that may be taken counts the unused bits at the end of the signature.
    """
    key = enrolment.new_key()
    der = enrolment.make_csr(key)
    taken = set()
    for index in range(len(der)):
        for bit in range(8):
            damaged = der[:index] + bytes((der[index] ^ (1 << bit),)) + der[index + 1 :]
            try:
                read = enrolment.public_key_of_csr(damaged)
            except Malformed:
                continue
            assert read == key.public_key()
            taken.add(index)
    assert len(taken) <= 1


def test_truncated_and_foreign_requests_are_refused() -> None:
    """Cut off, padded, PEM, empty or enormous: CSR_INVALID."""
    der = enrolment.make_csr(enrolment.new_key())
    for length in range(len(der)):
        assert csr_reason(der[:length]) == "CSR_INVALID"
    assert csr_reason(der + b"\0") == "CSR_INVALID"
    pem = x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM)
    assert csr_reason(pem) == "CSR_INVALID"


def test_large_request_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller without any identity cannot make the coordinator parse megabytes."""

    def parse(der: bytes) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(x509, "load_der_x509_csr", parse)
    assert csr_reason(b"0" * (enrolment.CSR_BYTES_MAX + 1)) == "CSR_INVALID"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "secp256k1", "RSA", "Ed25519"],
)
def test_only_p256_is_certified(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    """A well-signed request with any other kind of key is refused."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    der = builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)
    assert csr_reason(der) == "CSR_INVALID"


def test_ledger_key_is_proved() -> None:
    """The holder of the ledger key proves it for its request."""
    key, csr = enrolment.new_ledger_key(), enrolment.make_csr(enrolment.new_key())
    public = enrolment.public_bytes_of(key)
    proof = enrolment.prove_ledger_key(key, csr)
    assert len(public) == 32
    enrolment.check_ledger_key(public, csr, proof)
    key.public_key().verify(proof, b"feddp-join-v1\0" + csr)


def test_proof_holds_for_one_request_and_key_only() -> None:
    """A proof that somebody overheard is worth nothing with another request or key."""
    key, other = enrolment.new_ledger_key(), enrolment.new_ledger_key()
    csr, csr2 = (enrolment.make_csr(enrolment.new_key()) for _ in range(2))
    public, proof = enrolment.public_bytes_of(key), enrolment.prove_ledger_key(key, csr)
    assert ledger_reason(public, csr2, proof) == "LEDGER_KEY_INVALID"
    assert ledger_reason(enrolment.public_bytes_of(other), csr, proof) == "LEDGER_KEY_INVALID"
    assert ledger_reason(public, csr, key.sign(csr)) == "LEDGER_KEY_INVALID"
    for wrong in (b"", proof[:-1], proof + b"\0", bytes(64)):
        assert ledger_reason(public, csr, wrong) == "LEDGER_KEY_INVALID"
    for wrong in (b"", public[:-1], public + b"\0", b"\xff" * 32):
        assert ledger_reason(wrong, csr, proof) == "LEDGER_KEY_INVALID"


def test_weak_ledger_key_is_refused() -> None:
    """Under a key of small order a signature holds for any message: such a key proves nothing."""
    csr = enrolment.make_csr(enrolment.new_key())
    universal = IDENTITY_POINT + bytes(32)
    weak = ed25519.Ed25519PublicKey.from_public_bytes(IDENTITY_POINT)
    weak.verify(universal, b"anything at all")
    assert ledger_reason(IDENTITY_POINT, csr, universal) == "LEDGER_KEY_INVALID"
    signed_identity = IDENTITY_POINT[:31] + b"\x80"
    assert ledger_reason(signed_identity, csr, universal) == "LEDGER_KEY_INVALID"


def test_every_weak_key_of_the_list_is_really_weak() -> None:
    """One signature that nobody made holds for some of 64 messages under each listed point."""
    forged = 0
    for public in enrolment._SMALL_ORDER:
        for nonce in range(64):
            message = hashlib.sha256(bytes((nonce,))).digest()
            if _verifies(public, IDENTITY_POINT + bytes(32), message):
                forged += 1
                break
    assert forged == len(enrolment._SMALL_ORDER)


def _verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (ValueError, InvalidSignature):
        return False
    return True
