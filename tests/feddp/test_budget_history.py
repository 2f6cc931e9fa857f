"""`feddp budget verify` with checkpoints and nodes' files: what was left out is found."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, Verify
from federation_ledger import NODES, Federation, empty_account, raw, refit, two_attempts_each

from feddp.cli.verify.restorations import Restoration, coordinator_faults
from privacy import ledger
from privacy.heads import Head, head_of


def test_a_right_ledger_verifies_beside_every_nodes_file(
    federation: Federation, verify: Verify
) -> None:
    """And each account is said to have its node behind it."""
    code, said = verify(federation.export(), *(federation.heads(node) for node in NODES))
    assert code == 0
    assert "beside what 3 nodes have seen" in said
    assert "NOTE" not in said
    line = "behind alpha/patients: its own node's file up to entry 4 of 4; checkpoints"
    assert line in said
    code, said = verify(federation.export(), federation.heads("beta"))
    assert code == 0
    assert "beside what 1 node has seen" in said
    line = "behind alpha/patients: checkpoints in nodes' files up to entry 4 of 4; no file for its"
    assert line in said
    assert "behind alpha/patients: no node's file" in verify(federation.export())[1]


def test_a_file_that_holds_nothing_of_an_account_is_not_said_to_be_absent(
    federation: Federation, verify: Verify
) -> None:
    """An account without entries is in no node's own ledger; what stands there is what is so."""
    export = federation.export()
    export["accounts"].append(empty_account(federation, "beta/others"))
    own = "behind beta/others: its own node's file, and it has no entry"
    assert own in verify(export, federation.heads("beta"))[1]
    assert "behind beta/others: no node's file" in verify(export, federation.heads("alpha"))[1]


def test_a_file_that_is_not_there_is_not_found(run: Run, tmp_path: Path) -> None:
    """Exit code 3, as of every command; for the ledger and for a node's file."""
    federation = two_attempts_each()
    ledger = tmp_path / "ledger.json"
    gone = run("budget", "verify", ledger)
    assert (gone.code, "there is no file" in gone.err) == (3, True)
    ledger.write_text(json.dumps(federation.export()))
    gone = run("budget", "verify", ledger, "--heads", tmp_path / "alpha.json")
    assert (gone.code, "there is no file" in gone.err) == (3, True)


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("with_file", [False, True])
def test_an_account_that_was_cut_is_named_by_the_checkpoints(
    federation: Federation, verify: Verify, attempts: int, with_file: bool
) -> None:
    """Its sums are right and its countersigned head is gone; another hospital's file is enough,
    and so are the export's own checkpoints."""
    files = [federation.heads("beta")] if with_file else []
    federation.cut("alpha", attempts)
    export = federation.export()
    heads = export["witnesses"]["heads"]
    export["witnesses"]["heads"] = [one for one in heads if one["account"] != "alpha/patients"]
    code, said = verify(export, *files)
    assert code == 1
    assert "BAD: account alpha/patients" in said
    assert "behind" not in said
    assert f"and {'2 are' if attempts == 1 else 'none is'} here, below checkpoint" in said


@pytest.mark.parametrize("whole_account", [False, True])
@pytest.mark.parametrize("how", ["moved", "checkpoints", "places", "witnesses"])
def test_what_hides_a_cut_is_found_by_another_hospitals_file(
    federation: Federation, verify: Verify, how: str, whole_account: bool
) -> None:
    """The roots are signed, and the file has them: places that are told otherwise do not make
    them, and checkpoints that are taken away are missed."""
    file = federation.heads("beta")
    if whole_account:
        export = federation.export()
        export["accounts"] = export["accounts"][1:]
        export["entries"] = [one for one in export["entries"] if one["node"] != "alpha"]
    else:
        federation.cut("alpha", 1)
        export = federation.export()
    kept = export["witnesses"]
    kept["heads"] = [one for one in kept["heads"] if one["account"] != "alpha/patients"]
    for one in kept["checkpoints"]:
        one["moved"] = [
            at
            for at in one["moved"]
            if at["account"] != "alpha/patients" or (at["seq"] < 4 and not whole_account)
        ]
    if how == "checkpoints":
        del kept["checkpoints"][0 if whole_account else 2 :]
    elif how == "places":
        for one in kept["checkpoints"]:
            del one["moved"]
    elif how == "witnesses":
        del export["witnesses"]
    code, said = verify(export, file)
    assert code == 1
    expected = {
        "moved": "was made over other entries than these",
        "checkpoints": "node beta has seen checkpoint 3, and",
        "witnesses": "node beta has seen checkpoint 3, and none is here",
        "places": "the roots that nodes hold cannot be made",
    }
    assert expected[how] in said


