"""A job before it is handed in: checked on this machine, with the model that it begins with."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from feddp.evaluation import Download, first_model
from feddp.jobfile import data_set_of, read_task
from protos.errors import Malformed
from protos.feddp.v1.nodes_pb2 import Node


def checked(
    spec: Path | bytes, seed: int, nodes: Callable[[], Iterable[Node]], download: Download
) -> tuple[bytes, str, bytes]:
    """(the job file, its task's content hash, the model that it begins with).

    Args:
        spec: the file, or its bytes.
        seed: fixes the initial weights only.
        nodes: asks the coordinator for those that there are.
        download: of a model that is to be evaluated.

    Raises:
        Malformed: JOB_INVALID, TASK_CONFIG_INVALID, MODEL_MISMATCH.
        NotFound: FILE_MISSING, TASK_UNKNOWN, MODEL_UNKNOWN.
    """
    from node_agent.tasks.registry import EVALUATION, initial_model, installed

    data, task, task_config = read_task(spec)
    if task == EVALUATION:
        model = first_model(download, task_config)
    else:
        model = initial_model(task, task_config, seed)
    _check_columns(nodes(), data, task, task_config)
    return data, installed()[task].content_hash, model


def publishers(nodes: Iterable[Node], spec: bytes) -> list[str]:
    """Those of the nodes that publish the job's data set."""
    name = data_set_of(spec)
    return [node.name for node in nodes if any(one.name == name for one in node.data_sets)]


def _check_columns(
    nodes: Iterable[Node], spec: bytes, task: str, task_config: Mapping[str, Any]
) -> None:
    """Refuse a task_config that fits none of the data sets as their nodes publish them."""
    from node_agent.data.datasets import published
    from node_agent.tasks.registry import parse_config

    name, faults, fits = data_set_of(spec), list[Malformed](), False
    for node in nodes:
        for one in node.data_sets:
            if one.name != name:
                continue
            try:
                parse_config(task, task_config, published(one.name, one.schema_json))
                fits = True
            except Malformed as fault:
                faults.append(fault)
            except ValueError:
                fits = True  # it publishes no schema that we can read; the node decides
    if faults and not fits:
        raise faults[0]
