"""The privacy officer's pages: their code recomputes our hashes, signatures and epsilon."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from ledger_samples import ANNA, BERT, KEY, PUBLIC, chain, raised, statement

from node_agent.ledger.payers import source_digest
from node_agent.ledger.vouching import vouched_bytes
from node_agent.policy.policy import Policy
from privacy.accounting import epsilon_spent
from privacy.calibration import REPORT_SLACK_UNITS
from privacy.figures import figures_of, own_epsilon
from privacy.filters import make_filter
from privacy.ledger import GENESIS, append, sign, to_json
from privacy.releases import MECHANISMS, UNNOISED, Release
from tests.node_agent.samples import data_set

DOCUMENTS = [
    Path(__file__).parents[2] / "docs" / f"{name}.md" for name in ("privacy", "budgets", "ledger")
]


def written() -> str:
    """The pages, one after the other."""
    return "\n".join(one.read_text() for one in DOCUMENTS)


@pytest.fixture
def document_code(tmp_path: Path) -> dict[str, Any]:
    """The functions of every Python block."""
    blocks = re.findall(r"```python\n(.*?)```", written(), re.DOTALL)
    source = tmp_path / "blocks.py"
    source.write_text("\n".join(blocks))
    return runpy.run_path(str(source))


def test_the_documented_check_accepts_our_entries_and_no_others(
    document_code: dict[str, Any],
) -> None:
    """An outsider with the page and the exported JSON finds what we find."""
    first = statement("ä-𝄞", noise_multiplier=1e-7)
    void = first.resolved("void")
    entries = [append(first, None, sign(KEY, first))]
    entries += [append(void, entries[0], sign(KEY, void)), append(statement("b"), entries[0])]
    exported = [json.loads(json.dumps(to_json(one))) for one in entries]
    check = document_code["check"]
    check(exported[0], GENESIS, PUBLIC)
    check(exported[1], exported[0]["hash"], PUBLIC)
    check(exported[2], exported[0]["hash"], PUBLIC)
    with pytest.raises(AssertionError):
        check({**exported[1], "steps": 2}, exported[0]["hash"], PUBLIC)
    unsigned = to_json(append(void, entries[0]))
    with pytest.raises(InvalidSignature):
        check(unsigned, exported[0]["hash"], PUBLIC)


def test_the_documented_check_covers_raised_limits(document_code: dict[str, Any]) -> None:
    """Three signatures, two people, and the account counts on from there."""
    (first,) = chain(statement())
    exported = json.loads(json.dumps(to_json(append(raised(), first, sign(KEY, raised())))))
    check = document_code["check"]
    check(exported, first.hash, PUBLIC)
    for forged in (
        append(raised(agreed=("anna", BERT)), first, sign(KEY, raised(agreed=("anna", BERT)))),
        append(raised(agreed=("bert", ANNA)), first, sign(KEY, raised(agreed=("bert", ANNA)))),
        append(raised(2.0, 1.0), first, sign(KEY, raised(2.0, 1.0))),
        append(raised(), first, b""),
        append(raised(), first, sign(KEY, raised(reason="another"))),
        *(
            append(one, first, sign(KEY, one))
            for one in (
                replace(raised(), asked_signature="ab" * 64),
                replace(raised(), agreed_signature=raised(new=9.0).agreed_signature),
            )
        ),
    ):
        with pytest.raises((AssertionError, InvalidSignature)):
            check(to_json(forged), first.hash, PUBLIC)


def test_the_documented_second_account_is_a_policy_that_loads() -> None:
    """Copied as it stands: its signature is good, for these words and data sets alone."""
    (block,) = re.findall(r"```yaml\n(accounts:.*?)```", written(), re.DOTALL)
    content = yaml.safe_load(block)
    assert len(Policy.model_validate(content).accounts) == 2
    more = {**content["disjoint_data_sets"], "patients": ["heart", "heart-again"]}
    said = content["disjoint_patients"]
    for changes in ({"disjoint_patients": f"{said}."}, {"disjoint_data_sets": more}):
        with pytest.raises(ValueError, match="has signed other words"):
            Policy.model_validate({**content, **changes})


def test_the_documented_bytes_are_those_that_are_signed_and_kept(tmp_path: Path) -> None:
    """What a steward signs of two accounts, and what a data set's file is known by."""
    text = written()
    assert "the line `feddp-disjoint-v2` and then, as canonical JSON, `accounts`" in text
    assert vouched_bytes({"b": ["y", "x"], "a": []}, "why", "anna") == (
        b'feddp-disjoint-v2\n{"accounts":{"a":[],"b":["x","y"]},"disjoint_patients":"why",'
        b'"signed_by":"anna"}'
    )
    assert "BLAKE3 of the line `feddp-source-v1` and of the file's path" in text
    path = tmp_path.resolve() / "a.csv"
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    described = f'feddp-source-v1\n{{"kind":"file","path":"{path}"}}'.encode()
    for one in (path, link):
        assert source_digest(data_set(source=str(one))) == blake3(described).hexdigest()


