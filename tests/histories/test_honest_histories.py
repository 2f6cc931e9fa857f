"""Honest histories end with two ledgers that hold everything, and nobody complains."""

import pytest

from tests.histories.planted import PLANTED
from tests.histories.seeds import play, play_all

SEEDS = [
    *(("deep", first) for first in (0, 8)),
    *(("deep-plain", first) for first in (0, 8)),
    *(("again", first) for first in (0, 8)),
]
"""Modes, and the first of so many seeds each:"""

SEEDS_EACH = 8


@pytest.mark.parametrize(("mode", "first"), SEEDS)
def test_an_honest_history_ends_well(mode: str, first: int) -> None:
    """No dispute, nothing that was signed is lost at either end, nothing opened is signed void,
    nothing is worked at twice, and officers who compare all files find nothing."""
    for played in play_all(mode, range(first, first + SEEDS_EACH)):
        assert not played.wrong, played.told()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would dispute with an honest coordinator, or spend a patient's budget twice, or
    give back what was spent."""
    planted = PLANTED[name]
    planted.plant(monkeypatch)
    for seed in planted.seeds:
        wrong = play(planted.mode, seed).wrong
        assert any(planted.told in text for text in wrong), f"seed {seed}: {wrong}"
