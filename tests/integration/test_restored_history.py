"""Officers compare the ledger of a coordinator that was restored with what nodes have seen, also
before: both ledgers of one node, over real gRPC."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coordinator import views
from coordinator.store import booking, epochs
from feddp.cli.verify.history import Passing, faults
from feddp.cli.verify.witnesses import Witnesses, from_json, from_message
from node_agent.ledger.copies import seen_by
from privacy.ledger import sign
from tests.integration.restorable import (
    Restorable,
    restorable_bench,  # noqa: F401 - a fixture
)
from tests.integration.test_witness import (
    ACCOUNT,
    ENTRIES,
    PUBLIC,
    forged,
    seen,  # noqa: F401 - a fixture
)
from tests.node_agent.samples import LEDGER_KEY, NODE, order

Json = dict[str, Any]


def exported(one: Restorable) -> Json:
    """The witnesses of an export."""
    message = one.database.read_now(lambda c: views.checkpoints(c, one.public_key))
    told: Json = json.loads(json.dumps(from_message(message, [ACCOUNT], one.chain()).export()))
    return told


def file_of(one: Restorable) -> Json:
    """What the node's hospital hands over."""
    return {"node": NODE, "ledger_public_key": PUBLIC.hex(), **seen_by(one.state)}


def found(
    one: Restorable, export: Json, *files: Json, whole: bool = True
) -> list[tuple[str, int, str]]:
    """What `feddp budget verify` finds."""
    kept = from_json(export, "the coordinator")
    nodes = [from_json(each, NODE) for each in files]
    passed = Passing(one.chain(), [kept, *nodes])
    assert list(passed) == one.chain()
    return faults(passed, {NODE: PUBLIC}, whole=whole)


@pytest.fixture
def restored(bench: Restorable, monkeypatch: pytest.MonkeyPatch) -> Restorable:
    """Three releases after the backup, and an order that was refused, which nobody hands in; put
    back, handed in, and one more."""
    bench.reserve_there("refused")
    void = order("refused", job_id="job-there").statement(NODE, "void")
    bench.database.write_now(lambda c: booking.book(c, void, sign(LEDGER_KEY, void)))
    bench.book(3, first=ENTRIES)
    bench.look(monkeypatch)
    bench.put_back()
    bench.look(monkeypatch)
    bench.book(1, first=ENTRIES + 3)
    bench.look(monkeypatch)
    return bench


def test_what_a_node_has_seen_before_is_no_fault(restored: Restorable) -> None:
    """The restoration explains it, and is told in one line."""
    export = exported(restored)
    assert found(restored, export, file_of(restored)) == []
    (one,) = from_json(export, "the coordinator").restorations
    assert one.said() == (
        "epoch 2: restored at 1970-01-01 00:01:40 UTC, from a backup of 1970-01-01 00:00:50 UTC: "
        f"6 entries of {ACCOUNT} were handed in again"
    )


