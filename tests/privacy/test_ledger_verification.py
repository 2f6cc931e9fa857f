"""Verification: every change of an exported chain is found, and its first bad entry named."""

import dataclasses
import json
import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ledger_samples import (
    ACCOUNT,
    FILTER,
    FILTERS,
    KEY,
    KEYS,
    OTHER_KEY,
    chain,
    good_chain,
    statement,
)

from privacy import signature_pool
from privacy.ledger import (
    GENESIS,
    Entry,
    Statement,
    Verification,
    append,
    entry_hash,
    from_json,
    sign,
    to_json,
    verify,
)
from protos.errors import Malformed


def test_a_good_chain_verifies_and_lists_unattested_posts() -> None:
    """Nothing is wrong; a post without signature is listed, as a charge needs no proof."""
    entries = good_chain()
    found = verify(entries, FILTERS, KEYS)
    assert found.ok
    assert [(one.account, one.seq) for one in found.unattested] == [(ACCOUNT, 7)]
    assert found.counts == {"reserve": 4, "post": 2, "void": 1, "limit": 0, "open": 1}
    assert found.heads == {ACCOUNT: (7, entries[-1].hash)}
    cost = FILTER.cost_units(statement().release)
    assert found.balances[ACCOUNT].posted_units == 2 * cost
    assert verify([], FILTERS, KEYS).ok


def first_bad(entries: list[Entry]) -> int:
    found = verify(entries, FILTERS, KEYS)
    assert not found.ok
    return found.problems[0].seq


def tampered(text: str, g: random.Random) -> str:
    place = g.randrange(len(text))
    other = g.choice([c for c in "0123456789abcdefxyz-" if c != text[place]])
    return text[:place] + other + text[place + 1 :]


@pytest.mark.parametrize("field", list(to_json(good_chain()[0])))
@pytest.mark.parametrize("index", range(7))
def test_a_changed_byte_of_any_field_is_found(field: str, index: int) -> None:
    """In any entry of an exported chain; reading it fails, or the first bad entry is named."""
    g = random.Random(f"{field}{index}")
    for _ in range(5):
        exported = [to_json(entry) for entry in good_chain()]
        value = exported[index][field]
        if field == "node_signature" and value == "":
            value = "00"
        changed: Any = tampered(str(value), g)
        if isinstance(value, (int, float)):
            try:
                changed = type(value)(changed)
            except ValueError:
                changed = value + 1
            if changed == value:
                changed = value + 1
        exported[index][field] = changed
        try:
            entries = [from_json(json.loads(json.dumps(one))) for one in exported]
        except Malformed:
            continue
        found = verify(entries, FILTERS, KEYS)
        assert not found.ok
        named = {(one.account, one.seq) for one in found.problems}
        if field == "account":
            assert (changed, index + 1) in named
        else:
            assert named == {(ACCOUNT, index + 1)}


def test_removed_repeated_and_swapped_entries_are_found() -> None:
    """The place where the chain breaks is named; a cut end shows in the head only."""
    entries = good_chain()
    for index in range(6):
        assert first_bad(entries[:index] + entries[index + 1 :]) == index + 1
        swapped = [*entries]
        swapped[index], swapped[index + 1] = swapped[index + 1], swapped[index]
        assert first_bad(swapped) == index + 1
        assert first_bad(entries[: index + 1] + entries[index:]) == index + 2
    cut = verify(entries[:-1], FILTERS, KEYS)
    assert cut.ok
    assert cut.heads != verify(entries, FILTERS, KEYS).heads


def rehashed(statements: list[Statement], signatures: list[bytes]) -> list[Entry]:
    """A chain that whoever holds the database can make: every hash is right."""
    entries: list[Entry] = []
    for one, signature in zip(statements, signatures, strict=True):
        entries.append(append(one, entries[-1] if entries else None, signature))
    return entries


def test_a_rewritten_chain_cannot_keep_the_nodes_signatures() -> None:
    """Whoever rewrites every hash still cannot lower a signed cost."""
    entries = good_chain()
    for index in range(6):
        statements = [one.statement for one in entries]
        statements[index] = dataclasses.replace(statements[index], noise_multiplier=99.0)
        assert first_bad(rehashed(statements, [e.node_signature for e in entries])) == index + 1


def test_void_needs_the_nodes_signature() -> None:
    """Giving budget back without the node's word is refused; so is a forged word."""
    reserve, void = statement(), statement(kind="void")
    for signature in (b"", sign(OTHER_KEY, void), sign(KEY, reserve), bytes(64)):
        assert first_bad(rehashed([reserve, void], [b"", signature])) == 2
    assert verify(rehashed([reserve, void], [b"", sign(KEY, void)]), FILTERS, KEYS).ok


def test_forged_signatures_are_found_on_every_kind() -> None:
    """A signature that is there must be right, also where none is needed."""
    reserve, post = statement(), statement(kind="post")
    assert first_bad(rehashed([reserve], [sign(OTHER_KEY, reserve)])) == 1
    assert first_bad(rehashed([reserve, post], [b"", sign(KEY, reserve)])) == 2
    signed = rehashed([reserve], [sign(KEY, reserve)])
    assert "no ledger key" in verify(signed, FILTERS, {}).problems[0].text


@pytest.mark.parametrize(
    "steps",
    [
        [("a1", "reserve"), ("a1", "reserve")],
        [("a1", "post")],
        [("a1", "void")],
        [("a1", "reserve"), ("a1", "post"), ("a1", "post")],
        [("a1", "reserve"), ("a1", "post"), ("a1", "void")],
        [("a1", "reserve"), ("a1", "void"), ("a1", "post")],
        [("a1", "reserve"), ("a1", "void"), ("a1", "reserve")],
    ],
)
def test_in_a_chain_each_attempt_is_reserved_once_and_resolved_once(
    steps: list[tuple[str, str]],
) -> None:
    """A second resolution is a fault at its own entry, even with valid signatures."""
    assert first_bad(chain(*(statement(a, k) for a, k in steps))) == len(steps)


