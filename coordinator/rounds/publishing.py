"""Aggregating, Publishing and Closing: from updates to a model, and on."""

from dataclasses import replace

from coordinator.rounds import commands as c
from coordinator.rounds import events as e
from coordinator.rounds.ending import Step
from coordinator.rounds.phases import Aggregating, Closing, Ended, Publishing, Selecting
from protos.errors import invariant


def publish_command(phase: Publishing) -> c.PublishModel | c.PublishLast:
    done = phase.round
    if phase.status:
        return c.PublishLast(done.number, done.model, done.model_bytes)
    return c.PublishModel(done.number, done.model, done.model_bytes)


def folded(phase: Aggregating, event: e.UpdatesFolded, now_s: float) -> Step:
    invariant(event.round == phase.round.number, "the fold belongs to another round")
    plan = phase.course.plan
    settled_rounds = phase.course.settled_rounds + 1 if event.settled else 0
    record = replace(
        phase.round,
        folded_at_s=now_s,
        model=event.digest,
        model_bytes=event.model_bytes,
        drift=event.drift,
        drift_noise=event.drift_noise,
        noise_norm=event.noise_norm,
        chance_norm=event.chance_norm,
    )
    status = ""
    if settled_rounds >= plan.convergence_patience:
        status = "converged"
    elif record.number >= plan.rounds_planned:
        status = "completed"
    following = Publishing(phase.course, record, status, settled_rounds)
    return following, [publish_command(following)]


def published(phase: Publishing, event: e.ModelPublished, now_s: float) -> Step:
    invariant(event.round == phase.round.number, "the publication belongs to another round")
    record = replace(phase.round, published_at_s=now_s)
    course = replace(
        phase.course,
        model=record.model,
        done=(*phase.course.done, record),
        settled_rounds=phase.settled_rounds,
    )
    if not phase.status:
        return Selecting(course, now_s), [c.Survey(), c.ForgetUpdates(record.number)]
    invariant(event.answer is not None, "the last round publishes an answer")
    said = {
        "converged": "the model stopped moving",
        "completed": "the planned rounds are done",
    }[phase.status]
    return Ended(course, phase.status, said, now_s, event.answer or ""), [c.EndJob()]


def answered(phase: Closing, event: e.AnswerWritten, now_s: float) -> Step:
    ended = Ended(phase.course, phase.status, phase.message, now_s, event.digest, phase.unfinished)
    return ended, [c.EndJob()]
