"""Raised limits: their bytes, and what a check of the chain makes of them."""

import json
from dataclasses import replace
from typing import Any

import pytest
from ledger_samples import (
    ACCOUNT,
    ANNA,
    BERT,
    FILTERS,
    KEY,
    KEYS,
    OTHER_KEY,
    TENTH,
    chain,
    raised,
    statement,
)

from privacy.filters import make_filter
from privacy.ledger import Entry, LimitChange, append, from_json, sign, to_json, verify
from privacy.wire import entry_from_wire, entry_to_wire, limit_from_wire, limit_to_wire
from protos.errors import Malformed

DEAR = (2 / 0.0718514) ** 0.5
"""Noise multiplier of one step that costs about half of a limit of 1."""


def dear(attempt: str, kind: str = "reserve") -> Any:
    return statement(attempt, kind, noise_multiplier=DEAR)


def spent_then_raised() -> list[Entry]:
    """Nine tenths of the limit of 1, a raise to 2, and what fits only then."""
    posts = [statement(f"a{n}", kind) for n in range(9) for kind in ("reserve", "post")]
    return chain(*posts, raised(), dear("b"), dear("b", "post"))


def first_bad(entries: list[Entry]) -> tuple[int, str]:
    (problem,) = verify(entries, FILTERS, KEYS).problems
    return problem.seq, problem.text


def test_the_canonical_bytes_are_the_documented_ones() -> None:
    """Two people sign one line of domain and the terms; the node signs these with signatures."""
    one = raised(reason="füße")
    terms = (
        b'"account":"alpha/patients",%b"asked_by":"anna","asked_key":"8a88e3dd7409f195fd52db2d3cba5'
        b'd72ca6709bf1d94121bf3748801b40f6f5c",%b"delta":1e-05,"epsilon_limit_new":2.0,'
        b'"epsilon_limit_old":1.0,"filter":"gdp","kind":"limit","node":"alpha","number":1,'
        b'"rdp_order":0,"reason":"f\\u00fc\\u00dfe"'
    )
    assert one.terms.canonical() == b"feddp-ledger-limit-v1\n{%b}" % (terms % (b"", b""))
    key, signature = BERT.public_key().public_bytes_raw(), BERT.sign(one.terms.canonical())
    agreed = (
        f'"agreed_by":"bert","agreed_key":"{key.hex()}","agreed_signature":"{signature.hex()}",'
    )
    asked = f'"asked_signature":"{ANNA.sign(one.terms.canonical()).hex()}",'
    whole = terms % (agreed.encode(), asked.encode())
    assert one.canonical() == b"feddp-ledger-v1\n{%b}" % whole


def test_an_entry_survives_json_and_the_wire() -> None:
    """Field by field, with its signatures."""
    (entry,) = chain(raised())
    assert from_json(json.loads(json.dumps(to_json(entry)))) == entry
    assert entry_from_wire(entry_to_wire(entry)) == entry
    change = entry.statement
    assert isinstance(change, LimitChange)
    assert limit_from_wire(limit_to_wire(change, entry.node_signature)) == change


@pytest.mark.parametrize(
    "changes",
    [
        {"unheard_of": 1},
        {"reason": ""},
        {"reason": "x" * 501},
        {"number": 0},
        {"number": True},
        {"number": 1.0},
        {"epsilon_limit_new": 2},
        {"epsilon_limit_new": float("inf")},
        {"delta": 1.0},
        {"filter": "zcdp"},
        {"rdp_order": 3},
        {"asked_by": ""},
        {"agreed_by": "x" * 64},
        {"asked_key": "AB" * 32},
        {"agreed_signature": "ab" * 63},
        {"steps": 1},
    ],
)
def test_what_is_no_limit_entry_is_not_read(changes: dict[str, Any]) -> None:
    """An unknown field, another type, another spelling; and a missing field."""
    (entry,) = chain(raised())
    with pytest.raises(Malformed):
        from_json({**to_json(entry), **changes})
    for name in to_json(entry):
        with pytest.raises((Malformed, KeyError)):
            from_json({key: one for key, one in to_json(entry).items() if key != name})


def test_the_running_sum_is_held_to_the_limit_in_force_at_each_entry() -> None:
    """Before the raise to the old limit, after it to the new one."""
    found = verify(spent_then_raised(), FILTERS, KEYS)
    assert found.ok
    assert found.counts["limit"] == 1
    assert found.balances[ACCOUNT].filter.epsilon_limit == 2.0
    posts = [statement(f"a{n}", kind) for n in range(9) for kind in ("reserve", "post")]
    seq, text = first_bad(chain(*posts, dear("b"), raised()))
    assert (seq, "units left" in text) == (19, True)
    more = chain(*posts, raised(), *(dear(f"b{n}") for n in range(8)))
    assert first_bad(more)[0] > 20


