"""What is said of a model that there is not."""

import asyncio
from typing import Any

import pytest

from coordinator.authz import Caller
from coordinator.rpc import people
from coordinator.store.jobs import ModelRecord
from protos.errors import NotFound
from protos.feddp.v1 import models_pb2


class Models:
    """A database that holds one model: of a round of a job without an answer."""

    async def read(self, _work: Any) -> list[ModelRecord]:
        return [ModelRecord("job-1", "round", 1, "d" * 64, 7, 0.0, "mine")]


@pytest.mark.parametrize(
    ("asked", "project", "message"),
    [
        ("job-1", "mine", "job job-1 has no answer, only models of its rounds"),
        ("job-1", "other", "there is no model job-1"),
        ("job-2", "mine", "there is no model job-2"),
    ],
)
def test_a_job_without_an_answer_is_told_from_one_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, asked: str, project: str, message: str
) -> None:
    """A cancelled job has the models of its rounds, which have digests; not to another project."""
    who = Caller("e", frozenset({"engineer"}), project)
    monkeypatch.setattr(people, "caller", lambda: who)
    service = people.ModelsService(Models())  # type: ignore[arg-type]
    request = models_pb2.GetModelRequest(id=asked)
    with pytest.raises(NotFound, match=message):
        asyncio.run(service.GetModel(request, None))  # type: ignore[arg-type]
