"""The demo's job file: what a job needs to say, and nothing that the coordinator's defaults say.

So the demo shows what the defaults reach. They are the same for every epsilon, delta and hospital;
only the noise follows from those and from declared sizes.
"""

from typing import Any, Final

import yaml

from feddp.demo import heart

TASK: Final = "tabular-classifier"


def job_file(epsilon: float | None, delta: float) -> bytes:
    """The job file, YAML.

    Args:
        epsilon: of the whole job, for each hospital; None trains without noise.
    """
    privacy: dict[str, Any] = {"mechanism": "none"}
    if epsilon is not None:
        privacy = {"target_epsilon": epsilon, "delta": delta}
    content = {
        "name": "heart-disease",
        "task": TASK,
        "task_config": {"model": "logistic", "learning_rate": 2.0, "features": heart.FEATURES},
        "dataset": heart.DATA_SET,
        "federation": {"rounds": "auto"},
        "privacy": privacy,
    }
    return yaml.safe_dump(content, sort_keys=False).encode()
