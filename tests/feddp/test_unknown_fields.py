"""`feddp budget verify` passes over no field that it does not know, wherever it stands."""

from collections.abc import Iterator
from typing import Any

import pytest
from command_line import Verify
from federation_ledger import Federation, two_attempts_each

from feddp.cli.verify.restorations import Restoration, export
from privacy.heads import head_of

Path = tuple[str | int, ...]


def objects(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where each object in it stands."""
    if isinstance(value, dict):
        yield path
    if isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from objects(one, (*path, name))


def shape(path: Path) -> Path:
    """The same for all members of a list."""
    return tuple(name for name in path if isinstance(name, str))


def ledger_with_restoration(federation: Federation) -> Any:
    """An export in which every kind of object stands."""
    places = [head_of(chain[-1]) for chain in federation.chains.values()]
    epoch = federation.restored(places)
    told = export(Restoration(epoch, places, {one.account: one.seq for one in places}))
    made = federation.export()
    made["witnesses"]["restorations"] = [told]
    return made


def file_of_all(federation: Federation, made: Any) -> Any:
    """A node's file in which every kind of object stands."""
    known = made["witnesses"]["restorations"][0]
    epoch = {name: one for name, one in known.items() if name not in ("places", "reconciled")}
    file = federation.heads("beta")
    when = {"since_s": 0, "until_s": 1000}
    before = {
        "heads": [one | when for one in file["heads"]],
        "checkpoints": [one | when for one in file["checkpoints"]],
    }
    disputes = [{"account": "beta/patients", "seq": 1, "text": "", "at_s": 1.0}]
    return file | {"epochs": [epoch], "before": before, "disputes": disputes}


def with_field(value: Any, path: Path) -> Any:
    """The same object with one field more in it, at that place."""
    if not path:
        return {**value, "promise": 0.1}
    name, rest = path[0], path[1:]
    if isinstance(value, list):
        return [with_field(one, rest) if at == name else one for at, one in enumerate(value)]
    return {**value, name: with_field(value[name], rest)}


LEDGER = ledger_with_restoration(two_attempts_each())
FILE = file_of_all(two_attempts_each(), LEDGER)
IN_LEDGER = {shape(path): path for path in objects(LEDGER)}
IN_FILE = {shape(path): path for path in objects(FILE)}


def test_every_kind_of_object_is_tried() -> None:
    """Those of the formats as docs/ledger.md has them."""
    assert len(IN_LEDGER) == 10
    assert len(IN_FILE) == 9


@pytest.mark.parametrize("kind", IN_LEDGER, ids="/".join)
def test_a_field_that_an_export_does_not_have_is_a_fault(
    federation: Federation, verify: Verify, kind: Path
) -> None:
    """Wherever it stands; what is printed names its place."""
    made = ledger_with_restoration(federation)
    assert verify(made)[0] == 0
    code, said = verify(with_field(made, IN_LEDGER[kind]))
    assert code == 1
    bad = [line for line in said.splitlines() if line.startswith("BAD: ")]
    places = {
        (): "the export has a field 'promise'",
        ("witnesses",): "witnesses has a field 'promise'",
        ("witnesses", "heads"): "the head 'gamma/patients', entry 4, has a field 'promise'",
        ("witnesses", "checkpoints"): "checkpoint 3 has a field 'promise'",
        ("witnesses", "checkpoints", "moved"): "checkpoint 3: moved 'gamma/patients', entry 4, has",
        ("witnesses", "restorations"): "epoch 2 has a field 'promise'",
        ("witnesses", "restorations", "places"): "epoch 2: places 'gamma/patients', entry 4, has",
        ("witnesses", "restorations", "reconciled"): "epoch 2: reconciled 'gamma/patients', entry",
        ("accounts",): "account gamma/patients: the account has a field 'promise'",
        ("entries",): "account gamma/patients, entry 4: An entry has the fields",
    }
    assert places[kind] in bad[0]


def test_a_field_after_the_entries_is_one_too(federation: Federation, verify: Verify) -> None:
    """The reader that holds no more than a part of the file is there by then."""
    code, said = verify(federation.export() | {"z" * 500: "\x1b[2J"})
    assert code == 1
    assert "BAD: the accounts and witnesses: the export has a field 'zzz" in said
    assert max(map(len, said.splitlines())) < 400


@pytest.mark.parametrize("kind", IN_FILE, ids="/".join)
def test_a_field_that_a_nodes_file_does_not_have_is_refused(
    federation: Federation, verify: Verify, kind: Path
) -> None:
    """With the file's name and the place."""
    made = ledger_with_restoration(federation)
    file = file_of_all(federation, made)
    assert "disputes this" in verify(made, file)[1], "it is read to its end"
    code, said = verify(made, with_field(file, IN_FILE[kind]))
    assert code == 2
    assert "0.json: " in said
    assert "has a field 'promise', which none of this version has" in said


def test_a_number_of_a_nodes_file_is_none_in_quotation_marks(
    federation: Federation, verify: Verify
) -> None:
    """As in an export: one spelling of what is signed."""
    file = federation.heads("beta")
    for name in ("delta", "epsilon_limit_highest", "epsilon_limit"):
        (one,) = file["accounts"]
        code, said = verify(
            federation.export(), file | {"accounts": [one | {name: str(one[name])}]}
        )
        assert (code, "is not what `feddp agent ledger heads --json` prints" in said) == (2, True)
