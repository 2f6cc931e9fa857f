"""What libsodium accepts in a verification is what the ledger's rule accepts, at every edge."""

import pytest
from ledger_samples import FILTERS, KEY, KEYS, PUBLIC, good_chain, statement

from privacy import quick_signatures
from privacy.entries import is_signed, sign
from privacy.ledger import Entry, append, verify
from privacy.quick_signatures import REFUSED, surely_signed
from privacy.signature_pool import SignaturePool

SPECCHECK = [
    (
        "small A and R, S is 0",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
        "0000000000000000000000000000000000000000000000000000000000000000",
        True,
    ),
    (
        "small A",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43"
        "a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        True,
    ),
    (
        "small R",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"
        "8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
        True,
    ),
    (
        "mixed A and R that cancel",
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
        "9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f"
        "87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009",
        True,
    ),
    (
        "R is not canonical, its canonical bytes were hashed",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        "03be9678ac102edcd92b0210bb34d7428d12ffc5df5f37e359941266a4e35f0f",
        False,
    ),
    (
        "R is not canonical, its own bytes were hashed",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        "ca8c5b64cd208982aa38d4936621a4775aa233aa0505711d8fdcfdaa943d4908",
        False,
    ),
    (
        "A is small and not canonical, its canonical bytes were hashed",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "e96b7021eb39c1a163b6da4e3093dcd3f21387da4cc4572be588fafae23c155b",
        "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dc"
        "a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        False,
    ),
    (
        "A is small and not canonical, its own bytes were hashed",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f",
        "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dc"
        "a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
        True,
    ),
]
"""Cases 0 to 3 and 8 to 11 of Chalkias, Garillot and Nikolaenko 2020 (eprint 2020/1244),
https://github.com/novifinancial/ed25519-speccheck/blob/main/cases.json: what is special, key,
message, signature, and whether the ledger's rule accepts it. 4 to 7 are `REFUSED`."""


@pytest.fixture(autouse=True)
def _tried_anew() -> None:
    """What a process has found out about its libsodium, no test leaves to the next."""
    quick_signatures._keeps_the_rule.cache_clear()


@pytest.mark.parametrize(("key", "message", "signature", "accepted"), [c[1:] for c in SPECCHECK])
def test_at_the_edges_of_ed25519_the_ledgers_rule_decides(
    key: str, message: str, signature: str, accepted: bool
) -> None:
    """Small orders, mixed orders, other encodings: libsodium accepts nothing that the rule does
    not, and a pool, which asks it first, answers as the rule does."""
    case = (bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature))
    assert is_signed(*case) is accepted
    assert accepted or not surely_signed(*case)
    with SignaturePool(1) as pool:
        pool.add(7, *case)
        assert pool.wrong() == (frozenset() if accepted else {7})


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_laxer_rules_accept_is_refused(case: tuple[bytes, bytes, bytes]) -> None:
    """A cofactor, or an S above the order, is no way in, by either library."""
    assert not is_signed(*case)
    assert not surely_signed(*case)


def test_what_honest_nodes_sign_needs_no_second_look() -> None:
    """Else the quick way would be none."""
    one = statement()
    assert surely_signed(PUBLIC, one.canonical(), sign(KEY, one))
    for place in (0, 31, 32, 63):
        changed = bytearray(sign(KEY, one))
        changed[place] ^= 1
        assert not surely_signed(PUBLIC, one.canonical(), bytes(changed))
    assert not surely_signed(PUBLIC, one.canonical() + b" ", sign(KEY, one))


def test_bytes_that_are_cut_elsewhere_are_no_signature() -> None:
    """Libsodium takes signature and message as one: where the one ends is not its to say."""
    message = statement().canonical()
    signature = sign(KEY, statement())
    assert not surely_signed(PUBLIC, signature[-1:] + message, signature[:-1])
    assert not surely_signed(PUBLIC, message[1:], signature + message[:1])
    assert not surely_signed(PUBLIC, message, b"")
    assert not surely_signed(PUBLIC[:-1], message, signature)
    assert not surely_signed(b"", message, signature)


@pytest.mark.parametrize("lax", range(len(REFUSED)))
def test_a_libsodium_with_another_rule_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, lax: int
) -> None:
    """Its next version multiplies by the cofactor: one wrong yes, and the rule is asked for all."""
    strict = quick_signatures.crypto_sign_open

    def laxer(signed: bytes, key: bytes) -> bytes:
        wrong_key, message, signature = REFUSED[lax]
        if (signed, key) == (signature + message, wrong_key):
            return message
        return strict(signed, key)

    one = statement()
    monkeypatch.setattr(quick_signatures, "crypto_sign_open", laxer)
    assert not surely_signed(*REFUSED[lax])
    assert not surely_signed(PUBLIC, one.canonical(), sign(KEY, one))
    assert is_signed(PUBLIC, one.canonical(), sign(KEY, one))


def test_a_ledger_that_was_refused_is_not_accepted_by_more_processes() -> None:
    """An entry whose signature is not its node's, or whose node's key is another one, is the first
    bad one, however many processes look."""
    mixed, _, signature = REFUSED[0]
    entries: list[Entry] = [*good_chain()[:1]]
    entries.append(append(statement("a9"), entries[0], signature))
    for processes in (1, 2):
        found = verify(entries, FILTERS, {**KEYS, "alpha": mixed}, processes=processes)
        assert [one.seq for one in found.problems] == [1]
        found = verify(entries, FILTERS, KEYS, processes=processes)
        assert [one.seq for one in found.problems] == [2]
