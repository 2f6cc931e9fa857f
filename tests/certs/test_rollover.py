"""One authority after another: who is trusted and who issues, at each step."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from certs import rollover
from certs.authority import Authority
from certs.authority_state import STATE_FILE, read_state
from certs.enrolment import new_key
from certs.issued import bundle_roots
from certs.spiffe import SpiffeId
from protos.errors import Malformed, WrongPhase
from tests.certs.conftest import TRUST_DOMAIN


def roots(pki: Path) -> list[x509.Certificate]:
    return bundle_roots(Authority.load(pki).trust_bundle)


def leaf(authority: Authority) -> x509.Certificate:
    key, name = new_key(), SpiffeId(TRUST_DOMAIN, "node", "alpha")
    issued = authority.issue(
        key.public_key(), name, now=datetime.now(UTC), lifetime=timedelta(hours=1)
    )
    assert (issued.issuer, issued.bundle) == (authority.issuer, authority.bundle_digest)
    return x509.load_pem_x509_certificate(issued.chain_pem)


def test_both_are_trusted_from_begin_to_finish_and_one_issues(tmp_path: Path) -> None:
    """The former until `switch`, the next from then on; at the end nothing is left of the former
    but its certificates. It can be done again."""
    pki = tmp_path / "pki"
    for _ in range(2):
        first = Authority.load(pki) if pki.exists() else Authority.create(pki, TRUST_DOMAIN)
        alone = first.bundle_digest
        rollover.begin(pki, TRUST_DOMAIN)
        begun = Authority.load(pki)
        assert begun.root == first.root
        assert len(roots(pki)) == 2
        leaf(begun).verify_directly_issued_by(first.issuing)
        assert begun.bundle_digest != alone
        former = pki / read_state(pki).current
        rollover.switch(pki)
        switched = Authority.load(pki)
        assert switched.root != first.root
        assert set(roots(pki)) == {first.root, switched.root}
        assert switched.bundle_digest == begun.bundle_digest, "the same roots: nothing to learn"
        leaf(switched).verify_directly_issued_by(switched.issuing)
        rollover.finish(pki)
        assert roots(pki) == [switched.root]
        assert not (former / "root.key").exists()
        assert not (former / "issuing.key").exists()
        Authority.load(pki)


def test_no_step_is_taken_out_of_turn(tmp_path: Path) -> None:
    """Each refusal leaves everything as it was."""
    pki = tmp_path / "pki"
    Authority.create(pki, TRUST_DOMAIN)
    steps = {
        "begin": lambda: rollover.begin(pki, TRUST_DOMAIN),
        "switch": lambda: rollover.switch(pki),
        "finish": lambda: rollover.finish(pki),
    }
    for wanted in ("begin", "switch", "finish"):
        before = read_state(pki)
        for name, step in steps.items():
            if name != wanted:
                with pytest.raises(WrongPhase):
                    step()
                assert read_state(pki) == before
        steps[wanted]()


@pytest.mark.parametrize("text", ["", "[]", '{"current": ""}', '{"current": "../x"}', '{"x": 1}'])
def test_a_damaged_state_is_said_to_be_that(tmp_path: Path, text: str) -> None:
    """Never read as "no rollover": the other authority would issue."""
    Authority.create(tmp_path / "pki", TRUST_DOMAIN)
    (tmp_path / "pki" / STATE_FILE).write_text(text)
    with pytest.raises(Malformed) as caught:
        Authority.load(tmp_path / "pki")
    assert caught.value.reason == "AUTHORITY_INVALID"
