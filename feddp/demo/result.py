"""What the demo found: the JSON result, and the same as a table for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddp.cli import output
from feddp.cli.guarantees import GUARANTEE, RUNNING

if TYPE_CHECKING:
    from feddp.cli.ledgers import Check
    from protos.feddp.v1.budgets_pb2 import BudgetAccount
    from protos.feddp.v1.jobs_pb2 import Job, JobNode


def result_of(
    job: "Job",
    accounts: Sequence["BudgetAccount"],
    model: Path | None,
    metrics: Mapping[str, Any] | None,
    ledger: tuple["Check", int],
    seconds: float,
) -> dict[str, Any]:
    """The demo's result in its fixed form.

    Args:
        accounts: with their limits and guarantees; one for each node.
        model: where the job's answer was written; None if it has none.
        metrics: of `heart.evaluate`; None without a model.
        ledger: its check, and the number of its entries.
    """
    limits = {account.node: account for account in accounts}
    check, entries = ledger
    scores = dict(metrics or {"accuracy": None, "auc": None, "brier": None, "per_node": {}})
    return {
        "status": job.status,
        "rounds": job.rounds_done,
        "job_id": job.job_id,
        "model": {"path": str(model), "digest": job.model_digest} if model else None,
        "nodes": [
            {
                "name": node.name,
                "class": node.node_class,
                "epsilon_spent": node.epsilon_spent if node.HasField("epsilon_spent") else None,
                "epsilon_limit": (limits.get(node.name) or node).epsilon_limit,
                "epsilon_guarantee": _guarantee(limits.get(node.name) or node),
                "delta": (limits.get(node.name) or node).delta,
                "rounds_participated": node.rounds_participated,
            }
            for node in job.nodes
        ],
        "metrics": {name: scores[name] for name in ("accuracy", "auc", "brier", "per_node")},
        "ledger": {"verified": check.ok, "entries": entries},
        "seconds": round(seconds, 1),
    }


def _guarantee(of: "BudgetAccount | JobNode") -> float | None:
    return of.epsilon_guarantee if of.HasField("epsilon_guarantee") else None


def print_summary(result: Mapping[str, Any], message: str) -> None:
    """The result on stdout."""
    metrics = result["metrics"]
    output.line("")
    rows = []
    for node in result["nodes"]:
        own = metrics["per_node"].get(node["name"], {})
        spent = node["epsilon_spent"]
        rows.append(
            (
                node["name"],
                node["class"],
                str(node["rounds_participated"]),
                "no guarantee" if spent is None else output.epsilon(spent),
                output.epsilon(node["epsilon_limit"]),
                output.epsilon(node["epsilon_guarantee"]),
                f"{node['delta']:g}",
                _score(own.get("accuracy")),
                _score(own.get("auc")),
            )
        )
    output.table(
        (
            *("HOSPITAL", "CLASS", "ROUNDS", "RUNNING EPSILON", "LIMIT", "GUARANTEE", "DELTA"),
            *("ACCURACY", "AUC"),
        ),
        rows,
    )
    output.line(RUNNING)
    output.line(GUARANTEE)
    output.line("")
    pairs = [
        ("status", f"{result['status']} after {output.counted(result['rounds'], 'round')}"),
        ("held-out rows", _pooled(metrics)),
        ("ledger", _ledger(result["ledger"])),
        ("seconds", f"{result['seconds']}"),
    ]
    if message:
        pairs.insert(1, ("message", message))
    if result["model"]:
        pairs.append(("model", f"{result['model']['path']}, digest {result['model']['digest']}"))
    output.facts(pairs)


def _pooled(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_score(metrics[name])}" for name in ("accuracy", "auc", "brier"))


def _ledger(ledger: Mapping[str, Any]) -> str:
    said = "verified" if ledger["verified"] else "does NOT verify"
    return f"{ledger['entries']} entries, {said}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
