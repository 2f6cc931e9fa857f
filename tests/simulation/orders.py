"""The order that a node gets, made by the coordinator's own code."""

from types import SimpleNamespace

from coordinator.rounds.effects import work_order
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Attempt, Training
from protos.feddp.v1 import federation_pb2 as pb


class _Models:
    """As much of the blob store as an order asks for: every model has 40 bytes."""

    def model(self, digest: str) -> SimpleNamespace:
        return SimpleNamespace(stat=lambda: SimpleNamespace(st_size=40))


def order_of(live: LiveJob, phase: Training, attempt: Attempt) -> pb.WorkOrder:
    """The order of an attempt; its deadline is by the real clock, which nothing here reads."""
    order = work_order(live, phase, attempt, _Models())  # type: ignore[arg-type]
    order.ClearField("deadline_s")
    return order
