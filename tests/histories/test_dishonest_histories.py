"""A coordinator that rewrites its ledger is found out, whatever it restores and declares."""

import pytest

from tests.histories.planted import unseeing
from tests.histories.seeds import DISHONEST, play, play_all

SEEDS_EACH = 20


@pytest.mark.parametrize("first", [0, SEEDS_EACH])
def test_a_rewritten_ledger_is_found(first: int) -> None:
    """By a node that looks again, or by officers who compare what both have seen."""
    endings = set[str]()
    for played in play_all(DISHONEST, range(first, first + SEEDS_EACH)):
        assert not played.wrong, played.told()
        endings.add(played.ending)
    assert endings >= {"by a node", "by officers"}


def test_a_lie_that_nobody_sees_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nodes dispute nothing and officers do not compare."""
    unseeing(monkeypatch)
    assert any(play(DISHONEST, seed).wrong == ["nobody finds it"] for seed in range(8))
