"""`feddp budget verify`: what an account says of its terms, held against its entries and its node.

Where more than one thing is wrong, the terms are named first: the sums follow from them.
"""

from dataclasses import replace
from typing import Any

import pytest
from command_line import Verify
from federation_ledger import NODES, Federation, empty_account, refit, statement, two_attempts_each

from privacy import ledger
from privacy.heads import LimitInForce, head_of, root_of
from tests.privacy.ledger_samples import raised

BETA = "beta/patients"


def first_fault(said: str) -> str:
    """The first line that names one."""
    return next(line for line in said.splitlines() if line.startswith("BAD: "))


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize(("delta", "refused"), [(1 / 199, True), (0.4, True), (0.00502, False)])
def test_a_delta_of_one_over_the_declared_patients_is_the_first_fault(
    federation: Federation, verify: Verify, delta: float, refused: bool, fitted: bool
) -> None:
    """By what the account's own entries declare, whether or not its figures fit that delta."""
    export = federation.export()
    one = export["accounts"][1]
    one["delta"] = delta
    if fitted:
        refit(one)
    code, said = verify(export)
    assert code == (1 if refused or not fitted else 0)
    if refused:
        assert first_fault(said).startswith(
            f"BAD: account {BETA}, entry 1: the account's delta is {delta:g}, and this entry "
            "declares 199 patients, for whom delta must be below 1/199 (0.00502 will do)"
        )


def test_the_largest_data_set_of_an_account_counts(federation: Federation, verify: Verify) -> None:
    """Its entry is the one that is named, also where it released less than others."""
    chain = federation.chains["beta"]
    for kind in ("reserve", "post"):
        one = replace(statement(kind, "beta", 3), declared_n=100_000)  # type: ignore[arg-type]
        chain.append(ledger.append(one, chain[-1], ledger.sign(federation.keys["beta"], one)))
    code, said = verify(federation.export())
    assert code == 1
    assert "entry 5: the account's delta is 1e-05, and this entry declares 100000" in said


@pytest.mark.parametrize("name", ["epsilon_guarantee", "x" * 500, "\x1b[2J"])
@pytest.mark.parametrize("wrong_sums", [False, True])
def test_a_field_that_no_account_has_is_the_first_fault(
    federation: Federation, verify: Verify, name: str, wrong_sums: bool
) -> None:
    """Nothing proves it, and a reader may take it for a promise; its name comes escaped."""
    export = federation.export()
    export["accounts"][1][name] = 0.1
    if wrong_sums:
        export["accounts"][1]["limit_units"] = 1
    code, said = verify(export)
    assert code == 1
    first = first_fault(said)
    assert first.startswith(f"BAD: account {BETA}: the account has a field '")
    assert len(first) < 400
    assert "\x1b" not in said


def test_what_an_export_of_before_had_is_no_unknown_field(
    federation: Federation, verify: Verify
) -> None:
    """0.1.0 wrote the data sets, and later versions the shares."""
    export = federation.export()
    export["accounts"][0] |= {"data_sets": ["heart-disease"], "shares": []}
    assert verify(export)[0] == 0


def lowered(federation: Federation, epsilon_limit: float) -> Any:
    """An export whose account beta/patients says this limit of now, and figures that fit."""
    export = federation.export()
    export["accounts"][1]["epsilon_limit"] = epsilon_limit
    refit(export["accounts"][1])
    return export


def file_with(federation: Federation, limit: LimitInForce) -> Any:
    """Beta's file with another limit in force."""
    file = federation.heads("beta")
    file["accounts"][0] |= federation.signed_limit(limit)
    return file


@pytest.mark.parametrize(("said_limit", "own_limit"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.5)])
def test_a_lowered_limit_that_is_not_the_nodes_is_the_first_fault(
    federation: Federation, verify: Verify, said_limit: float, own_limit: float
) -> None:
    """Lowering is no entry, so that only the node's own file can tell; both figures are named."""
    export = lowered(federation, said_limit)
    export["accounts"][1]["epsilon_booked"] = 9.0
    code, said = verify(export, file_with(federation, LimitInForce(BETA, own_limit, 0)))
    assert code == 1
    assert first_fault(said).startswith(
        f"BAD: account {BETA}: the account says epsilon_limit {said_limit:g}, and its node"
        f" admits by {own_limit:g}, signed in the file of node beta"
    )


