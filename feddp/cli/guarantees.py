"""How a guarantee is said beside a running epsilon: the same words in every command."""

from collections.abc import Iterator

from feddp.cli.output import epsilon
from protos.feddp.v1.jobs_pb2 import Job, JobNode, QuotedNode

GUARANTEE = (
    "GUARANTEE is the highest limit that was ever in force for the hospital's account, over all "
    "jobs, at DELTA; LIMIT is the one of now, which the hospital enforces."
)
RUNNING = "RUNNING EPSILON is what this job has released so far: a figure on the way."
NOT_TOLD = "not told"
"""By a coordinator of 0.1.0: `feddp budget show` makes it from the entries."""


def of_node(node: JobNode) -> str:
    """The guarantee of a job's hospital."""
    if node.HasField("epsilon_guarantee"):
        return epsilon(node.epsilon_guarantee)
    return "none" if node.account_epsilon_limit else NOT_TOLD


def of_quoted(node: QuotedNode) -> str:
    """The guarantee of a hospital in a quote; empty where it publishes no account."""
    if node.HasField("epsilon_guarantee"):
        return epsilon(node.epsilon_guarantee)
    if not node.account:
        return ""
    return NOT_TOLD if node.HasField("epsilon_before") else "none"


def lines(job: Job) -> Iterator[str]:
    """A job's guarantees, hospitals that share one together, and what they are."""
    alike: dict[str, list[str]] = {}
    for node in job.nodes:
        alike.setdefault(_terms(node), []).append(node.name)
    for terms, names in alike.items():
        yield f"guarantee at {', '.join(names)}: {terms}"
    if alike:
        yield (
            "a guarantee is the highest limit that an account ever had; a running epsilon is a "
            "figure of this job on the way"
        )


def _terms(node: JobNode) -> str:
    found = of_node(node)
    if found == "none":
        return "none, something was released without accounting"
    if found == NOT_TOLD:
        return "`feddp budget show` tells it"
    limit = epsilon(node.account_epsilon_limit)
    return f"epsilon {found} at delta {node.delta:g}, over all jobs (limit now {limit})"