def test_raises_follow_each_other() -> None:
    """Each goes on from what the one before left, or from less where it was lowered since."""
    second = raised(2.0, 3.0, number=2)
    assert verify(chain(raised(), second), FILTERS, KEYS).ok
    lowered = verify(chain(raised(), raised(0.5, 1.5, number=2)), FILTERS, KEYS)
    assert lowered.ok
    assert lowered.balances[ACCOUNT].filter.epsilon_limit == 1.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (raised(number=2), "raise 1 of this account would be next"),
        (raised(1.5, 2.0), "goes on from a limit of 1.5"),
        (raised(1.0, 1.0), "does not raise"),
        (raised(1.0, 0.5), "does not raise"),
        (raised(delta=1e-6), "another filter or delta"),
        (raised(filter="rdp", rdp_order=64), "another filter or delta"),
        (raised(agreed=("anna", BERT)), "one person, anna,"),
        (raised(agreed=("Anna", BERT)), "one person, anna,"),
        (raised(agreed=("bert", ANNA)), "one person, anna,"),
        (replace(raised(), asked_signature="ab" * 64), "the signature of anna"),
        (replace(raised(), agreed_signature="ab" * 64), "the signature of bert"),
        (
            replace(raised(), agreed_signature=raised(reason="another").agreed_signature),
            "the signature of bert",
        ),
        (
            replace(raised(1.0, 9.0), asked_signature=raised().asked_signature),
            "the signature of anna",
        ),
    ],
)
def test_a_raise_that_does_not_hold_is_the_first_bad_entry(change: LimitChange, said: str) -> None:
    """Though every hash is right and the node has signed it."""
    seq, text = first_bad(chain(statement(), change, statement("b")))
    assert (seq, said in text) == (2, True), text


def test_the_same_raise_again_is_no_second_one() -> None:
    """What was signed once serves once, also after the limit was lowered in between."""
    seq, text = first_bad(chain(raised(), raised()))
    assert (seq, "recorded already" in text) == (2, True)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("signature", "said"),
    [(b"", "without the node's signature"), (sign(OTHER_KEY, raised()), "is not node alpha's")],
)
def test_only_the_node_raises_a_limit(processes: int, signature: bytes, said: str) -> None:
    """Two people's signatures alone raise nothing."""
    first = chain(statement())[0]
    entries = [first, append(raised(), first, signature)]
    (problem,) = verify(entries, FILTERS, KEYS, processes=processes).problems
    assert (problem.seq, said in problem.text) == (2, True)
    (unknown,) = verify([append(raised(), None, b"x" * 64)], FILTERS, {}).problems
    assert "no ledger key of node alpha" in unknown.text


@pytest.mark.parametrize("field", [name for name in to_json(chain(raised())[0]) if name != "kind"])
def test_a_changed_field_is_found(field: str) -> None:
    """Reading it fails, or the check names the entry."""
    exported = [to_json(one) for one in spent_then_raised()]
    value = exported[18][field]
    changed: Any = {int: lambda: value + 1, float: lambda: value * 1.5, str: lambda: _other(value)}
    exported[18][field] = changed[type(value)]()
    try:
        entries = [from_json(one) for one in exported]
    except Malformed:
        return
    named = {(one.account, one.seq) for one in verify(entries, FILTERS, KEYS).problems}
    assert (exported[18]["account"], 19) in named


def _other(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


def test_a_raise_counts_by_the_accounts_own_filter() -> None:
    """Also one of Renyi divergence at a committed order."""
    filters = {ACCOUNT: make_filter("rdp", 8, 3.0, 1e-5)}
    change = raised(3.0, 6.0, filter="rdp", rdp_order=8)
    found = verify(chain(statement(noise_multiplier=TENTH), change), filters, KEYS)
    assert found.ok
    assert found.balances[ACCOUNT].filter == make_filter("rdp", 8, 6.0, 1e-5)


def test_the_nodes_signature_covers_the_peoples() -> None:
    """Another who agrees makes another statement."""
    carla = raised(agreed=("carla", OTHER_KEY))
    assert carla.terms == raised().terms
    entry = append(carla, None, sign(KEY, raised()))
    assert "is not node alpha's" in first_bad([entry])[1]
