"""Who may ask what of a job, and what the same request asks once more."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import save_file

from certs.mandates import Signed, sign
from coordinator.authz import Caller
from coordinator.config.config import CoordinatorConfig
from coordinator.pausing import Pausing
from coordinator.rounds import events as e
from coordinator.rounds.driver import Rounds
from coordinator.rpc import jobs as jobs_rpc
from coordinator.rpc.jobs import JobsService
from coordinator.store import jobs
from protos.errors import FeddpError
from protos.feddp.v1 import jobs_pb2 as pb
from protos.feddp.v1 import mandates_pb2
from tests.certs.test_mandates import KEY, MANDATE
from tests.coordinator.rounds.test_rounds_driver import Table
from tests.coordinator.rounds.test_turns import HASH, SPEC

ANA = Caller("ana", frozenset({"engineer"}), "default")
OTHERS: dict[str, Any] = {
    "engineer": Caller("ben", frozenset({"engineer"}), "lung"),
    "engineer and privacy officer": Caller(
        "cleo", frozenset({"engineer", "privacy-officer"}), "lung"
    ),
    "engineer and operator": Caller("dan", frozenset({"engineer", "operator"}), "lung"),
}
NO_CONTEXT = cast(Any, None)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path)
    yield made
    made.world.database.close()


def service(table: Table, rounds: Rounds) -> JobsService:
    database, blobs = table.world.database, table.effects.blobs
    return JobsService(database, blobs, rounds, CoordinatorConfig(), Pausing(database))


def become(monkeypatch: pytest.MonkeyPatch, who: Caller) -> None:
    monkeypatch.setattr(jobs_rpc, "caller", lambda: who)
    monkeypatch.setattr(jobs_rpc, "traceparent", lambda _context: "")


@pytest.mark.parametrize(
    ("who", "cancelled", "resumed"),
    [
        ("engineer", "JOB_UNKNOWN", "JOB_UNKNOWN"),
        ("engineer and privacy officer", "PROJECT", "PROJECT"),
        ("engineer and operator", "", "PROJECT"),
    ],
)
def test_another_projects_job_is_cancelled_by_operators_alone_and_resumed_by_nobody(
    table: Table, monkeypatch: pytest.MonkeyPatch, who: str, cancelled: str, resumed: str
) -> None:
    """Somebody of two roles may do what each allows, and not by the one what the other shows."""
    become(monkeypatch, OTHERS[who])

    async def scene(rounds: Rounds) -> None:
        asked = service(table, rounds)
        resume = pb.ResumeJobRequest(job_id="j", request_id="r1")
        cancel = pb.CancelJobRequest(job_id="j")
        assert await reason(asked.ResumeJob(resume, NO_CONTEXT)) == resumed
        assert await reason(asked.CancelJob(cancel, NO_CONTEXT)) == cancelled

    table.play(scene)
    table.reopen()
    assert table.world.live.has_ended == (cancelled == "")


def signed(resumption: int, ends_in_s: int = 1_000) -> mandates_pb2.SignedMandate:
    """What the engineer of the job signs to begin it, or to go on."""
    ends_at_s = int(time.time()) + ends_in_s
    made: Signed = sign(KEY, replace(MANDATE, resumption=resumption, expires_at_s=ends_at_s))
    return mandates_pb2.SignedMandate(body=made.body, signature=made.signature)


def test_what_was_signed_takes_a_job_up_again_once(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sees a job sees what was signed of it, and could else go on in its engineer's name;
    the same request again is answered, and what was kept before a crash is good for one."""
    become(monkeypatch, ANA)

    async def scene(rounds: Rounds) -> None:
        asked, job_id = service(table, rounds), MANDATE.job_id

        async def resume(request_id: str, mandate: mandates_pb2.SignedMandate) -> str:
            request = pb.ResumeJobRequest(job_id=job_id, request_id=request_id, mandate=mandate)
            return await reason(asked.ResumeJob(request, NO_CONTEXT))

        first, again, third = signed(0), signed(1), signed(2)
        kept = first.SerializeToString()
        record = replace(table.world.live.record, job_id=job_id, request_id="r0", mandate=kept)
        live = await rounds.submit(record, table.world.live.job, "m0")
        await rounds.apply(live, e.StepFailed("a disk"))
        assert await resume("r1", first) == "MANDATE_MISMATCH"
        assert live.has_ended
        assert await resume("r1", again) == ""
        assert not live.has_ended
        await rounds.apply(live, e.StepFailed("a disk"))
        assert await resume("r1", again) == ""
        assert await resume("r2", again) == "MANDATE_MISMATCH"
        assert live.has_ended
        # Kept, and the coordinator ended there.
        kept = third.SerializeToString()
        await table.world.database.write(lambda inside: jobs.set_mandate(inside, job_id, kept))
        rounds._live.clear()
        assert await resume("r2", third) == ""
        assert not (await rounds.job(job_id)).has_ended

    table.play(scene)


