"""The simulation itself: it finds nothing, it is repeatable, and it finds every planted bug."""

import subprocess
import sys

import pytest

from protos.errors import FeddpError, InvariantBroken
from tests.simulation.faults import KINDS, MET, TIMED
from tests.simulation.planted import PLANTED
from tests.simulation.seeds import Summary, fingerprint, play_all
from tests.simulation.sql_store import SqlStore
from tests.simulation.stores import MemoryStore
from tests.simulation.truth import Broken
from tests.simulation.world import World

SEEDS = 500
ENDINGS = {"completed", "converged", "budget_exhausted", "cancelled", "failed", "waiting"}


@pytest.mark.timeout(900)
def test_five_hundred_seeds_hold_every_invariant() -> None:
    """Faults of every kind: no double charge, no lost update, no fold below quorum, no hang."""
    summary = Summary()
    for played in play_all(0, SEEDS, processes=2):
        assert not played.fault, f"seed {played.seed}: {played.fault}"
        summary.add(played)
    assert set(summary.endings) == ENDINGS
    assert set(summary.faults) >= {*KINDS, *TIMED, *MET}


def test_the_same_seed_plays_the_same_job() -> None:
    """A failing seed can be looked at again, also with other hash values in another process."""
    code = "from tests.simulation.seeds import fingerprint; print(fingerprint(11))"
    here = fingerprint(11)
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here.strip()
    assert len(here.splitlines()) > 50


def _transactions_fail(world: World) -> None:
    world.faults.rates.update(database_fails=0.2, commit_unheard=0.1)


@pytest.mark.parametrize("seed", [13, 44, 48, 51, 58, 74])
def test_the_double_of_the_store_equals_the_real_one(seed: int) -> None:
    """Each seed plays the same on Python values and on the coordinator's own tables, also where
    transactions fail."""
    quick = World(seed, store=MemoryStore(), plant=_transactions_fail)
    real = World(seed, store=SqlStore(), plant=_transactions_fail)
    assert quick.run() == real.run()
    assert quick.transcript == real.transcript
    for met in ("database_fails", "raise_booked"):
        assert quick.faults.counts[met] > 0
    heads = [
        [
            (one.account, one.balance.posted_units, one.filter.epsilon_limit, one.head_hash)
            for one in w.coordinator.store.accounts()
        ]
        for w in (quick, real)
    ]
    assert heads[0] == heads[1]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_called_by_its_name(name: str) -> None:
    """Each of these would lose an update, a charge or a patient's budget, or hang a job."""
    planted, found = PLANTED[name], list[str]()
    for seed in range(planted.seeds):
        try:
            World(seed, plant=planted.plant).run()
        except Broken as broken:
            found.append(broken.invariant)
            if broken.invariant in planted.caught_by:
                return
        except (InvariantBroken, FeddpError) as error:
            found.append(type(error).__name__)  # a machine that refuses is a catch, not the one
    pytest.fail(f"nothing of {planted.caught_by} was found, but {sorted(set(found))}")
