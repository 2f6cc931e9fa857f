"""Jobs as the coordinator would send them, for the report's tests."""

from protos.feddp.v1.budgets_pb2 import BudgetAccount
from protos.feddp.v1.jobs_pb2 import Job, JobNode, Participation, Round

NODES = (("cleveland", "hpc"), ("hungary", "cloud"), ("switzerland", "edge"), ("va", "cloud"))
SPEC = (
    b"name: heart\ntask: tabular-classifier\ndataset: heart-disease\nprivacy: {target_epsilon: 2}\n"
)
SPEC_NO_DP = b"name: heart\ntask: tabular-classifier\nprivacy: {mechanism: none}\n"
METRICS = {
    "accuracy": 0.8031,
    "auc": 0.8817,
    "brier": 0.1391,
    "per_node": {
        "cleveland": {"accuracy": 0.82, "auc": 0.9},
        "hungary": {"accuracy": 0.81, "auc": 0.88},
        "switzerland": {"accuracy": 0.94, "auc": None},
        "va": {"accuracy": 0.71, "auc": 0.69},
    },
}


def job(name: str = "heart-disease", rounds: int = 4, *, dp: bool = True) -> Job:
    """An ended job of four hospitals; the third misses the second round."""
    sample = Job(
        job_id="job-7f3a",
        project="default",
        name=name,
        status="completed",
        phase="ended",
        round=rounds,
        rounds_done=rounds,
        rounds_planned=rounds,
        model_digest="ab" * 32,
        data_set="heart-disease",
        task="tabular-classifier",
        created_at=1.79e9,
        ended_at=1.79e9 + 47.3,
        submitted_by="operator",
        spec_digest="cd" * 32,
        target_epsilon=2.0 if dp else 0.0,
        delta=1e-5,
        convergence_threshold=0.001,
    )
    for number in range(1, rounds + 1):
        sample.rounds.append(_round(number, rounds, dp))
    for node, node_class in NODES:
        took = rounds - (node == "switzerland" and rounds > 1)
        entry = JobNode(
            name=node,
            node_class=node_class,
            epsilon_limit=2.0,
            delta=1e-5,
            rounds_participated=took,
            account_epsilon_limit=10.0,
        )
        if dp:
            entry.epsilon_guarantee = 10.0
            entry.epsilon_spent = 2.0 * (took / rounds) ** 0.5 - 1e-6
        sample.nodes.append(entry)
    return sample


def _round(number: int, rounds: int, dp: bool) -> Round:
    sample = Round(
        number=number,
        started_at=1.79e9 + 10 * number,
        ended_at=1.79e9 + 10 * number + 8,
        reserving_s=0.02,
        training_s=6.1 / number,
        aggregating_s=0.4,
        publishing_s=0.2,
        model_bytes=40_960,
        update_bytes=4 * 40_960 if number != 2 else 3 * 40_960,
        model_digest="ef" * 32,
    )
    if number > 1:
        sample.drift = 0.4 / number**2
        sample.drift_noise = 0.08 / number
    for node, _ in NODES:
        part = Participation(node=node, outcome="update", seconds=6.0)
        if node == "switzerland" and number == 2:
            part.outcome, part.reason = "lost", "SILENT"
            part.message = "nothing was heard for 10 s after its stream broke"
        elif dp:
            part.epsilon_after = 2.0 * (number / rounds) ** 0.5
        sample.participation.append(part)
    return sample


def accounts(guarantee: bool = True) -> list[BudgetAccount]:
    """One account for each hospital."""
    return [
        BudgetAccount(
            account=f"{node}/patients",
            node=node,
            data_sets=["heart-disease"],
            filter="gdp",
            epsilon_limit=10.0,
            delta=1e-5,
            epsilon_spent=2.0,
            epsilon_booked=2.0,
            epsilon_naive=3.96,
            efficiency=1.0,
            booked_to_naive=0.505,
            guarantee=guarantee,
            epsilon_guarantee=10.0 if guarantee else None,
        )
        for node, _ in NODES
    ]
