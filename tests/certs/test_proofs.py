"""Proofs of older keys: by the very key, over the very request, and fresh."""

from collections.abc import Callable

import pytest

from certs.authority import Authority, IssuedCertificate
from certs.enrolment import make_csr, new_key, spoken
from certs.keyfiles import key_in
from certs.proofs import (
    CERTIFICATE_BYTES_MAX,
    CHALLENGE_S,
    Challenges,
    check_recovery,
    leaf_of,
    prove_recovery,
    prove_rejoin,
    proves_rejoin,
)
from protos.errors import Malformed, Unauthenticated

NodeOf = Callable[[Authority, str], tuple[IssuedCertificate, bytes]]


def test_a_challenge_holds_two_minutes_and_for_this_process_only() -> None:
    """Nothing is kept for it; a changed, cut, older or foreign one is refused, and one of the
    future."""
    mine, other = Challenges(), Challenges()
    nonce = mine.new(1000.0)
    for now_s in (1000.0, 1000.0 + CHALLENGE_S):
        mine.check(nonce, now_s)
    wrong = [
        (nonce, 1002.0 + CHALLENGE_S),
        (nonce, 999.0),
        (bytes((nonce[0] ^ 1,)) + nonce[1:], 1000.0),
        (nonce[:-1] + bytes((nonce[-1] ^ 1,)), 1000.0),
        (nonce[:-1], 1000.0),
        (nonce + b"x", 1000.0),
        (b"", 1000.0),
        (other.new(1000.0), 1000.0),
    ]
    for given, now_s in wrong:
        with pytest.raises(Unauthenticated) as caught:
            mine.check(given, now_s)
        assert caught.value.reason == "CHALLENGE_EXPIRED"
    assert mine.new(1000.0) != mine.new(1000.0)


def test_a_recovery_is_signed_over_its_challenge_and_its_request(
    authority: Authority, node_of: NodeOf
) -> None:
    """The same signature is good for no other of either, and no other key's for these."""
    issued, pem = node_of(authority, "alpha")
    leaf, key, csr, nonce = leaf_of(issued.chain_pem), key_in(pem), make_csr(new_key()), b"n" * 56
    proof = prove_recovery(key, nonce, csr)
    check_recovery(leaf, nonce, csr, proof)
    for wrong in (
        (b"m" * 56, csr, proof),
        (nonce, make_csr(new_key()), proof),
        (nonce + csr[:1], csr[1:], proof),
        (nonce, csr, prove_recovery(new_key(), nonce, csr)),
        (nonce, csr, prove_rejoin(key, csr)),
        (nonce, csr, b""),
    ):
        with pytest.raises(Unauthenticated) as caught:
            check_recovery(leaf, *wrong)
        assert caught.value.reason == "RECOVERY_PROOF_INVALID"


def test_a_join_again_is_signed_by_the_key_of_the_certificate_shown(
    authority: Authority, node_of: NodeOf
) -> None:
    """By that key, over that request."""
    issued, pem = node_of(authority, "alpha")
    leaf, key, csr = leaf_of(issued.chain_pem), key_in(pem), make_csr(new_key())
    assert proves_rejoin(leaf, csr, prove_rejoin(key, csr))
    assert not proves_rejoin(leaf, make_csr(new_key()), prove_rejoin(key, csr))
    assert not proves_rejoin(leaf, csr, prove_rejoin(new_key(), csr))
    assert not proves_rejoin(leaf, csr, prove_recovery(key, b"", csr))


def test_what_is_no_certificate_is_said_to_be_none(authority: Authority, node_of: NodeOf) -> None:
    """Bounded before it is read."""
    chain = node_of(authority, "alpha")[0].chain_pem
    for wrong in (b"", b"-", chain[:100], chain + b"\n" * CERTIFICATE_BYTES_MAX):
        with pytest.raises(Malformed) as caught:
            leaf_of(wrong)
        assert caught.value.reason == "CERTIFICATE_INVALID"
    leaf_of(chain + b"\n")


def test_a_key_is_read_out_in_groups_of_four() -> None:
    """128 bits of it: nobody finds another key with the same."""
    assert spoken("0123456789abcdef" * 4) == "0123-4567-89ab-cdef-0123-4567-89ab-cdef"
