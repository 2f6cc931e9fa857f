"""Who may read which bytes."""

from dataclasses import dataclass

from coordinator.rounds.events import Offer
from coordinator.rounds.phases import Attempt, Course, Phase, Plan, RoundRecord, Training
from coordinator.rpc.transfer import TransferService


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
