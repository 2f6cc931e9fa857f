"""SPIFFE IDs are read as strictly as they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.spiffe import Kind, SpiffeId, check_name
from protos.errors import Malformed

NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("spiffe://h.example/node/a-1", SpiffeId("h.example", "node", "a-1")),
        ("spiffe://h.example/user/ada", SpiffeId("h.example", "user", "ada")),
        ("spiffe://h.example/coordinator", SpiffeId("h.example", "coordinator")),
        ("spiffe://h.example/router", SpiffeId("h.example", "router")),
    ],
)
def test_each_kind_is_written_and_read_the_same(text: str, identity: SpiffeId) -> None:
    """The four forms of an identity survive writing and reading."""
    assert str(identity) == text
    assert SpiffeId.parse(text) == identity


@given(NAMES)
def test_every_name_of_the_rule_is_taken(name: str) -> None:
    """1 to 63 lower-case letters, digits and hyphens with no hyphen at either end are a name."""
    assert SpiffeId.parse(str(SpiffeId("h.example", "node", name))).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "a-",
        "A",
        "a" * 64,
        "a_b",
        "a.b",
        "a/b",
        "a\n",
        "\u00e4",
        "\u0661",
        "a b",
        "..",
        "a,b",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    """Any other name is NAME_INVALID, in the function and in the identity, and told what may be."""
    for attempt in (check_name, lambda n: SpiffeId("h.example", "node", n)):
        with pytest.raises(Malformed) as caught:
            attempt(name)
        assert caught.value.reason == "NAME_INVALID"
        assert (
            "1 to 63 of a-z, 0-9 and - (no capitals, no umlauts, no dots)" in caught.value.message
        )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://h.example",
        "spiffe://h.example/",
        "spiffe://h.example/node",
        "spiffe://h.example/node/",
        "spiffe://h.example/node/a/",
        "spiffe://h.example/node/a/b",
        "spiffe://h.example/node/A",
        "spiffe://h.example//node/a",
        "spiffe://h.example/node/a?x=1",
        "spiffe://h.example/node/a#x",
        "spiffe://h.example/node/%61",
        "spiffe://h.example/coordinator/",
        "spiffe://h.example/coordinator/a",
        "spiffe://h.example/admin",
        "spiffe://H.example/node/a",
        "spiffe://h.example:443/node/a",
        "spiffe://user@h.example/node/a",
        "spiffe:///node/a",
        "SPIFFE://h.example/node/a",
        "https://h.example/node/a",
        " spiffe://h.example/node/a",
        "spiffe://h.example/node/a\n",
        "spiffe://h.example/node/a;By=x",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    """Nothing but the exact spelling is an identity."""
    with pytest.raises(Malformed) as caught:
        SpiffeId.parse(text)
    assert caught.value.reason == "SPIFFE_INVALID"


@pytest.mark.parametrize(
    ("kind", "name"), [("coordinator", "a"), ("router", "a"), ("admin", ""), ("admin", "a")]
)
def test_identity_that_cannot_be_is_not_built(kind: Kind, name: str) -> None:
    """A coordinator and a router have no name, and there are no other kinds."""
    with pytest.raises(Malformed) as caught:
        SpiffeId("h.example", kind, name)
    assert caught.value.reason == "SPIFFE_INVALID"


@pytest.mark.parametrize("trust_domain", ["", "A", "a/b", "a" * 256, "-a", "a:1", "a b"])
def test_trust_domain_is_checked(trust_domain: str) -> None:
    """A trust domain that a URI could read otherwise is refused."""
    with pytest.raises(Malformed) as caught:
        SpiffeId(trust_domain, "coordinator")
    assert caught.value.reason == "SPIFFE_INVALID"


def test_message_holds_a_bounded_part_of_the_text() -> None:
    """A huge or unprintable text does not flood the message."""
    with pytest.raises(Malformed) as caught:
        SpiffeId.parse("\x1b[2J" * 10_000)
    assert len(caught.value.message) < 400
    assert "\x1b" not in caught.value.message
