"""When a node works, with how much of its machine, and whose first job somebody must look at."""

from dataclasses import replace
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, field_validator

from node_agent.connection.bandwidth import TransferPolicy, readable_hours
from node_agent.launchers.base import WORKER_BYTES_MIN, Limits


class WorkPolicy(BaseModel):
    """`work` in `policy.yaml`.

    Attributes:
        hours: "HH:MM-HH:MM" in the local time of this machine, as in `transfer`; empty for always.
            Outside them nothing is begun; what has opened the data goes on to its end.
        threads_max, memory_bytes_max: of a worker, below what agent.yaml gives it; None for that.
        gpus_max: GPUs that a worker may see.
        approve_first_job: whether a project's first job waits for `feddp agent approve`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    hours: list[str] = Field(default=[], examples=[["20:00-06:00"]])
    threads_max: int | None = Field(default=None, ge=1, le=1024)
    memory_bytes_max: int | None = Field(default=None, ge=WORKER_BYTES_MIN)
    gpus_max: int = Field(default=0, ge=0, le=64)
    approve_first_job: bool = False

    @field_validator("hours")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return readable_hours(value)

    def is_open(self, now: datetime) -> bool:
        """Whether work may begin at this local time."""
        return TransferPolicy(hours=self.hours).is_open(now)

    def within(self, limits: Limits) -> Limits:
        """The lower of the machine's limits and the steward's."""
        memory = [one for one in (limits.memory_bytes_max, self.memory_bytes_max) if one]
        return replace(
            limits,
            threads=min(limits.threads, self.threads_max or limits.threads),
            memory_bytes_max=min(memory, default=0),
            gpus=self.gpus_max,
        )
