"""A Flower server that runs FedAvg and writes down when each round has ended."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """One line per round, the start as round 0: seconds since the epoch."""
    config = context.run_config
    nodes, moments = int(config["nodes"]), Path(str(config["moments"]))

    def note(_round: int, _arrays: ArrayRecord) -> None:
        with moments.open("a") as file:
            file.write(f"{time.time()}\n")

    def count(replies: list[RecordDict], _weighted_by: str) -> MetricRecord:
        # FedAvg would average what is left when clients fail, and such a round is not ours.
        if len(replies) != nodes:
            raise RuntimeError(f"{len(replies)} of {nodes} clients answered")
        return MetricRecord({"replies": len(replies)})

    # Not zeros: chunks of a message that are equal travel once.
    values = np.random.default_rng().standard_normal(int(config["parameters"]), dtype=np.float32)
    FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=nodes,
        min_evaluate_nodes=0,
        min_available_nodes=nodes,
        train_metrics_aggr_fn=count,
    ).start(
        grid=grid,
        initial_arrays=ArrayRecord([values]),
        num_rounds=int(config["rounds"]),
        evaluate_fn=note,
    )
