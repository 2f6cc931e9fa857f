"""Jobs as a coordinator would show them."""

from protos.feddp.v1.jobs_pb2 import Job, JobNode, Participation, Round, Waiting

SPEC = b"""name: heart-disease
task: tabular-classifier
task_config: {model: logistic, learning_rate: 2.0, features: [{column: age, center: 55, scale: 10}]}
dataset: heart-disease
federation: {rounds: 2}
privacy: {target_epsilon: 2.0, delta: 1.0e-5, max_grad_norm: 0.1}
"""


def job_in(status: str, rounds_done: int = 0, *, waiting: str = "") -> Job:
    """A job of two rounds and one node."""
    ended = status not in ("running", "waiting")
    job = Job(
        job_id="j1",
        name="heart",
        status=status,
        phase="ended" if ended else "training",
        round=min(2, rounds_done + 1),
        rounds_done=rounds_done,
        rounds_planned=2,
        data_set="heart-disease",
        task="tabular-classifier",
        target_epsilon=2.0,
        delta=1e-5,
        created_at=1.7e9,
        ended_at=1.7e9 + 9 if ended else 0.0,
    )
    node = JobNode(name="a", node_class="edge", epsilon_limit=2.0, delta=1e-5)
    node.rounds_participated = rounds_done
    node.epsilon_spent = 0.70001 * rounds_done
    node.account_epsilon_limit = node.epsilon_guarantee = 10.0
    job.nodes.append(node)
    for number in range(1, rounds_done + 1):
        part = Participation(node="a", outcome="update", epsilon_after=0.70001 * number)
        job.rounds.append(
            Round(number=number, started_at=1.7e9, ended_at=1.7e9 + number, participation=[part])
        )
    if waiting:
        job.waiting.append(Waiting(node=waiting, reason="OFFLINE", message="it is not connected"))
    return job
