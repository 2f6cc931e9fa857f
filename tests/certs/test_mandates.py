"""What an engineer signs: one form, every part of it covered, nothing half-read."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.mandates import Mandate, Signed, config_digest, is_genuine, new_job_id, parse, sign
from protos.errors import Malformed

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MANDATE = Mandate(
    job_id="job-0123456789abcdef",
    resumption=0,
    public_key=KEY.public_key().public_bytes_raw().hex(),
    project="default",
    data_set="heart",
    task="tabular-classifier",
    task_hash="1" * 64,
    task_config_digest="2" * 64,
    spec_digest="3" * 64,
    initial_model="4" * 64,
    nodes=("alpha", "beta"),
    mechanism="dp",
    epsilon_max=2.0,
    rounds_max=4,
    noise_multiplier=None,
    max_grad_norm=0.1,
    proximal_mu=None,
    delta=1e-5,
    signed_at_s=1_000,
    expires_at_s=2_000,
)
OTHER: dict[str, Any] = {
    "job_id": "job-fedcba9876543210",
    "resumption": 1,
    "project": "other",
    "data_set": "other",
    "task": "null",
    "nodes": ("alpha",),
    "mechanism": "none",
    "epsilon_max": 3.0,
    "rounds_max": 5,
    "signed_at_s": 1_001,
    "expires_at_s": 2_001,
    **dict.fromkeys(("public_key", "task_hash", "task_config_digest"), "5" * 64),
    **dict.fromkeys(("spec_digest", "initial_model"), "5" * 64),
    **dict.fromkeys(("noise_multiplier", "max_grad_norm", "proximal_mu", "delta"), 0.5),
}


def test_what_was_signed_is_read_back_and_is_genuine() -> None:
    """The bytes on the wire are the ones that were signed."""
    signed = sign(KEY, MANDATE)
    assert parse(signed.body) == MANDATE
    assert is_genuine(MANDATE, signed)


@pytest.mark.parametrize("name", [one.name for one in fields(Mandate)])
def test_the_signature_covers_every_field(name: str) -> None:
    """Another value of any one of them is not what was signed."""
    signed = sign(KEY, MANDATE)
    changed = replace(MANDATE, **{name: OTHER[name]})
    assert changed.body() != signed.body
    assert not is_genuine(changed, Signed(changed.body(), signed.signature))


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": ["beta", "alpha"]},
        {"nodes": []},
        {"nodes": ["alpha", "alpha"]},
        {"nodes": "alpha"},
        {"epsilon_max": 2},
        {"epsilon_max": 0.0},
        {"epsilon_max": -1.0},
        {"mechanism": "none"},
        {"mechanism": "other"},
        {"rounds_max": 0},
        {"rounds_max": 1.5},
        {"resumption": True},
        {"expires_at_s": 1_000},
        {"job_id": "job-1"},
        {"public_key": "5" * 63},
        {"task_hash": "x"},
        {"delta": "1e-5"},
        {"project": ""},
        {"format": 2},
        {"more": 1},
    ],
    ids=str,
)
def test_a_malformed_mandate_is_refused_as_one(change: dict[str, Any]) -> None:
    """Before anybody looks at the signature under it."""
    body = json.dumps(
        {**json.loads(MANDATE.body()), **change}, sort_keys=True, separators=(",", ":")
    )
    with pytest.raises(Malformed) as caught:
        parse(body.encode())
    assert caught.value.reason == "MANDATE_INVALID"


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b",", b", "),
        lambda body: body.replace(b'"format":1', b'"format":1,"format":1'),
        lambda body: body.replace(b"2.0", b"2.00"),
        lambda body: body.replace(b"2.0", b"NaN"),
        lambda body: body[:-1],
        lambda body: b"[" * 10_000,
        lambda body: b"\xff",
        lambda body: b" " * 300_000 + body,
    ],
)
def test_only_the_canonical_bytes_are_read(change: Any) -> None:
    """So that one text has one digest; nothing that is large or deep is looked into."""
    with pytest.raises(Malformed):
        parse(change(MANDATE.body()))


def test_a_configuration_has_one_digest_whatever_its_order() -> None:
    """Engineers write YAML, the wire carries JSON: what counts is what it says."""
    assert config_digest({"a": 1, "b": [1.0, "é"]}) == config_digest({"b": [1.0, "é"], "a": 1})
    assert config_digest({"a": 1}) != config_digest({"a": 2})
    assert new_job_id() != new_job_id()
