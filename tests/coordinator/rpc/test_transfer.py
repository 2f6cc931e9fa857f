"""Who may read which bytes, and who may send which."""

import asyncio
from dataclasses import dataclass

import pytest

from coordinator.authz import Caller
from coordinator.rounds.events import Offer
from coordinator.rounds.phases import Attempt, Course, Phase, Plan, RoundRecord, Training
from coordinator.rpc import transfer
from coordinator.rpc.transfer import TransferService
from protos.errors import FeddpError
from protos.feddp.v1 import transfer_pb2 as pb


@dataclass
class Running:
    """A job that trains."""

    phase: Phase


@dataclass
class Rounds:
    """The jobs that run."""

    jobs: list[Running]

    def running(self) -> list[Running]:
        """All of them."""
        return self.jobs


def training(node: str) -> Running:
    """A job that starts from the model "m" and has ordered one node."""
    offer = Offer(node, f"{node}/p", 100, "gaussian", 8.0, 1.0)
    record = RoundRecord(1, 0.0, attempts=(Attempt(f"t-{node}", offer, 0.0),))
    return Running(Training(Course(Plan(2, 1, 60.0, 3), "m", "m"), record, 60.0))


def may_read(jobs: list[Running], node: str, digest: str) -> bool:
    """What the service says."""
    service = TransferService(None, None, Rounds(jobs), None, 0)  # type: ignore[arg-type]
    return service._is_ordered(node, digest)


def test_a_node_reads_a_model_that_another_job_starts_from_too() -> None:
    """Two jobs from one model: an order of the second is as good as one of the first."""
    jobs = [training("a"), training("b")]
    assert may_read(jobs, "a", "m")
    assert may_read(jobs, "b", "m")


def test_a_node_reads_no_model_that_it_was_not_ordered() -> None:
    """Neither without an order, nor another model than the order's."""
    jobs = [training("a"), training("b")]
    assert not may_read(jobs, "c", "m")
    assert not may_read(jobs, "a", "another")


ENGINEER = Caller("ana", frozenset({"engineer"}), "default")
NODE = Caller("a", frozenset({"node"}), node="a")


@pytest.mark.parametrize(
    ("who", "size", "answer"),
    [
        (ENGINEER, 100, "user.ana"),
        (ENGINEER, 101, "TOO_LARGE"),
        (NODE, 100, "NOT_ALLOWED"),
    ],
)
def test_a_model_is_a_persons_and_no_larger_than_the_coordinator_takes(
    monkeypatch: pytest.MonkeyPatch, who: Caller, size: int, answer: str
) -> None:
    """It is refused by its header, before a byte of it lies on the disk: `storage.model_bytes_max`.
    What belongs to no attempt is nothing that a node may send."""
    monkeypatch.setattr(transfer, "caller", lambda: who)
    service = TransferService(None, None, Rounds([]), None, 100)  # type: ignore[arg-type]
    header = pb.UploadHeader(digest="d" * 64, size=size)
    try:
        owner, received = asyncio.run(service._owner(header))
    except FeddpError as error:
        assert error.reason == answer
    else:
        assert (owner, received) == (answer, False)