def test_the_documented_stewards_are_those_of_a_policy() -> None:
    """The section of the page, read as a policy; its keys are Ed25519 keys."""
    (block,) = re.findall(r"```yaml\n(stewards:.*?)```", written(), re.DOTALL)
    found = Policy.model_validate(yaml.safe_load(block)).stewards
    assert [one.name for one in found] == ["anna", "bert"]
    keys = [key.public_key().public_bytes_raw().hex() for key in (ANNA, BERT)]
    assert [one.public_key for one in found] == keys


def test_the_documented_epsilon_is_ours(document_code: dict[str, Any]) -> None:
    """Over posted entries, reservations and work without data left out: ours, not rounded."""
    posts = [
        statement("a", "post", noise_multiplier=9.0, steps=5),
        statement("b", "post", noise_multiplier=12.5),
        statement(
            "c", "post", mechanism="poisson_gaussian", noise_multiplier=1.1, sample_rate=0.05
        ),
        statement("d", "post", mechanism="no_data", noise_multiplier=None),
        statement("f", "post", mechanism="laplace", noise_multiplier=14.0, steps=3),
        statement("g", "post", mechanism="discrete_gaussian", noise_multiplier=9.0, steps=2),
        statement("h", "post", mechanism="exponential", noise_multiplier=21.0, steps=4),
    ]
    lines = [one.fields() for one in [*posts, statement("e"), posts[0].resolved("void")]]
    theirs = document_code["epsilon"](lines, 1e-5)
    booked = epsilon_spent([one.release for one in posts], 1e-5)
    assert booked is not None
    assert theirs * (1 - 1e-6) <= booked <= theirs * 1.0002


@pytest.mark.parametrize("mechanism", [each for each in MECHANISMS if each not in UNNOISED])
def test_the_document_says_how_each_mechanism_is_counted(
    document_code: dict[str, Any], mechanism: str
) -> None:
    """A row in both tables, and a program that finds our figure."""
    text = written()
    assert len(re.findall(rf"^\| `{mechanism}` \|", text, re.MULTILINE)) == 2
    rate = 0.5 if mechanism == "poisson_gaussian" else 1.0
    one = statement(
        "a", "post", mechanism=mechanism, noise_multiplier=8.0, sample_rate=rate, steps=3
    )
    theirs = document_code["epsilon"]([one.fields()], 1e-5)
    booked = epsilon_spent([one.release], 1e-5)
    assert booked is not None
    assert theirs * (1 - 1e-6) <= booked <= theirs * 1.0002


def test_the_documented_order_is_the_best_for_its_plan(document_code: dict[str, Any]) -> None:
    """Order 3, and the losses and sums that the page names for it."""
    plan = [Release("poisson_gaussian", 1.5, 1 / 13, 13)] * 100
    assert document_code["order"] == 3
    found = figures_of(plan, make_filter("rdp", 3, 12.0, 1e-5))
    assert found is not None
    assert found.efficiency == pytest.approx(0.93, abs=0.005)
    assert round(found.naive) == 110
    assert round(100 * own_epsilon(plan[0], 1e-7)) == 158


@pytest.mark.parametrize(("epsilon", "releases"), [(0.05, 60), (0.1, 220), (0.5, 4200)])
def test_the_documented_slack_is_under_two_hundredths_of_a_percent(
    epsilon: float, releases: int
) -> None:
    """Up to so many releases, and no more than a few beyond."""
    account = make_filter("gdp", 0, epsilon, 1e-5)

    def lost(count: int) -> float:
        left = account.limit_units - count * REPORT_SLACK_UNITS
        return 1 - account.epsilon_of(left) / epsilon

    assert lost(releases) <= 2e-4 < lost(releases + releases // 10)