def test_an_export_that_does_not_say_what_roots_are_made_of_is_said_to_be_unchecked(
    federation: Federation, verify: Verify
) -> None:
    """Alone it verifies, and says so plainly; beside a node's file it does not."""
    export = federation.export()
    for one in export["witnesses"]["checkpoints"]:
        del one["moved"]
    code, said = verify(export)
    assert code == 0
    assert "NOTE: roots were NOT checked" in said
    assert verify(export, federation.heads("beta"))[0] == 1


def test_a_checkpoint_over_many_accounts_is_read(
    federation: Federation, run: Run, tmp_path: Path
) -> None:
    """Ten thousand hospitals' accounts at once; none of them is here, so that one is named."""
    export = federation.export()
    moved = export["witnesses"]["checkpoints"][0]["moved"]
    moved += [{"account": f"hospital-{n:05}/{'p' * 60}", "seq": 1} for n in range(10_000)]
    (tmp_path / "ledger.json").write_text(json.dumps(export, indent=2))
    ran = run("budget", "verify", "ledger.json")
    assert ran.code == 1
    assert "BAD: account hospital-00000/" in ran.out


def test_the_same_node_counts_once(federation: Federation, verify: Verify) -> None:
    """However often its file is given."""
    file = federation.heads("beta")
    code, said = verify(federation.export(), file, file)
    assert (code, "beside what 1 node has seen" in said) == (0, True)


def test_an_empty_file_is_refused(federation: Federation, verify: Verify) -> None:
    """It proves nothing, and is not counted."""
    file = federation.heads("beta") | {"heads": [], "checkpoints": []}
    code, said = verify(federation.export(), file)
    assert code == 2
    assert "has seen no entry and no checkpoint" in said


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"node": "nobody"},
            "BAD: the nodes' files: there is a file of node nobody, and no account of that node",
        ),
        ({"node": "gamma"}, "the file of node gamma names another ledger key"),
        ({"ledger_public_key": "ab" * 32}, "the file of node beta names another ledger key"),
        ({"coordinator_ledger_key": "ab" * 32}, "another coordinator's ledger key"),
        (
            {"coordinator_ledger_key": "ab" * 32, "checkpoints": []},
            "another coordinator's ledger key",
        ),
        (
            {"disputes": [{"account": "*", "seq": 6, "text": "it is another", "at_s": 1}]},
            "BAD: checkpoint 6: node beta disputes this: it is another",
        ),
        (
            {"disputes": [{"account": "*", "seq": 0, "text": "the key is another", "at_s": 1}]},
            "BAD: the checkpoints: node beta disputes this: the key is another",
        ),
        (
            {"disputes": [{"account": "beta/patients", "seq": 3, "text": "it differs", "at_s": 1}]},
            "BAD: account beta/patients, entry 3: node beta disputes this: it differs",
        ),
    ],
)
def test_a_file_that_is_not_of_this_ledger_or_disputes_it_fails(
    federation: Federation, verify: Verify, changed: dict[str, Any], text: str
) -> None:
    """Exit code 1, and the reason."""
    code, said = verify(federation.export(), federation.heads("beta") | changed)
    assert code == 1
    assert text in said


FORGED = "\nbehind alpha/patients: its own node's file up to entry 4 of 4"


@pytest.mark.parametrize(
    "name", [f"alpha/z{FORGED}", "alpha/pati\u200bents", "alpha/\u0430", "alpha/"]
)
def test_an_account_of_no_such_name_is_a_fault_and_begins_no_line(
    federation: Federation, verify: Verify, name: str
) -> None:
    """One without entries needs no signature: its name is whoever made the export's."""
    export = federation.export()
    export["accounts"].append(empty_account(federation, name))
    code, said = verify(export)
    assert code == 1
    assert "an account is named NODE/NAME" in said
    assert "behind alpha/patients" not in [line[:21] for line in said.splitlines()]


def test_what_a_file_says_begins_no_line(federation: Federation, verify: Verify) -> None:
    """Of what stands in it, the reader sees where it is quoted."""
    disputes = [{"account": "*", "seq": 6, "text": f"no{FORGED}", "at_s": 1}]
    code, said = verify(federation.export(), federation.heads("beta") | {"disputes": disputes})
    assert code == 1
    assert "node beta disputes this: no?behind alpha" in said
    assert "behind alpha/patients" not in [line[:21] for line in said.splitlines()]


