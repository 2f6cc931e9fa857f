"""A sealed stream gives back what was written, to who has the password, or nothing."""

import io

import pytest

from certs import sealing
from certs.sealing import CHUNK_BYTES, TAG_BYTES, Opener, Sealer
from protos.errors import Malformed

PASSWORD = b"a password of these tests"
HEADER_BYTES = len(sealing.MAGIC) + 3 + sealing.SALT_BYTES


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header says how hard guessing is made; here, not at all."""
    monkeypatch.setattr(sealing, "LOG2_N", 4)


def sealed(data: bytes, at_once: int = 1 << 30) -> bytes:
    """What a file holds into which `data` was written."""
    file = io.BytesIO()
    sealer = Sealer(file, PASSWORD)
    for begin in range(0, len(data), at_once):
        sealer.write(data[begin : begin + at_once])
    sealer.finish()
    return file.getvalue()


def opened(file: bytes, password: bytes = PASSWORD) -> bytes:
    """All that can be read of it."""
    return Opener(io.BytesIO(file), password).read()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_what_was_sealed_is_read_again(size: int) -> None:
    """Whatever its size, written in pieces of any size, read in pieces of any size."""
    data = bytes(range(256)) * (size // 256 + 1)
    file = sealed(data[:size], at_once=100_003)
    opener = Opener(io.BytesIO(file), PASSWORD)
    parts = list(iter(lambda: opener.read(77_777), b""))
    assert b"".join(parts) == data[:size]
    assert all(len(part) == 77_777 for part in parts[:-1])


def test_the_same_bytes_are_never_sealed_the_same_way() -> None:
    """Each file has its own salt, and so its own key."""
    assert sealed(b"x") != sealed(b"x")


def test_another_password_opens_nothing() -> None:
    """And the sentence says that the password may be the cause."""
    with pytest.raises(Malformed, match="password") as caught:
        opened(sealed(b"secret"), PASSWORD + b"!")
    assert caught.value.reason == "SEAL_BROKEN"


@pytest.mark.parametrize("place", range(HEADER_BYTES))
def test_a_changed_header_opens_nothing(place: int) -> None:
    """Each of its bytes is bound to the key."""
    file = bytearray(sealed(b"secret"))
    file[place] ^= 1
    with pytest.raises(Malformed):
        opened(bytes(file))


def chunks(file: bytes) -> tuple[bytes, list[bytes]]:
    """(the header, the sealed chunks)."""
    body, size = file[HEADER_BYTES:], CHUNK_BYTES + TAG_BYTES
    return file[:HEADER_BYTES], [body[at : at + size] for at in range(0, len(body), size)]


def test_chunks_cannot_be_changed_left_out_swapped_repeated_added_or_cut_off() -> None:
    """Nothing of a chunk that is not in its place is given out."""
    header, (one, two, three) = chunks(sealed(b"s" * (2 * CHUNK_BYTES + 10)))
    changed = bytes([one[0] ^ 1]) + one[1:]
    for others in (
        [changed, two, three],
        [one, three],
        [two, one, three],
        [one, one, two, three],
        [one, two],
        [one],
        [],
        [one, two, three[:-1]],
        [one, two, three, three],
        [one, two, three + b"x"],
    ):
        with pytest.raises(Malformed):
            opened(header + b"".join(others))


def test_a_header_that_asks_for_endless_work_is_refused() -> None:
    """Before scrypt has begun: whoever hands us a file cannot take our memory."""
    file = bytearray(sealed(b"x"))
    file[len(sealing.MAGIC)] = 40
    with pytest.raises(Malformed, match="more work"):
        opened(bytes(file))
