"""A Flower server that runs FedAvg and writes down when each round has ended."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
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

    FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=nodes,
        min_evaluate_nodes=0,
        min_available_nodes=nodes,
    ).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(int(config["parameters"]), dtype=np.float32)]),
        num_rounds=int(config["rounds"]),
        evaluate_fn=note,
    )