def test_a_submission_that_meets_the_one_before_it_is_the_same_job(
    table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A link breaks, the client asks again, and the first call still works, or was given up as its
    job was about to be kept: there is one job, and no failure."""
    become(monkeypatch, ANA)
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model")
    model = table.effects.blobs.adopt_model(tmp_path / "model")
    monkeypatch.setattr(jobs_rpc, "check_published", lambda *_: None)

    async def scene(rounds: Rounds) -> None:
        asked, submit, submitting = service(table, rounds), rounds._submit, asyncio.Event()

        async def slow(*what: Any) -> Any:
            submitting.set()
            await asyncio.sleep(0.05)
            return await submit(*what)

        monkeypatch.setattr(rounds, "_submit", slow)
        request = pb.SubmitJobRequest(
            spec=SPEC, task_hash=HASH, initial_model_digest=model, request_id="r1"
        )
        gone = asyncio.create_task(asked.SubmitJob(request, NO_CONTEXT))
        await submitting.wait()
        more = [asyncio.create_task(asked.SubmitJob(request, NO_CONTEXT)) for _ in range(2)]
        await asyncio.sleep(0)
        gone.cancel()
        answers = await asyncio.gather(*more)
        assert gone.cancelled()
        assert len({one.job.job_id for one in answers}) == 1
        listed = await table.world.database.read(jobs.listed)
        assert {one.job_id for one in listed} == {"j", answers[0].job.job_id}

    table.play(scene)


def test_another_job_under_the_same_request_id_is_refused(
    table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever sent it would take the first job for its own; what was signed may be other bytes."""
    become(monkeypatch, ANA)
    blobs = table.effects.blobs
    models = []
    for value in (0, 1):
        save_file({"w": np.full(1, value, np.float32)}, tmp_path / "model")
        models.append(blobs.adopt_model(tmp_path / "model"))
    monkeypatch.setattr(jobs_rpc, "check_published", lambda *_: None)
    request = pb.SubmitJobRequest(
        spec=SPEC, task_hash=HASH, initial_model_digest=models[0], request_id="r1"
    )
    others: list[dict[str, Any]] = [
        {"spec": SPEC + b"\n"},
        {"task_hash": "e" * 64},
        {"initial_model_digest": models[1]},
    ]

    async def scene(rounds: Rounds) -> None:
        asked = service(table, rounds)
        first = await asked.SubmitJob(request, NO_CONTEXT)
        for changes in others:
            other = pb.SubmitJobRequest()
            other.CopyFrom(request)
            for name, value in changes.items():
                setattr(other, name, value)
            assert await reason(asked.SubmitJob(other, NO_CONTEXT)) == "REQUEST_ID_TAKEN"
        again = pb.SubmitJobRequest(mandate=signed(0))
        again.MergeFrom(request)
        assert (await asked.SubmitJob(again, NO_CONTEXT)).job.job_id == first.job.job_id
        listed = await table.world.database.read(jobs.listed)
        assert {one.job_id for one in listed} == {"j", first.job.job_id}

    table.play(scene)


def test_of_two_who_resume_a_signed_job_at_once_the_second_changes_nothing(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders went out with what the first has signed; nodes refuse another text of that number."""
    become(monkeypatch, ANA)

    async def scene(rounds: Rounds) -> None:
        asked, job_id, at_hand = service(table, rounds), MANDATE.job_id, rounds._at_hand
        kept = signed(0).SerializeToString()
        record = replace(table.world.live.record, job_id=job_id, request_id="r0", mandate=kept)
        live = await rounds.submit(record, table.world.live.job, "m0")
        await rounds.apply(live, e.StepFailed("a disk"))
        delays_s = iter([0.0, 0.1])

        async def slower_for_the_second(one: Any) -> None:
            await asyncio.sleep(next(delays_s))
            await at_hand(one)

        monkeypatch.setattr(rounds, "_at_hand", slower_for_the_second)
        texts = [signed(1, ends_in_s=one) for one in (1_000, 2_000)]
        requests = [
            pb.ResumeJobRequest(job_id=job_id, request_id=f"r{place}", mandate=text)
            for place, text in enumerate(texts, 1)
        ]
        calls = [reason(asked.ResumeJob(one, NO_CONTEXT)) for one in requests]
        assert await asyncio.gather(*calls) == ["", "MANDATE_MISMATCH"]
        assert not live.has_ended
        stored = await table.world.database.read(lambda inside: jobs.job(inside, job_id))
        assert live.record.mandate == stored.mandate == texts[0].SerializeToString()

    table.play(scene)


async def reason(call: Any) -> str:
    """Why a call is refused; empty where it is not."""
    try:
        await call
    except FeddpError as error:
        return error.reason
    return ""