def test_a_post_that_differs_from_its_reservation_is_found() -> None:
    """What was released is what was reserved."""
    assert first_bad(chain(statement(), statement(kind="post", noise_multiplier=99.0))) == 2


def test_a_chain_above_its_limit_is_found() -> None:
    """Also when every hash and signature is right: the limit is checked entry by entry."""
    entries = chain(*(statement(f"a{n}") for n in range(11)))
    found = verify(entries, FILTERS, KEYS)
    assert not found.ok
    assert found.problems[0].seq == 1 + FILTER.limit_units // FILTER.cost_units(statement().release)
    poisson = statement(mechanism="poisson_gaussian", sample_rate=0.1)
    assert first_bad(chain(poisson)) == 1


def test_accounts_are_checked_apart() -> None:
    """Each account has a chain, a limit and a first bad entry of its own."""
    other = "beta/patients"
    theirs = [statement("b1", account=other, node="beta"), statement("b1", "post", account=other)]
    mixed = [*chain(theirs[0], key=None), *good_chain()]
    filters = {**FILTERS, other: FILTER}
    assert verify(mixed, filters, KEYS).ok
    assert verify(mixed, FILTERS, KEYS).problems[0].account == other
    wrong_node = chain(theirs[0], dataclasses.replace(theirs[1], node="alpha"), key=None)
    found = verify([*wrong_node, *good_chain()], filters, KEYS)
    assert [(one.account, one.seq) for one in found.problems] == [(other, 2)]


def test_a_long_chain_verifies_in_linear_time() -> None:
    """5,000 attempts in one account: history is not copied at every entry."""
    idle = {"mechanism": "no_data", "noise_multiplier": None, "steps": 0}
    statements = [
        statement(f"a{n}", kind, **idle) for n in range(5000) for kind in ("reserve", "post")
    ]
    found = verify(chain(*statements, key=None), FILTERS, KEYS)
    assert found.ok
    assert found.counts["post"] == len(found.unattested) == 5000


def test_several_processes_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Good chains, and each fault alone and behind another, in accounts that are mixed."""
    monkeypatch.setattr(signature_pool, "BATCH", 5)
    other = [statement(f"o{n}", account="alpha/other", project="o") for n in range(6)]
    entries = [
        one for pair in zip(good_chain(), [*chain(*other), None], strict=True) for one in pair
    ]
    mixed = [one for one in entries if one is not None]
    accounts = {**FILTERS, "alpha/other": FILTER}

    def same(changed: list[Entry]) -> Verification:
        alone = verify(changed, accounts, KEYS)
        assert verify(changed, accounts, KEYS, processes=2) == alone
        return alone

    assert same(mixed).ok
    wrong = sign(OTHER_KEY, statement())
    for place in (0, 5, len(mixed) - 2):
        forged = [*mixed]
        forged[place] = dataclasses.replace(mixed[place], node_signature=wrong)
        assert len(same(forged).problems) == 1
        forged[-1] = dataclasses.replace(mixed[-1], hash=GENESIS)
        forged[0] = dataclasses.replace(mixed[0], node_signature=wrong)
        assert not same(forged).ok


def test_a_ledger_with_many_open_reservations_is_read_in_one_pass() -> None:
    """Each entry takes the same time, however many attempts are open: 4,000 stay open at once, and
    the balance still holds them all, in their order."""
    free = [
        statement(f"f{n}", mechanism="no_data", noise_multiplier=None, steps=0) for n in range(4000)
    ]
    posts = [one.resolved("post") for one in free[::2]]
    found = verify(chain(*free, *posts, key=None), FILTERS, KEYS)
    assert found.ok
    assert [one.attempt_id for one in found.balances[ACCOUNT].pending] == [
        one.attempt_id for one in free[1::2]
    ]


def test_entries_of_two_versions_of_a_chain_do_not_join() -> None:
    """A right hash and signature are not enough: each entry must follow the one before it."""
    ours, other = good_chain(), chain(statement("b1"), *(e.statement for e in good_chain()[1:]))
    for index in range(1, 7):
        assert first_bad([*ours[:index], *other[index:]]) == index + 1
    for seq in (1, 4, 99):
        one = statement("b2")
        digest = entry_hash(seq, ours[1].hash, one)
        jumped = Entry(seq, one, ours[1].hash, digest, sign(KEY, one))
        assert first_bad([*ours[:2], jumped]) == 3


def test_a_node_cannot_book_on_the_account_of_another() -> None:
    """Even with its own valid signature: the account belongs to the node of its first entry."""
    key = Ed25519PrivateKey.generate()
    intruder = statement("z1", node="zeta")
    entries = [*good_chain()]
    entries.append(append(intruder, entries[-1], sign(key, intruder)))
    keys = {**KEYS, "zeta": key.public_key().public_bytes_raw()}
    found = verify(entries, FILTERS, keys)
    assert [one.seq for one in found.problems] == [8]


def test_a_guarantee_that_was_lost_stays_lost() -> None:
    """With the first post of a release without accounting, also after one with noise."""
    bare: dict[str, Any] = {"mechanism": "none", "noise_multiplier": None}
    steps = [statement("a1", kind, **bare) for kind in ("reserve", "post")]
    steps += [statement("a2", kind) for kind in ("reserve", "post")]
    for count, guarantee in enumerate((True, False, False, False), start=1):
        found = verify(chain(*steps[:count]), FILTERS, KEYS)
        assert found.ok
        assert found.balances[ACCOUNT].guarantee is guarantee
