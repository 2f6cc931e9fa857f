"""What a submission is told of hospitals whose data set cannot be used now."""

from dataclasses import replace

import pytest

from coordinator.store import people
from coordinator.submissions import check_delta, unavailable, waited_for
from protos.errors import NotFound, WrongPhase
from protos.feddp.v1 import federation_pb2 as federation
from tests.coordinator.planning import HASH, facts, job


def node(name: str, reason: str = "", status: str = "enrolled") -> people.NodeRecord:
    """A node that publishes the data set."""
    one = federation.DataSet(name="heart-disease", declared_n=199, unavailable=reason)
    hello = federation.Hello(data_sets=[federation.DataSet(name="lungs"), one])
    return people.NodeRecord(name, "edge", status, b"", 0.0, hello)


def test_a_submission_names_each_hospital_whose_data_set_cannot_be_used() -> None:
    """With its reason; the others can begin."""
    assert unavailable(job(), [node("a"), node("b")]) == []
    (said,) = unavailable(job(), [node("a"), node("b", "SCHEMA_MISMATCH")])
    assert said.startswith("b cannot take part now, SCHEMA_MISMATCH: the columns of its data set")
    assert "`feddp agent status`" in said


def test_a_submission_that_no_hospital_can_take_now_is_refused() -> None:
    """Not one that reads no records; a disabled hospital does not count as one that can."""
    nodes = [node("a", "SOURCE_MISSING"), node("b", "SCHEMA_MISMATCH")]
    for them in (nodes, [*nodes, node("c", status="disabled")]):
        with pytest.raises(WrongPhase, match="a cannot take part now, SOURCE_MISSING") as caught:
            unavailable(job(), them)
        assert caught.value.reason == "DATA_SET_UNAVAILABLE"
        assert "b cannot take part now, SCHEMA_MISMATCH" in caught.value.message
    assert unavailable(replace(job(), mechanism="no_data"), nodes) == []


def test_a_submission_names_whom_its_job_waits_for() -> None:
    """Too few can begin: each that cannot, and how many can; else only whose files are broken."""
    nodes = [replace(facts(), node=name) for name in "cbad"]
    assert waited_for(job(), HASH, nodes) == ([], "")
    nodes[0].data_set.unavailable = "ACCOUNT_LEFT_OUT"
    (said,), few = waited_for(job(), HASH, nodes)
    assert few == ""
    assert said.startswith("c cannot take part now, ACCOUNT_LEFT_OUT: its policy leaves out")
    nodes[1] = replace(nodes[1], connected=False)
    told, few = waited_for(job(), HASH, nodes)
    assert [one.partition(":")[0] for one in told] == [
        "b cannot take part now, OFFLINE",
        "c cannot take part now, ACCOUNT_LEFT_OUT",
    ]
    assert few == "2 of at least 3 can take part now"


def test_a_job_for_which_no_account_can_be_used_names_each_hospital() -> None:
    """An account that its steward's files make useless is not published, and its reason is."""
    with pytest.raises(NotFound) as caught:
        check_delta(job(), [node("a", "ACCOUNT_LEFT_OUT"), node("b", "DELTA_TOO_LARGE")])
    assert "(a: ACCOUNT_LEFT_OUT, b: DELTA_TOO_LARGE)" in caught.value.message
