"""What a submission is told of hospitals whose data set cannot be used now."""

from dataclasses import replace

import pytest

from coordinator.store import people
from coordinator.submissions import unavailable
from protos.errors import WrongPhase
from protos.feddp.v1 import federation_pb2 as federation
from tests.coordinator.planning import job


def node(name: str, reason: str = "", status: str = "enrolled") -> people.NodeRecord:
    """A node that publishes the data set."""
    one = federation.DataSet(name="heart-disease", unavailable=reason)
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
