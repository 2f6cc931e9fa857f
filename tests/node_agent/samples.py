"""Orders, policies and folders for tests of the node agent."""

import json
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node_agent.data.datasets import DataSetSpec
from node_agent.policy.orders import Order
from node_agent.policy.policy import Policy
from node_agent.tasks.registry import TaskInfo
from protos.feddp.v1 import federation_pb2 as pb

NODE = "alpha"
LEDGER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TASK = "tabular-classifier"
TASK_HASH = "7" * 64
NULL_HASH = "8" * 64
MODEL = "a" * 64
TASKS = {
    TASK: TaskInfo(TASK, TASK_HASH, {"type": "object"}, True),
    "null": TaskInfo("null", NULL_HASH, {"type": "object"}, False),
}

POLICY: dict[str, Any] = {
    "accounts": [
        {
            "name": "patients",
            "epsilon_limit": 10.0,
            "delta": 1.0e-5,
            "epsilon_per_job_max": 5.0,
            "noise_multiplier_min": 0.3,
        }
    ],
    "allow": [{"data_set": "heart", "tasks": [f"{TASK}@{TASK_HASH}", f"null@{NULL_HASH}"]}],
    "outcome_tick_s": 0.5,
    "who_may_ask": {"unsigned": "allow"},
}
DATA_SET: dict[str, Any] = {
    "name": "heart",
    "source": "train.csv",
    "patient": "patient_id",
    "label": "disease",
    "declared_n": 199,
    "version": 1,
    "columns": {"age": "number"},
}


def policy(**account: Any) -> Policy:
    """The policy above, its account changed."""
    changed = {**POLICY, "accounts": [{**POLICY["accounts"][0], **account}]}
    return Policy.model_validate(changed)


def data_set(**changes: Any) -> DataSetSpec:
    """The data set above, changed."""
    return DataSetSpec.model_validate({**DATA_SET, **changes})


def work_order(attempt_id: str = "a1", **changes: Any) -> pb.WorkOrder:
    """An order that the policy allows; `release_` fields go to the release."""
    release: dict[str, Any] = {
        "unit": "patient",
        "declared_n": 199,
        "mechanism": "gaussian",
        "noise_multiplier": 10.0,
        "sample_rate": 1.0,
        "steps": 5,
    }
    fields: dict[str, Any] = {
        "attempt_id": attempt_id,
        "job_id": "job-1",
        "project": "default",
        "round": 1,
        "data_set": "heart",
        "account": "patients",
        "task": TASK,
        "task_hash": TASK_HASH,
        "task_config_json": json.dumps({"model": "logistic"}),
        "max_grad_norm": 0.1,
        "proximal_mu": 0.1,
        "base_model_digest": MODEL,
        "base_model_bytes": 4,
        "deadline_s": 60,
        "delta": 1.0e-5,
    }
    for name, value in changes.items():
        if name.startswith("release_"):
            release[name.removeprefix("release_")] = value
        else:
            fields[name] = value
    return pb.WorkOrder(release=pb.Release(**release), **fields)


def order(attempt_id: str = "a1", **changes: Any) -> Order:
    """`work_order`, as the agent reads it."""
    return Order.from_wire(work_order(attempt_id, **changes))


NO_DATA: dict[str, Any] = {
    "task": "null",
    "task_hash": NULL_HASH,
    "max_grad_norm": 0.0,
    "release_mechanism": "no_data",
    "release_noise_multiplier": None,
    "release_steps": 0,
}


def write_rules(folder: Path, policy_: dict[str, Any] | None = None, data_sets: Any = None) -> None:
    """The steward's two files."""
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy_ or POLICY))
    listed = [DATA_SET] if data_sets is None else data_sets
    (folder / "datasets.yaml").write_text(yaml.safe_dump({"data_sets": listed}))
    for one in listed:
        source = folder / str(one["source"])
        if not source.exists():
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(",".join([one["patient"], one["label"], *one["columns"]]) + "\n")


APPROVALS_BEFORE = (
    "DROP TABLE known_projects; DROP TABLE approvals;"
    "CREATE TABLE approvals (job_id TEXT PRIMARY KEY, project TEXT NOT NULL,"
    " asked_at_s REAL NOT NULL, approved_at_s REAL NOT NULL DEFAULT 0) STRICT;"
)
"""What brings a `state.db` back to before a project was known to a coordinator."""

EPOCHS_DROPPED = "".join(
    f"DROP TABLE {name};"
    for name in (
        *("epochs_seen", "heads_before", "checkpoints_before", "to_hand_in", "open_there"),
        *("voided_unheard", "elsewhere"),
    )
)
"""What brings a `state.db` back to before a coordinator that was restored said so."""
