"""What a node makes of the restorations that a coordinator tells."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.enrolment import public_bytes_of
from node_agent.ledger.epochs_seen import AHEAD_S_MAX, meet
from privacy.epochs import Epoch, epochs_fault, sign_epoch
from privacy.heads import Checkpoint

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = public_bytes_of(KEY)
NOW_S = 10_000.0


def restored(before: Epoch | None, at_s: float, key: Ed25519PrivateKey = KEY) -> Epoch:
    """A restoration at a moment."""
    return sign_epoch(key, before, None, (), restored_at_s=at_s, backup_made_at_s=at_s - 100)


SECOND = restored(None, 1000)
THIRD = restored(SECOND, 2000)
OTHER = sign_epoch(KEY, None, None, "x", restored_at_s=1000, backup_made_at_s=1)
"""Of the second's moment, from another backup."""
AGAIN = restored(None, 3000)
"""From the same backup as the second: it knows nothing of it."""


@pytest.mark.parametrize(
    ("seen", "told", "kind"),
    [
        ([], [], "same"),
        ([SECOND], [SECOND], "same"),
        ([SECOND, THIRD], [SECOND, THIRD], "same"),
        ([], [SECOND], "later"),
        ([], [SECOND, THIRD], "later"),
        ([SECOND], [SECOND, THIRD], "later"),
        ([SECOND, THIRD], [AGAIN], "later"),
        ([SECOND], [], "refused"),
        ([SECOND, THIRD], [SECOND], "refused"),
        ([SECOND, THIRD, AGAIN], [SECOND, THIRD], "refused"),
        ([], [THIRD], "fault"),
        ([], [SECOND, SECOND], "fault"),
        ([], [replace(SECOND, backup_made_at_s=1)], "fault"),
        ([], [restored(None, 1000, Ed25519PrivateKey.generate())], "fault"),
        ([SECOND], [OTHER], "fault"),
        ([SECOND], [OTHER, restored(OTHER, 2000)], "fault"),
        ([], [restored(None, NOW_S + AHEAD_S_MAX)], "later"),
        ([], [restored(None, NOW_S + AHEAD_S_MAX + 1)], "refused"),
    ],
)
def test_the_latest_restoration_of_one_signed_history_counts(
    seen: list[Epoch], told: list[Epoch], kind: str
) -> None:
    """An earlier one is an older copy; one that is not signed, or not chained, is none."""
    met = meet(seen, PUBLIC, told, NOW_S)
    assert met.kind == kind
    assert (met.refusal is not None) == (kind == "refused")
    assert bool(met.text) == (kind == "fault")


def test_an_older_copy_is_told_which_restoration_the_node_has_seen() -> None:
    """With a reason that does not change, for scripts."""
    refusal = meet([SECOND, THIRD], PUBLIC, [], NOW_S).refusal
    assert refusal is not None
    assert refusal.reason == "COORDINATOR_EPOCH_OLD"
    assert "seen epoch 3" in refusal.message
    assert "at epoch 1" in refusal.message
    ahead = meet([], PUBLIC, [restored(None, 10 * AHEAD_S_MAX)], NOW_S).refusal
    assert ahead is not None
    assert ahead.reason == "COORDINATOR_EPOCH_AHEAD"


def test_the_bytes_of_an_epoch_are_those_of_the_document() -> None:
    """docs/ledger.md gives them, for who checks a signature with other tools."""
    one = replace(SECOND, heads_root="ab", prev_hash="cd", checkpoint_hash="ef")
    assert one.canonical() == (
        b"feddp-coordinator-epoch-v1\n"
        b'{"backup_made_at_s":900,"checkpoint_hash":"ef","checkpoint_number":0,"heads_root":"ab",'
        b'"number":2,"prev_hash":"cd","restored_at_s":1000}'
    )


def test_a_later_restoration_holds_every_checkpoint_that_the_one_before_found() -> None:
    """A coordinator that says otherwise would have its nodes forget what lies between."""
    at = [Checkpoint(number, "0" * 64, str(number) * 64) for number in (1, 2)]
    other = Checkpoint(2, "0" * 64, "3" * 64)

    def line(first: Checkpoint | None, second: Checkpoint | None) -> list[Epoch]:
        one = sign_epoch(KEY, None, first, (), restored_at_s=1000, backup_made_at_s=900)
        return [one, sign_epoch(KEY, one, second, (), restored_at_s=2000, backup_made_at_s=1900)]

    for first, second in ((None, None), (None, at[0]), (at[0], at[0]), (at[0], at[1])):
        assert epochs_fault(line(first, second), PUBLIC) == ""
    for first, second in ((at[1], at[0]), (at[0], None), (at[1], other)):
        assert "holds less" in epochs_fault(line(first, second), PUBLIC)


def test_restorations_in_the_order_of_their_dates_alone_are_a_history() -> None:
    """Each is later than the one before."""
    early = replace(THIRD, restored_at_s=999)
    signed = replace(early, signature=KEY.sign(early.canonical()))
    assert "not later" in epochs_fault([SECOND, signed], PUBLIC)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_number": 2**64 - 1},
        {"heads_root": "no hex"},
        {"checkpoint_hash": "a" * 100_000},
        {"restored_at_s": 10**400},
        {"backup_made_at_s": -1},
    ],
)
def test_an_epoch_that_no_store_could_keep_is_a_fault(change: dict[str, int | str]) -> None:
    """Though it is signed: the node disputes, and does not end on it."""
    made = replace(SECOND, **change)  # type: ignore[arg-type]
    made = replace(made, signature=KEY.sign(made.canonical()))
    assert meet([], PUBLIC, [made], NOW_S).kind == "fault"
    assert made.restored, "it can be told to people"
