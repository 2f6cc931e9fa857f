"""Join tokens: whole, or refused; and never shown."""

import base64
import hashlib
import re

import pytest

from certs.authority import Authority
from certs.tokens import JoinToken, hash_secret, new_secret
from protos.errors import Malformed

ADDRESS = "coordinator.hospitals.example:8444"


@pytest.fixture
def token(authority: Authority) -> JoinToken:
    return JoinToken(ADDRESS, new_secret(), authority.root_der)


def refused(text: str) -> Malformed:
    with pytest.raises(Malformed) as caught:
        JoinToken.parse(text)
    assert caught.value.reason == "TOKEN_INVALID"
    return caught.value


@pytest.mark.parametrize("address", [ADDRESS, "10.0.0.1:1", "[::1]:65535", "localhost:8444"])
def test_token_is_one_string_that_holds_everything(authority: Authority, address: str) -> None:
    """Address, secret and root survive the one paste, in characters that no shell touches."""
    token = JoinToken(address, new_secret(), authority.root_der)
    text = token.encode()
    assert re.fullmatch(r"feddp1\.[A-Za-z0-9_-]+", text)
    assert JoinToken.parse(text) == token
    assert token.root_pem == authority.trust_bundle


def test_blanks_of_a_paste_do_no_harm(token: JoinToken) -> None:
    """A token that a terminal or mail program wrapped is still the token."""
    text = token.encode()
    wrapped = "  " + "\r\n ".join(text[i : i + 76] for i in range(0, len(text), 76)) + "\n"
    assert JoinToken.parse(wrapped) == token


def test_truncation_at_every_length_is_refused(token: JoinToken) -> None:
    """However much of the end, or of the beginning, is missing: refused."""
    text = token.encode()
    for length in range(len(text)):
        refused(text[:length])
        refused(text[len(text) - length :]) if length else None


def test_every_flipped_bit_is_refused(token: JoinToken) -> None:
    """Each single bit of each character counts, the unused bits of base64's last one too."""
    text = token.encode()
    for index, character in enumerate(text):
        for bit in range(8):
            refused(text[:index] + chr(ord(character) ^ (1 << bit)) + text[index + 1 :])


def test_swapped_and_repeated_pieces_are_refused(token: JoinToken) -> None:
    """A paste that came twice, or in the wrong order, is refused."""
    text = token.encode()
    refused(text + text)
    refused(text + text.removeprefix("feddp1."))
    refused("feddp1." + text[300:] + text[7:300])


@pytest.mark.parametrize(
    "text",
    ["", "feddp1.", "feddp2.AAAA", "hello", "feddp1.\u00e4\u00f6", "feddp1." + "A" * 20_000, "="],
)
def test_other_texts_are_refused(text: str) -> None:
    """Anything else is refused with the same reason, however long it is."""
    assert "feddp node token" in refused(text).message


def test_wrong_contents_under_a_right_checksum_are_refused(token: JoinToken) -> None:
    """What another program wrote with a proper checksum is still checked piece by piece."""

    def sealed(address: bytes, secret: bytes, root: bytes) -> str:
        return sealed_payload(bytes((len(address), len(secret))) + address + secret + root)

    def sealed_payload(payload: bytes) -> str:
        checksum = hashlib.sha256(b"feddp1." + payload).digest()[:8]
        return "feddp1." + base64.urlsafe_b64encode(payload + checksum).decode().rstrip("=")

    address, secret, root = ADDRESS.encode(), token.secret.encode(), token.root_der
    assert JoinToken.parse(sealed(address, secret, root)) == token
    refused(sealed_payload(b""))
    refused(sealed_payload(b"\x00"))
    refused(sealed(b"no-port", secret, root))
    refused(sealed(b"\xff\xfe:1", secret, root))
    refused(sealed(address, b"short", root))
    refused(sealed(address, secret, b""))
    refused(sealed(address, secret, root[:-1]))
    refused(sealed(address, secret, root + b"\0"))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "a b:1",
        "::1:80",
        "host:1\n",
        "unix:/x:1",
        "h:-1",
    ],
)
def test_token_for_a_wrong_address_is_not_made(authority: Authority, address: str) -> None:
    """An address that is not host:port is found where the token is made, not at the hospital."""
    with pytest.raises(Malformed) as caught:
        JoinToken(address, new_secret(), authority.root_der)
    assert caught.value.reason == "TOKEN_INVALID"


def test_secret_has_at_least_128_bits_and_is_never_the_same(authority: Authority) -> None:
    """22 base64url characters hold more than 128 bits; a shorter secret is refused."""
    assert len(base64.urlsafe_b64decode(new_secret() + "=")) * 8 == 256
    assert len({new_secret() for _ in range(1000)}) == 1000
    with pytest.raises(Malformed):
        JoinToken(ADDRESS, "a" * 21, authority.root_der)


def test_secret_is_shown_nowhere(token: JoinToken) -> None:
    """Neither repr, str, format nor the message of a refusal holds the secret."""
    text = token.encode()
    shown = [repr(token), str(token), f"{token}", repr([token]), refused(text[:-1]).message]
    shown.append(refused(text.replace("feddp1.", "feddp3.")).message)
    for line in shown:
        assert token.secret not in line
        assert text[20:40] not in line


def test_only_the_hash_is_to_be_stored(token: JoinToken) -> None:
    """The stored hash is SHA-256 of the secret, the same from either side."""
    expected = hashlib.sha256(token.secret.encode()).hexdigest()
    assert token.secret_hash() == hash_secret(token.secret) == expected


def test_fingerprint_is_for_people_to_compare(token: JoinToken) -> None:
    """The fingerprint is what `openssl x509 -fingerprint -sha256` prints."""
    digest = hashlib.sha256(token.root_der).hexdigest().upper()
    assert token.fingerprint == ":".join(digest[i : i + 2] for i in range(0, 64, 2))


def test_a_persons_token_is_told_from_a_nodes(authority: Authority) -> None:
    """Each is refused where the other is wanted, with a reason of its own and what to do with it;
    neither can be made of the other, as the checksum covers what it is for."""
    secret = new_secret()
    node = JoinToken(ADDRESS, secret, authority.root_der)
    person = JoinToken(ADDRESS, secret, authority.root_der, "user")
    assert JoinToken.parse(person.encode(), "user") == person
    assert re.fullmatch(r"feddp1u\.[A-Za-z0-9_-]+", person.encode())
    for text, wanted, reason, command in (
        (node.encode(), "user", "TOKEN_FOR_NODE", "feddp agent join"),
        (person.encode(), "node", "TOKEN_FOR_PERSON", "feddp profile join"),
    ):
        with pytest.raises(Malformed, match=command) as caught:
            JoinToken.parse(text, wanted)
        assert caught.value.reason == reason
        assert secret not in str(caught.value)
    refused(person.encode().replace("feddp1u.", "feddp1."))
    with pytest.raises(Malformed, match="feddp user invite") as changed:
        JoinToken.parse(node.encode().replace("feddp1.", "feddp1u."), "user")
    assert changed.value.reason == "TOKEN_INVALID"


def test_a_persons_token_that_is_cut_off_is_refused_at_every_length(authority: Authority) -> None:
    """And says where to get another."""
    text = JoinToken(ADDRESS, new_secret(), authority.root_der, "user").encode()
    for length in range(len(text)):
        with pytest.raises(Malformed, match="feddp user invite") as caught:
            JoinToken.parse(text[:length], "user")
        assert caught.value.reason in ("TOKEN_INVALID", "TOKEN_FOR_NODE")