def test_a_node_that_has_not_seen_the_restoration_yet_is_not_explained_away(
    bench: Restorable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its file is of before: that the ledger went back is a fault, as it is today."""
    bench.book(3, first=ENTRIES)
    bench.look(monkeypatch)
    before = file_of(bench)
    bench.put_back()
    assert found(bench, exported(bench), before) != []


def _without_restorations(export: Json, file: Json) -> None:
    del export["restorations"]


def _another_backup(export: Json, file: Json) -> None:
    export["restorations"][0]["backup_made_at_s"] = 1


def _another_place(export: Json, file: Json) -> None:
    export["restorations"][0]["places"][0]["seq"] = 2


def _no_place(export: Json, file: Json) -> None:
    export["restorations"][0]["places"] = []


def _not_known_to_the_node(export: Json, file: Json) -> None:
    file["epochs"] = []


def _another_epoch_in_the_file(export: Json, file: Json) -> None:
    file["epochs"][0]["heads_root"] = "0" * 64


def _handed_in_to_where_it_is_not(export: Json, file: Json) -> None:
    export["restorations"][0]["reconciled"][0]["seq"] += 100


def _handed_in_before_the_backup(export: Json, file: Json) -> None:
    export["restorations"][0]["reconciled"][0]["seq"] = 0


def _not_handed_in(export: Json, file: Json) -> None:
    export["restorations"][0]["reconciled"] = []


def _another_head_before(export: Json, file: Json) -> None:
    file["before"]["heads"][0]["seq"] = ENTRIES


def _another_checkpoint_before(export: Json, file: Json) -> None:
    file["before"]["checkpoints"][0]["root"] = "0" * 64


@pytest.mark.parametrize(
    "change",
    [
        _without_restorations,
        _another_backup,
        _another_place,
        _no_place,
        _not_known_to_the_node,
        _another_epoch_in_the_file,
        _handed_in_to_where_it_is_not,
        _handed_in_before_the_backup,
        _not_handed_in,
        _another_head_before,
        _another_checkpoint_before,
    ],
)
def test_what_is_not_as_signed_is_a_fault(
    restored: Restorable, change: Callable[[Json, Json], None]
) -> None:
    """Neither side can make an excuse of its own."""
    export, file = exported(restored), file_of(restored)
    change(export, file)
    assert found(restored, export, file) != []


def test_what_the_backup_held_is_not_explained_away(
    bench: Restorable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head that was seen before the backup was made must be in the chain as it was."""
    old = file_of(bench)["heads"][0]
    assert old["seq"] == ENTRIES
    bench.put_back()
    bench.look(monkeypatch)
    file, export = file_of(bench), exported(bench)
    assert [one["seq"] for one in file["before"]["heads"]] == [ENTRIES]
    assert found(bench, export, file) == []
    bench.write(forged(bench.chain(), ENTRIES, lambda one: replace(one, project="another")))
    texts = [text for _, _, text in found(bench, export, file)]
    assert any("before a restoration whose backup held it" in text for text in texts)


def test_the_backups_end_is_compared_also_for_one_data_set(restored: Restorable) -> None:
    """Roots are over all accounts and cannot be made then; each place can be."""
    assert found(restored, exported(restored), whole=False) == []
    restored.write(forged(restored.chain(), ENTRIES, lambda one: replace(one, project="another")))
    texts = [text for _, _, text in found(restored, exported(restored), whole=False)]
    assert any("that is not the entry here" in text for text in texts)


def test_two_nodes_that_saw_two_histories_before_the_restoration_tell(
    restored: Restorable,
) -> None:
    """The fork lies in a history that has ended, and was signed all the same."""
    file, other = file_of(restored), file_of(restored)
    fork = copy.deepcopy(other["before"]["checkpoints"][0])
    assert found(restored, exported(restored), file, other) == []
    fork["root"] = "0" * 64
    other["before"]["checkpoints"] = [fork]
    texts = [text for _, _, text in found(restored, exported(restored), file, other)]
    assert any("the history was forked" in text for text in texts)


def test_a_coordinator_that_is_restored_from_the_same_backup_again_is_explained(
    restored: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows nothing of the first time; what its node saw in between is handed in again too."""
    restored.put_back(now_s=300.0)
    restored.look(monkeypatch)
    assert restored.state.disputes.all() == []
    assert restored.posted_units() == restored.own_units()
    file = file_of(restored)
    assert [one["restored_at_s"] for one in file["epochs"]] == [100, 300]
    assert found(restored, exported(restored), file) == []
    first = [one for one in file["epochs"] if one["restored_at_s"] == 100]
    texts = [t for _, _, t in found(restored, exported(restored), {**file, "epochs": first})]
    assert any("which no restoration that it knows explains" in text for text in texts)


def test_an_export_of_an_older_copy_is_a_fault(
    restored: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's file knows the restoration that the copy does not."""
    file = file_of(restored)
    restored.put_back(declared=False)
    texts = [text for _, _, text in found(restored, exported(restored), file)]
    assert any("older copy of the coordinator" in text for text in texts)


def test_an_export_without_restorations_reads_as_ever(bench: Restorable) -> None:
    """One of before has none, and neither has one of a coordinator that was never restored."""
    export, file = exported(bench), file_of(bench)
    assert "restorations" not in export
    del file["epochs"], file["before"]
    assert found(bench, export, file) == []
    assert bench.database.read_now(epochs.all_of) == []
    assert from_json(export, "x").restorations == [] == list(Witnesses("x").restorations)