@pytest.mark.parametrize("wrong", ["", {}, "alpha", {"account": "alpha/patients"}, None])
@pytest.mark.parametrize("which", ["heads", "checkpoints"])
def test_what_is_no_list_is_not_read_as_an_empty_one(
    federation: Federation, verify: Verify, which: str, wrong: object
) -> None:
    """Of what a node saw before a restoration, as of what it has seen since."""
    file = federation.heads("beta")
    assert verify(federation.export(), file | {"before": {"heads": [], "checkpoints": []}})[0] == 0
    before = {"heads": [], "checkpoints": []} | {which: wrong}
    for changed in ({which: wrong}, {"before": before}):
        code, said = verify(federation.export(), file | changed)
        assert (code, "is not what `feddp agent ledger heads --json` prints" in said) == (2, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("delta", 1e-9), ("delta", 0.004), ("epsilon_limit_highest", 9.0), ("filter", "rdp")],
)
def test_terms_that_are_not_the_nodes_own_are_found(
    federation: Federation, verify: Verify, field: str, value: Any
) -> None:
    """Every other figure is made to fit them."""
    export = federation.export()
    one = export["accounts"][1]
    one[field] = value
    if field == "filter":
        one["rdp_order"], one["epsilon_limit"], one["epsilon_limit_highest"] = 8, 9.0, 9.0
    elif field == "epsilon_limit_highest":
        one["epsilon_limit"] = 9.0
    refit(one)
    assert verify(export, federation.heads("alpha"))[0] == 0
    code, said = verify(export, federation.heads("beta"))
    assert code == 1
    assert f"the account says {field} {value}, and its node's own ledger" in said


def test_terms_that_were_changed_in_a_file_are_found(
    federation: Federation, verify: Verify
) -> None:
    """Each is signed by its node."""
    file = federation.heads("beta")
    file["accounts"][0]["delta"] = 1e-9
    code, said = verify(federation.export(), file)
    assert code == 1
    assert "the file of node beta holds terms without the signature of its ledger key" in said


@pytest.mark.parametrize("value", [0, 1e-3, float("nan"), None, "1", True])
@pytest.mark.parametrize(
    "field",
    [
        "epsilon_spent",
        "epsilon_booked",
        "epsilon_naive",
        "efficiency",
        "booked_to_naive",
        "epsilon_start",
        "limit_units",
        "pending_units",
    ],
)
def test_a_figure_that_the_entries_do_not_make_is_refused(
    federation: Federation, verify: Verify, field: str, value: object
) -> None:
    """Whatever kind of value it is."""
    export = federation.export()
    if export["accounts"][0][field] == value and type(value) is int:
        value = 1
    export["accounts"][0][field] = value
    code, said = verify(export)
    assert code == 1
    assert f"BAD: account alpha/patients, entry 4: the account says another {field}" in said


@pytest.mark.parametrize("value", [{}, [3], "x", None, 2.5, True])
@pytest.mark.parametrize("where", ["heads", "checkpoints", "disputes", "accounts", "number", "seq"])
def test_a_nodes_file_of_another_shape_is_refused(
    federation: Federation, verify: Verify, where: str, value: object
) -> None:
    """Also where a value could be taken for the one that belongs there."""
    file = federation.heads("beta")
    if where == "number":
        file["checkpoints"][0]["number"] = value
    elif where == "seq":
        file["heads"][0]["seq"] = value
    else:
        file[where] = value
    code, said = verify(federation.export(), file)
    assert code == 2
    assert "is not what `feddp agent ledger heads --json` prints" in said


@pytest.mark.parametrize("spell", [str.upper, "{} ".format, " {}".format])
@pytest.mark.parametrize("where", ["head", "checkpoint", "coordinator", "terms", "node"])
def test_a_key_or_signature_has_one_spelling(
    federation: Federation, verify: Verify, where: str, spell: Callable[[str], str]
) -> None:
    """Lower-case hexadecimal digits, in the export and in a node's file: nobody takes two files of
    one content for two, or compares them by their bytes in vain."""
    export, file = federation.export(), federation.heads("alpha")
    for seen in (export["witnesses"], file):
        there: dict[str, tuple[Any, str]] = {
            "head": (seen["heads"][0], "node_signature"),
            "checkpoint": (seen["checkpoints"][0], "signature"),
            "coordinator": (seen, "coordinator_ledger_key"),
            "terms": (file["accounts"][0], "node_signature"),
            "node": (file, "ledger_public_key"),
        }
        holder, name = there[where]
        right = holder[name]
        holder[name] = spell(right)
        assert holder[name] != right
        code, said = verify(export, file)
        assert code in (1, 2)
        assert "an account or a witness is not one" in said or "ledger heads --json` prints" in said
        holder[name] = right
    assert verify(export, file)[0] == 0


def test_what_nobody_can_check_is_not_exported(federation: Federation) -> None:
    """The node's limits within the account, and the data sets that it publishes."""
    assert not {"shares", "data_sets"} & federation.export()["accounts"][0].keys()