def test_a_lowered_limit_that_is_the_nodes_verifies(federation: Federation, verify: Verify) -> None:
    """Also where it is below what was spent, beside which a file of an older agent proves less."""
    for limit in (1.0, 0.3):
        export = lowered(federation, limit)
        assert verify(export, file_with(federation, LimitInForce(BETA, limit, 0)))[0] == 0
    older = federation.heads("beta")
    for name in ("epsilon_limit", "raises", "limit_signature"):
        del older["accounts"][0][name]
    assert verify(lowered(federation, 1.0), older)[0] == 0


def test_a_raise_that_the_ledger_lacks_is_told(federation: Federation, verify: Verify) -> None:
    """The node admits by a limit that the coordinator's chain does not show."""
    code, said = verify(federation.export(), file_with(federation, LimitInForce(BETA, 3.0, 1)))
    assert code == 1
    expected = "the node has recorded 1 raise of its limit, to 3 now, and none is here"
    assert expected in first_fault(said)


def test_a_limit_that_was_changed_in_a_file_is_found(
    federation: Federation, verify: Verify
) -> None:
    """It is signed, with the account and the number of raises."""
    file = file_with(federation, LimitInForce(BETA, 1.0, 0))
    file["accounts"][0]["epsilon_limit"] = 2.0
    code, said = verify(federation.export(), file)
    assert code == 1
    assert "holds a limit in force without the signature of its ledger key" in first_fault(said)


def test_a_raise_since_the_file_was_made_is_no_fault(
    federation: Federation, verify: Verify
) -> None:
    """The file is older than the export, as it must be, and its limit of the past."""
    file = federation.heads("beta")
    key, chain = federation.keys["beta"], federation.chains["beta"]
    change = raised(2.0, 3.0, account=BETA, node="beta")
    chain.append(ledger.append(change, chain[-1], ledger.sign(key, change)))
    assert verify(lowered(federation, 3.0), file)[0] == 0


def test_each_fault_of_a_checkpoint_names_both_values_and_what_to_do(
    federation: Federation, verify: Verify
) -> None:
    """The place where an account was said to stand, the signed root and the one that was made."""
    export = federation.export()
    third = export["witnesses"]["checkpoints"][2]
    third["moved"][0]["seq"] = 2
    said = first_fault(verify(export)[1])
    assert "checkpoint 3 says that this account has moved to entry 2" in said
    assert "by the checkpoints before it stood at entry 2 already" in said
    assert "Export the ledger anew" in said
    export = federation.export()
    _, second, third = export["witnesses"]["checkpoints"]
    second["moved"] = third["moved"]
    said = first_fault(verify(export)[1])
    assert f"the coordinator has signed root {second['root'][:16]}…" in said
    leaves = [head_of(federation.chains[node][3]).leaf() for node in NODES]
    assert f"that the export tells (3 accounts) make {root_of(leaves)[:16]}…" in said
    export = federation.export()
    second = export["witnesses"]["checkpoints"][1]
    second["prev_hash"] = "ab" * 32
    said = first_fault(verify(export)[1])
    assert f"it names {'ab' * 8}… as that one's hash" in said
    assert f"which is {federation.checkpoints[0].hash[:16]}…" in said


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"filter": "rdp"}, "An rdp order is a whole number"),
        ({"filter": "x" * 99}, "A filter is gdp or rdp"),
        ({"rdp_order": 3}, "A gdp filter has no order"),
        ({"filter": "rdp", "rdp_order": 3}, "starts at epsilon 4.81"),
        ({"delta": "1"}, "delta must be from"),
    ],
)
def test_terms_that_no_account_can_have_are_named_with_the_account(
    federation: Federation, verify: Verify, changed: dict[str, Any], why: str
) -> None:
    """All four of them, what is wrong, and with what to compare them."""
    export = federation.export()
    export["accounts"][1] |= changed
    code, said = verify(export)
    assert code == 1
    assert f"account '{BETA}' says filter '{changed.get('filter', 'gdp')[:59]}" in said
    assert why in said
    assert "Compare the four with `feddp agent status` at the hospital" in said


