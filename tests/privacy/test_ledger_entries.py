"""Ledger entries: canonical bytes, hashes, signatures and one spelling of each."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_samples import KEY, OTHER_KEY, PUBLIC, chain, statement

from privacy.ledger import (
    GENESIS,
    KINDS,
    append,
    entry_hash,
    from_json,
    sign,
    signature_ok,
    to_json,
)
from privacy.releases import MECHANISMS
from protos.errors import Malformed


def test_canonical_bytes_are_the_documented_ones() -> None:
    """A line of domain, then JSON with sorted keys, no spaces and ASCII only."""
    one = statement("a-ü", noise_multiplier=2, sample_rate=1, round=3)
    assert one.canonical() == (
        b'feddp-ledger-v1\n{"account":"alpha/patients","attempt_id":"a-\\u00fc",'
        b'"dataset":"heart-disease","declared_n":199,"job_id":"job-1","kind":"reserve",'
        b'"mechanism":"gaussian","node":"alpha","noise_multiplier":2.0,"project":"default",'
        b'"round":3,"sample_rate":1.0,"steps":1,"unit":"patient"}'
    )


def test_an_outsider_can_recompute_hash_and_signature_from_json() -> None:
    """With the exported JSON, blake3 and Ed25519 alone, as docs/ledger.md says."""
    entry = chain(statement(), statement(kind="post"))[1]
    exported = json.loads(json.dumps(to_json(entry)))
    signature = bytes.fromhex(exported.pop("node_signature"))
    digest = exported.pop("hash")

    def canonical(value: dict[str, Any]) -> bytes:
        return b"feddp-ledger-v1\n" + json.dumps(
            value, sort_keys=True, separators=(",", ":")
        ).encode("ascii")

    assert blake3(canonical(exported)).hexdigest() == digest
    del exported["seq"], exported["prev_hash"]
    KEY.public_key().verify(signature, canonical(exported))


@settings(max_examples=100, deadline=None)
@given(
    st.text(min_size=1, max_size=256),
    st.integers(0, 2**63 - 1),
    st.floats(1e-300, 1e300),
    st.integers(1, 2**32 - 1),
)
def test_json_gives_the_same_entry_back(text: str, count: int, noise: float, steps: int) -> None:
    """Any id, any number: through JSON text and back, hash and signature still fit."""
    one = statement(text, round=count, noise_multiplier=noise, steps=steps, job_id=text)
    entry = chain(one)[0]
    again = from_json(json.loads(json.dumps(to_json(entry))))
    assert again == entry
    assert again.hash == entry_hash(1, GENESIS, again.statement)
    assert signature_ok(PUBLIC, again.statement, again.node_signature)


TEXT = st.text(min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(
    texts=st.lists(TEXT, min_size=7, max_size=7),
    prev_hash=TEXT,
    numbers=st.lists(st.integers(1, 2**32 - 1), min_size=4, max_size=4),
    noise=st.floats(5e-324, 1.7e308, exclude_min=False),
    rate=st.floats(5e-324, 1.0),
    mechanism=st.sampled_from(MECHANISMS),
    kind=st.sampled_from(KINDS),
)
def test_bytes_written_by_hand_are_those_of_the_json_library(
    texts: list[str],
    prev_hash: str,
    numbers: list[int],
    noise: float,
    rate: float,
    mechanism: str,
    kind: str,
) -> None:
    """Signed bytes, hash and digest of any statement, whatever stands in its texts."""
    names = ("attempt_id", "project", "node", "account", "dataset", "job_id", "unit")
    has_noise = mechanism not in ("no_data", "none")
    one = statement(
        **dict(zip(names, texts, strict=True)),
        kind=kind,
        round=numbers[0],
        declared_n=numbers[1],
        steps=numbers[2],
        mechanism=mechanism,
        noise_multiplier=noise if has_noise else None,
        sample_rate=rate if mechanism == "poisson_gaussian" else 1,
    )

    def written(**more: object) -> bytes:
        body = {**one.fields(), **more}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return b"feddp-ledger-v1\n" + text.encode("ascii")

    assert one.canonical() == written()
    assert one.digest() == blake3(written(kind="reserve")).hexdigest()
    hashed = blake3(written(seq=numbers[3], prev_hash=prev_hash)).hexdigest()
    assert entry_hash(numbers[3], prev_hash, one) == hashed


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "refund"},
        {"attempt_id": ""},
        {"attempt_id": "x" * 257},
        {"node": 7},
        {"job_id": "\ud800"},
        {"round": -1},
        {"round": 1.0},
        {"round": True},
        {"declared_n": 0},
        {"declared_n": "199"},
        {"noise_multiplier": float("nan")},
        {"mechanism": "none"},
        {"steps": 0},
    ],
)
def test_a_statement_that_means_nothing_is_refused(changes: dict[str, Any]) -> None:
    """Before it can be signed, hashed or booked."""
    with pytest.raises(Malformed):
        statement(**changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("unit"),
        lambda d: d.update(note="x"),
        lambda d: d.update(seq=0),
        lambda d: d.update(seq=1.0),
        lambda d: d.update(hash=d["hash"].upper()),
        lambda d: d.update(hash=d["hash"][:-1]),
        lambda d: d.update(prev_hash=None),
        lambda d: d.update(node_signature=d["node_signature"].upper()),
        lambda d: d.update(node_signature="zz"),
        lambda d: d.update(node_signature=d["node_signature"][2:]),
    ],
)
def test_an_entry_has_one_spelling(change: Callable[[dict[str, Any]], object]) -> None:
    """Missing, extra or respelled fields are refused, so a changed byte is a changed entry."""
    value = to_json(chain(statement())[0])
    change(value)
    with pytest.raises(Malformed):
        from_json(value)


def test_signatures_hold_for_one_statement_and_one_key() -> None:
    """Another kind, another key, a short or an empty signature or key: no."""
    one = statement()
    signature = sign(KEY, one)
    assert signature_ok(PUBLIC, one, signature)
    assert not signature_ok(PUBLIC, one.resolved("void"), signature)
    assert not signature_ok(OTHER_KEY.public_key().public_bytes_raw(), one, signature)
    for public, given_signature in ((PUBLIC, b""), (PUBLIC, signature[:-1]), (b"", signature)):
        assert not signature_ok(public, one, given_signature)


def test_an_entry_never_follows_one_of_another_account() -> None:
    """Chains do not cross."""
    with pytest.raises(Malformed):
        append(statement(account="alpha/other"), chain(statement())[0])
