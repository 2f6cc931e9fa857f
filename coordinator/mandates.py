"""Signed jobs as the coordinator handles them: checked once, kept, and passed on as they came.

Nothing here protects a node, which checks for itself; it tells an engineer early what every node
would refuse.
"""

import math
from functools import lru_cache

from certs.mandates import Mandate, Signed, config_digest, is_genuine, parse
from coordinator.jobspec import Job
from protos.content import digest_of
from protos.errors import Malformed
from protos.feddp.v1 import mandates_pb2 as pb


@lru_cache(maxsize=256)
def kept(data: bytes) -> Mandate | None:
    """The mandate of a job that the store keeps; None for one that nobody signed."""
    return parse(pb.SignedMandate.FromString(data).body) if data else None


def check(message: pb.SignedMandate) -> Mandate:
    """The mandate in a request, if the key that it names has signed it.

    Raises:
        Malformed: MANDATE_INVALID.
    """
    signed = Signed(message.body, message.signature)
    mandate = parse(signed.body)
    if not is_genuine(mandate, signed):
        raise Malformed("MANDATE_INVALID", "the signature under the job is not of the key it names")
    return mandate


def check_fits(
    mandate: Mandate, job: Job, spec: bytes, task_hash: str, initial_model: str, now_s: float
) -> None:
    """Refuse a mandate under which nodes would refuse the job's orders.

    Raises:
        Malformed: MANDATE_MISMATCH.
    """
    same = {
        "project": (mandate.project, job.project),
        "data_set": (mandate.data_set, job.dataset),
        "task": (mandate.task, job.task),
        "task_hash": (mandate.task_hash, task_hash),
        "task_config": (mandate.task_config_digest, config_digest(dict(job.task_config))),
        "spec": (mandate.spec_digest, digest_of(spec)),
        "initial_model": (mandate.initial_model, initial_model),
        "mechanism": (mandate.mechanism, job.mechanism),
    }
    stated = {
        "noise_multiplier": (mandate.noise_multiplier, job.noise_multiplier),
        "max_grad_norm": (mandate.max_grad_norm, job.max_grad_norm),
        "proximal_mu": (mandate.proximal_mu, job.proximal_mu),
        "delta": (mandate.delta, job.delta),
    }
    odd = [name for name, (signed, asked) in same.items() if signed != asked]
    odd += [name for name, (signed, asked) in stated.items() if signed not in (None, asked)]
    if odd:
        raise _mismatch(f"it was signed with another {odd[0]} than was submitted")
    if job.rounds_planned > mandate.rounds_max:
        raise _mismatch(
            f"{job.rounds_planned} rounds are planned and {mandate.rounds_max} were signed"
        )
    if (job.target_epsilon or 0.0) > mandate.epsilon_max:
        raise _mismatch(
            f"its target_epsilon is {job.target_epsilon:g} and {mandate.epsilon_max:g} was signed"
        )
    if len(mandate.nodes) < job.min_participants:
        raise _mismatch(
            f"it was signed for {len(mandate.nodes)} nodes and a round needs {job.min_participants}"
        )
    check_lasts(mandate, now_s)


def check_follows(mandate: Mandate, before: Mandate, now_s: float) -> None:
    """Refuse what is not the same job, signed by the same person to go on.

    Raises:
        Malformed: MANDATE_MISMATCH.
    """
    if (mandate.job_id, mandate.public_key) != (before.job_id, before.public_key):
        raise _mismatch("a job is resumed by whoever signed it")
    if mandate.resumption <= before.resumption:
        raise _mismatch(
            "it does not follow on what was signed before: the job was resumed meanwhile; if "
            "`feddp job show` says that it has failed again, resume it once more"
        )
    check_lasts(mandate, now_s)


def check_lasts(mandate: Mandate, now_s: float) -> None:
    """Refuse one that has ended.

    Raises:
        Malformed: MANDATE_MISMATCH.
    """
    left_s = mandate.expires_at_s - now_s
    if left_s <= 0:
        raise _mismatch(
            f"it ended {math.ceil(-left_s)} s ago; compare the clocks, or sign it for longer"
        )


def _mismatch(what: str) -> Malformed:
    return Malformed("MANDATE_MISMATCH", f"the signed job cannot be run: {what}")