def test_reservations_without_signature_are_counted(federation: Federation, verify: Verify) -> None:
    """All of them, since each counts; and apart those whose post is signed, which is odd."""
    for chain in federation.chains.values():
        for place, one in enumerate(chain):
            if one.statement.kind == "reserve":
                chain[place] = replace(one, node_signature=b"")
    code, said = verify(federation.export())
    assert code == 0
    assert "6 reservations carry no signature of their nodes, whose posts do" in said
    first = federation.chains["alpha"]
    first[1] = replace(first[1], node_signature=b"")
    said = verify(federation.export())[1]
    assert "6 reservations carry no signature of their nodes; each counts until" in said
    assert "of these 5 reservations carry no signature" in said
    assert "1 post carries no signature of its node" in said


def test_a_member_that_is_there_twice_is_refused(
    federation: Federation, run: Run, tmp_path: Path
) -> None:
    """In an entry as in a node's file: one reader would take the first, another the last."""
    (tmp_path / "ledger.json").write_text(json.dumps(federation.export()))
    text = json.dumps(federation.heads("beta"))
    (tmp_path / "beta.json").write_text(text.replace('"node": ', '"node": "x", "node": ', 1))
    assert run("budget", "verify", "ledger.json", "--heads", "beta.json").code == 2
    text = json.dumps(federation.export())
    (tmp_path / "ledger.json").write_text(text.replace('"steps": 5', '"steps": 4, "steps": 5', 1))
    assert run("budget", "verify", "ledger.json").code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"accounts":[],"witnesses":{},"entries":[]}',
            "checkpoints is missing",
        ),
        ('{"accounts":[{}],"entries":[]}', "account is missing"),
        (
            '{"accounts":[],"witnesses":{"coordinator_ledger_key":"","heads":[3],"checkpoints":[]},'
            '"entries":[]}',
            "a field is of another kind than it must be",
        ),
    ],
)
def test_what_is_missing_is_said_in_words(run: Run, tmp_path: Path, text: str, said: str) -> None:
    """Never by the name of an error of Python's."""
    (tmp_path / "ledger.json").write_text(text)
    ran = run("budget", "verify", "ledger.json")
    assert ran.code == 1
    assert said in ran.out
    assert "Error" not in ran.out


def test_a_ledger_that_was_not_compared_with_any_node_says_so_last(
    federation: Federation, verify: Verify
) -> None:
    """It proves less: who rewrites the whole of it, the keys included, is found by no sum."""
    code, said = verify(federation.export())
    assert code == 0
    last = said.splitlines()[-1]
    assert last.startswith("the ledger verifies by itself. No node's file was given (--heads)")
    code, said = verify(federation.export(), federation.heads("beta"))
    assert (code, said.splitlines()[-1]) == (0, "the ledger verifies")


@pytest.mark.parametrize("earlier", [True, False])
def test_a_chain_that_was_written_anew_is_said_to_be_so_from_where_its_node_last_agrees(
    federation: Federation, verify: Verify, earlier: bool
) -> None:
    """Its hashes are right again, and what is not signed may be changed: where it began lies
    between the newest head that the node has signed as it is, and the first that is another one."""
    seen = federation.export()["witnesses"]["heads"]
    key, chain = federation.keys["alpha"], federation.chains["alpha"]
    if earlier:
        head = head_of(chain[1])
        signature = key.sign(head.canonical()).hex()
        seen.insert(0, {**asdict(head), "node_signature": signature})
    for number in (2, 3):
        forged = replace(chain[number].statement, project="another")
        chain[number] = ledger.append(forged, chain[number - 1])
    export = federation.export()
    export["witnesses"]["heads"] = seen
    code, said = verify(export)
    assert code == 1
    line = "node alpha has seen another entry 4, "
    assert said.count(line) == 1
    if earlier:
        expected = "one of the entries 3 to 4 on, and entry 2 is as the node has signed it"
    else:
        expected = "one of the entries 1 to 4 on, and no earlier head that the node has signed"
    assert f"the history was rewritten, from {expected}" in said


class Places(list[Head]):
    """Counts how often it is gone through."""

    times = 0

    def __iter__(self) -> Iterator[Head]:
        self.times += 1
        return super().__iter__()

    def __reversed__(self) -> Iterator[Head]:
        self.times += 1
        return super().__reversed__()


def test_a_restoration_of_many_accounts_is_read_in_time(federation: Federation) -> None:
    """Its places are gone through a few times in all, and not once for each account."""
    places = Places(Head(f"alpha/a{number}") for number in range(50))
    epoch = federation.restored(places)
    one = Restoration(epoch, places, {head.account: 0 for head in places})
    places.times, key = 0, raw(federation.coordinator)
    assert coordinator_faults([one], key, federation.checkpoints, {}, {}, whole=True) == []
    assert "0 entries of alpha/a49 were handed in again" in one.said()
    assert places.times < 10
    late = replace(one, reconciled={"alpha/a7": 3})
    (found,) = coordinator_faults([late], key, federation.checkpoints, {}, {}, whole=True)
    assert found[:2] == ("alpha/a7", 3)
