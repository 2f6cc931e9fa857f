"""A round's updates checked and averaged, from the files, the job and its journal alone: every
replica makes the same model of them, to the last bit."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from coordinator import aggregation
from coordinator.blobs import BlobStore
from coordinator.compared import model_damaged
from coordinator.rounds import bounds, convergence, planner
from coordinator.rounds import events as e
from coordinator.rounds.live import LiveJob
from coordinator.rounds.phases import Aggregating, Attempt
from protos.errors import NotFound, Unavailable

DAMAGED_RETRY_S: Final = 15.0
"""Until a node offers its update again to a coordinator that has no whole model of its job."""


def check_update(live: LiveJob, attempt: Attempt, path: Path, blobs: BlobStore) -> None:
    """Check an update against the job's model and its public bounds.

    Raises:
        Malformed: UPDATE_INVALID; Unavailable: as `whole_model`.
    """
    model = aggregation.shape_of(blobs.model(whole_model(live, blobs)))
    order = round_order(live)

    def norm_max(values: int) -> float:
        return bounds.update_norm_max(order, attempt.offer, values)

    aggregation.check_update(path, model, live.job.update_dtype, norm_max)


def whole_model(live: LiveJob, blobs: BlobStore) -> str:
    """Digest of one of the job's models that is as it was kept: all have the same tensors.

    A file that the disk has damaged says nothing of an update, which is as good as it was.

    Raises:
        Unavailable: MODEL_DAMAGED, none is; the node keeps its update and offers it again.
    """
    course = live.phase.course
    # One that is known to be whole first: each call for an update asks, and would read a damaged
    # file from its beginning to find that it is.
    models = (course.initial, course.model)
    for digest in sorted(models, key=lambda one: not blobs.is_known_whole(one)):
        with suppress(NotFound):
            blobs.check_models([digest])
            return digest
    damaged = model_damaged(course.model)
    raise Unavailable(damaged.reason, damaged.message, retry_after_s=DAMAGED_RETRY_S)


def round_order(live: LiveJob) -> bounds.RoundOrder:
    """What the public bounds of a round follow from."""
    job = live.job
    return bounds.RoundOrder(
        learning_rate=planner.learning_rate(job.task_config),
        local_steps=job.local_steps,
        max_grad_norm=job.max_grad_norm,
        proximal_mu=job.proximal_mu,
        update_dtype=job.update_dtype,
    )


def fold(
    live: LiveJob, phase: Aggregating, blobs: BlobStore, scratch_name: str = ""
) -> e.UpdatesFolded:
    """Average the round's updates, weighted by declared sizes, and measure the drift.

    In the order of the nodes' names, so that the order of arrival changes nothing.

    Args:
        scratch_name: of the file that is written, where this process may average the round twice.
    """
    received = sorted(phase.round.received, key=lambda a: a.node)
    weights = [float(max(1, a.offer.declared_n)) for a in received]
    base = blobs.model(phase.course.model)
    updates = [_held(a, blobs) for a in received]
    with blobs.scratch(scratch_name or f"{live.job_id}.{phase.round.number}") as scratch:
        folded = aggregation.fold(base, updates, weights, scratch, live.job.update_dtype)
        size = scratch.stat().st_size
        digest = blobs.adopt_model(scratch, folded.digest)
    order, offers = round_order(live), [a.offer for a in received]
    noise = bounds.global_noise_norm(order, offers, weights, folded.update_values)
    sampling = bounds.global_sampling_norm(order, offers, weights)
    chance = convergence.chance_norm(noise, sampling, folded.moved)
    drift, share, settled = _drift(live, phase, blobs, digest, folded, noise, chance)
    return e.UpdatesFolded(phase.round.number, digest, size, drift, share, settled, noise, chance)


def _held(attempt: Attempt, blobs: BlobStore) -> Path:
    """Where an update lies that was taken. Raises NotFound: UPDATE_LOST."""
    try:
        return blobs.update(attempt.attempt_id, attempt.digest)
    except NotFound:
        raise NotFound(
            "UPDATE_LOST",
            f"the update that {attempt.node} had handed in is gone from the coordinator's disk; "
            "look at the disk, then `feddp job resume` goes on without it or orders the node again",
        ) from None


def _drift(
    live: LiveJob,
    phase: Aggregating,
    blobs: BlobStore,
    new: str,
    folded: aggregation.Folded,
    noise: float | None,
    chance: float | None,
) -> tuple[float, float | None, bool]:
    """(drift, what chance alone would make of it, whether the round counts as settled)."""
    threshold, patience = live.job.convergence_threshold, live.job.convergence_patience
    before = [phase.course.initial, *(one.model for one in phase.course.done)]
    noises = [*(one.noise_norm for one in phase.course.done), noise]
    size = convergence.size_of(folded.norm, noises)
    chances = [*(one.chance_norm for one in phase.course.done), chance]
    window = convergence.choose_window(chances, patience, threshold, size)
    moved = folded.moved
    if window.rounds > 1:
        first = before[-window.rounds]
        blobs.check_models([first])
        moved, _ = aggregation.distance(blobs.model(first), blobs.model(new))
    drift = convergence.drift(moved, window.rounds, size)
    step = convergence.step(folded.moved, chance, size)
    return drift, window.chance_share, convergence.settled(window, drift, step, threshold)


def tail_of(models: Sequence[str]) -> Sequence[str]:
    """Of the rounds' models those whose mean is the job's answer: the last half."""
    return models[len(models) // 2 :]


def write_answer(
    live: LiveJob, models: Sequence[str], blobs: BlobStore, scratch_name: str = ""
) -> str:
    """Digest of the job's answer after rounds with these models; `scratch_name` as of `fold`."""
    tail = tail_of(models)
    if len(tail) == 1:
        return tail[0]
    with blobs.scratch(scratch_name or f"{live.job_id}.answer") as scratch:
        digest = aggregation.mean_of([blobs.model(digest) for digest in tail], scratch)
        return blobs.adopt_model(scratch, digest)