def test_sums_by_another_filter_name_the_filter(federation: Federation, verify: Verify) -> None:
    """An account that can count so, and whose entries were counted otherwise."""
    export = federation.export()
    export["accounts"][1] |= {"filter": "rdp", "rdp_order": 8}
    said = first_fault(verify(export)[1])
    assert "posted units, its entries" in said
    assert said.endswith("by its filter (rdp of order 8, limit 2 at delta 1e-05)")


def test_the_note_on_countersignatures_follows_the_files_that_are_given(
    federation: Federation, verify: Verify
) -> None:
    """Who has given heads is not asked for them again."""
    export = federation.export()
    export["witnesses"]["heads"] = []
    assert "ask the hospitals for --heads" in verify(export)[1]
    said = verify(export, federation.heads("beta"), federation.heads("alpha"))[1]
    assert "The heads that are in the files given, of 2 accounts, are signed" in said
    assert "ask the hospitals for --heads" not in said
    said = verify(export, federation.heads("beta") | {"heads": []})[1]
    assert "neither the ledger nor the files given hold a head" in said


def test_one_thing_is_spoken_of_as_one(federation: Federation, verify: Verify) -> None:
    """One reservation of one node."""
    chain = federation.chains["alpha"]
    chain[0] = replace(chain[0], node_signature=b"")
    said = verify(federation.export())[1]
    assert "1 reservation carries no signature of its node, whose post does (no fault" in said
    chain[1] = replace(chain[1], node_signature=b"")
    assert "1 post carries no signature of its node (no fault)" in verify(federation.export())[1]


def with_second_account(federation: Federation) -> Any:
    """An export in which beta has another account, which nothing was ever booked on."""
    export = federation.export()
    export["accounts"].insert(2, empty_account(federation, "beta/others"))
    return export


@pytest.mark.parametrize("node", ["", None, "alpha", "Beta", 7])
@pytest.mark.parametrize("place", [1, 2])
def test_an_account_names_the_node_of_its_own_name(
    federation: Federation, verify: Verify, node: object, place: int
) -> None:
    """With entries and without any, which would prove nothing by themselves."""
    export = with_second_account(federation)
    assert verify(export)[0] == 0
    export["accounts"][place]["node"] = node
    code, said = verify(export)
    assert code == 1
    name = export["accounts"][place]["account"]
    assert first_fault(said).startswith(
        f"BAD: account {name}: the account says node {node!r}, and it is node beta's"
    )


@pytest.mark.parametrize("change", ["other", "empty", "upper", "spaced", "short", "none"])
@pytest.mark.parametrize("place", [1, 2])
def test_all_accounts_of_a_node_name_its_one_ledger_key(
    federation: Federation, verify: Verify, change: str, place: int
) -> None:
    """In one spelling; the account that differs is the first fault, and said as such."""
    export = with_second_account(federation)
    one = export["accounts"][place]
    key = one["ledger_public_key"]
    one["ledger_public_key"] = {
        "other": "ab" * 32,
        "empty": "",
        "upper": key.upper(),
        "spaced": " ".join([key[:32], key[32:]]),
        "short": key[:-2],
        "none": None,
    }[change]
    code, said = verify(export)
    assert code == 1
    expected = "of the same node" if change in ("other", "empty") else "lower-case hexadecimal"
    assert "the account says ledger_public_key" in first_fault(said)
    assert expected in first_fault(said)


@pytest.mark.parametrize("name", ["beta/renamed", "alpha/others", "others", "/others", "beta/"])
def test_an_account_without_entries_keeps_its_name(verify: Verify, name: str) -> None:
    """A checkpoint's root is made of it, too, so that it cannot be taken out or renamed."""
    export = with_second_account(two_attempts_each(["beta/others"]))
    assert verify(export)[0] == 0
    export["accounts"][2]["account"] = name
    code, said = verify(export)
    assert code == 1
    assert "BAD: account beta/others: checkpoint 1 was made over this account" in said
