"""Whether some node could take a job at all, by what nodes have published. Pure."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from coordinator.jobspec import Job
from coordinator.rounds import planner
from coordinator.rounds.events import Absence
from coordinator.rounds.node_facts import NodeFacts
from coordinator.rounds.planner import unavailable_said
from coordinator.store import people
from privacy.deltas import bound_said, is_too_large
from protos.errors import Malformed, NotFound, WrongPhase

SCHEMA_BYTES_MAX: Final = 64 << 10


def check_published(job: Job, task_hash: str, nodes: Sequence[people.NodeRecord]) -> None:
    """Refuse a job that no node could ever take.

    Raises:
        NotFound: TASK_UNKNOWN, DATA_SET_UNKNOWN, ACCOUNT_UNKNOWN.
        Malformed: TASK_CONFIG_INVALID, DELTA_TOO_LARGE, DELTA_MISMATCH.
    """
    joined = [node for node in nodes if node.status != "invited"]
    data_sets = sorted({d.name for node in joined for d in node.hello.data_sets})
    if job.dataset not in data_sets:
        known = ", ".join(data_sets) or "none yet"
        raise NotFound(
            "DATA_SET_UNKNOWN", f"no node publishes the data set {job.dataset}; known: {known}"
        )
    schemas: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for node in joined:
        for task in node.hello.tasks:
            schemas[task.name, task.content_hash][task.config_schema_json] += 1
    published = schemas.get((job.task, task_hash))
    if published is None:
        known = ", ".join(sorted(f"{name}@{digest[:12]}…" for name, digest in schemas))
        raise NotFound(
            "TASK_UNKNOWN",
            f"no node allows the task {job.task}@{task_hash[:12]}…; known: {known or 'none yet'}. "
            "If only the hash differs, your version of feddp and the nodes' are not the same",
        )
    # What most nodes publish: one that lies can neither admit nor refuse a configuration.
    check_task_config(job.task_config, published.most_common(1)[0][0])
    check_delta(job, joined)


def unavailable(job: Job, nodes: Sequence[people.NodeRecord]) -> list[str]:
    """A sentence for each hospital whose data set for the job cannot be used now.

    Raises:
        WrongPhase: DATA_SET_UNAVAILABLE, it is so at all that publish it.
    """
    if job.mechanism == "no_data":
        return []
    published = [
        (node.name, one)
        for node in nodes
        if node.status == "enrolled"
        for one in node.hello.data_sets
        if one.name == job.dataset
    ]
    said = [
        f"{name} cannot take part now, {one.unavailable}: {unavailable_said(one)}"
        for name, one in published
        if one.unavailable
    ]
    if said and len(said) == len(published):
        raise WrongPhase(
            "DATA_SET_UNAVAILABLE",
            f"no hospital's data set {job.dataset} can be used now: {'. '.join(said)}",
        )
    return said


def waited_for(job: Job, task_hash: str, nodes: Sequence[NodeFacts]) -> tuple[list[str], str]:
    """A sentence for each hospital that cannot take part now because of its own files or ledger or,
    where too few can, for each that cannot; and how many can, where that is too few, else "".

    Args:
        nodes: every node that publishes the job's data set.
    """
    # Who works for another job now is free later.
    free = [replace(one, taken=None) for one in sorted(nodes, key=lambda one: one.node)]
    asked = [planner.consider(job, task_hash, one, job.rounds_planned) for one in free]
    absent = [one for one in asked if isinstance(one, Absence)]
    able = len(asked) - len(absent)
    waits = able < job.min_participants
    said = [
        f"{one.node} cannot take part now, {one.reason}: {one.message}"
        for one in absent
        if waits or one.reason not in _NOT_OF_ITS_FILES
    ]
    few = f"{able} of at least {job.min_participants} can take part now" if waits else ""
    return said, few


_NOT_OF_ITS_FILES: Final = frozenset({"DISABLED", "OFFLINE", "BUDGET", "TASK_NOT_ALLOWED"})
"""What says nothing is wrong at the hospital: of interest where the job waits for it."""


@dataclass(frozen=True, slots=True)
class _Payer:
    """A hospital's data set, and the delta of the account that pays for it.

    Attributes:
        delta: None where the node publishes no such account: its steward's files say otherwise
            than its ledger, or its own delta is too large.
    """

    node: str
    declared_n: int
    delta: float | None


def check_delta(job: Job, nodes: Sequence[people.NodeRecord]) -> None:
    """Refuse a job with noise whose delta is no account's, or too large wherever it is one's.

    Raises:
        Malformed: DELTA_TOO_LARGE, it is 1/n or more at a hospital that declares n patients, and
            there is no account for which it is right; DELTA_MISMATCH.
        NotFound: ACCOUNT_UNKNOWN, no hospital publishes an account that pays for the data set.
    """
    if job.mechanism != "dp":
        return
    payers = list(_payers(job, nodes))
    matching = [one for one in payers if one.delta == job.delta]
    if any(not is_too_large(job.delta, one.declared_n) for one in matching):
        return
    useful = sorted(
        {
            one.delta
            for one in payers
            if one.delta is not None and not is_too_large(one.delta, one.declared_n)
        }
    )
    known = ", ".join(f"{delta:g}" for delta in useful)
    # Where the delta is somebody's, the hospital that is nearest to taking it; else the one that
    # asks for the smallest.
    pick = min if matching else max
    judge = pick(matching or payers, key=lambda one: one.declared_n, default=None)
    if judge is not None and is_too_large(job.delta, judge.declared_n):
        advice = (
            f"the accounts that pay for {job.dataset} have {known}: set privacy.delta to "
            f"{'that' if len(useful) == 1 else f'one of these, {useful[-1]:g} at most'}"
            if useful
            else f"no account that pays for {job.dataset} has such a delta, and the hospitals' "
            "data stewards set it"
        )
        raise Malformed(
            "DELTA_TOO_LARGE",
            f"the job's delta is {job.delta:g}, and {judge.node} declares {judge.declared_n} "
            "patients: at 1/n or more, the records of one of n might be given away whole. There "
            f"delta must be {bound_said(judge.declared_n, figure=not useful)}; {advice}",
        )
    if not known:
        raise NotFound(
            "ACCOUNT_UNKNOWN",
            f"no hospital has a valid account that pays for {job.dataset}{_reasons(job, nodes)}; "
            "`feddp agent status` there says why",
        )
    raise Malformed(
        "DELTA_MISMATCH",
        f"the job's delta is {job.delta:g} and the accounts that pay for {job.dataset} have "
        f"{known}: set privacy.delta to theirs",
    )


def _reasons(job: Job, nodes: Sequence[people.NodeRecord]) -> str:
    """Why hospitals say that theirs cannot be used, in brackets; empty if none does."""
    told = [
        f"{node.name}: {one.unavailable}"
        for node in nodes
        for one in node.hello.data_sets
        if one.name == job.dataset and one.unavailable
    ]
    return f" ({', '.join(told)})" if told else ""


def _payers(job: Job, nodes: Sequence[people.NodeRecord]) -> Iterator[_Payer]:
    for node in nodes:
        deltas = {account.name: account.delta for account in node.hello.accounts}
        for one in node.hello.data_sets:
            if one.name == job.dataset:
                yield _Payer(node.name, one.declared_n, deltas.get(one.account))


def check_task_config(config: Mapping[str, Any], schema_json: str) -> None:
    """Check task_config against the schema that the nodes published with the task.

    The schema comes from nodes, so nothing in it may reach out or take long: references outside
    it do not resolve, and one with a regular expression is not used (each node checks anyway).

    Raises:
        Malformed: TASK_CONFIG_INVALID, every fault with its place.
    """
    if len(schema_json) > SCHEMA_BYTES_MAX or '"pattern' in schema_json:
        return
    # Only a submission needs them, and starting need not wait for them.
    import jsonschema
    import referencing
    import referencing.exceptions

    try:
        schema = json.loads(schema_json)
        jsonschema.Draft202012Validator.check_schema(schema)
    except (ValueError, RecursionError, jsonschema.SchemaError):
        return
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())
    try:
        found = list(validator.iter_errors(dict(config)))
    except (referencing.exceptions.Unresolvable, RecursionError):
        return
    faults = sorted(found, key=lambda fault: list(map(str, fault.path)))
    if faults:
        lines = [
            f"  task_config{''.join(f'.{part}' for part in fault.path)}: {fault.message[:200]}"
            for fault in faults[:20]
        ]
        raise Malformed(
            "TASK_CONFIG_INVALID", "the task refuses its task_config:\n" + "\n".join(lines)
        )
