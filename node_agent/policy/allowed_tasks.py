"""Which tasks that the policy allows can run here: those whose very content is installed.

Told alike by `policy check`, `status` and `doctor`: after an upgrade, or with a mistyped hash, an
entry of `allow` allows nothing, and the first to notice would be an engineer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from node_agent.policy.steward import Rules
from node_agent.tasks.registry import TaskInfo

DO = "the data steward puts the installed one in its place in policy.yaml, or takes it out"


@dataclass(frozen=True, slots=True)
class DeadEntry:
    """A task that is allowed on a data set and cannot run here.

    Attributes:
        task: NAME@HASH, as `allow` has it.
        installed: NAME@HASH of what is installed under its name; empty where nothing is.
        names: of every installed task.
    """

    data_set: str
    task: str
    installed: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        said = f"allow names {self.task} on {self.data_set}, which is not installed here: "
        if self.installed:
            return f"{said}{self.installed} is"
        return f"{said}no task of that name is; there are {', '.join(self.names)}"


def dead_entries(rules: Rules, tasks: Mapping[str, TaskInfo]) -> list[DeadEntry]:
    """Every entry of `allow` that allows nothing, by data set; of a withdrawn one none is told.

    Args:
        tasks: the installed ones, by name.
    """
    known = {name: f"{name}@{info.content_hash}" for name, info in tasks.items()}
    return [
        DeadEntry(spec.name, task, known.get(task.partition("@")[0], ""), tuple(sorted(known)))
        for spec in rules.data_sets
        for task in sorted(rules.policy.tasks_on(spec.name))
        if task not in known.values()
    ]


def usable_tasks(rules: Rules, tasks: Mapping[str, TaskInfo]) -> dict[str, list[str]]:
    """Data set -> NAME@HASH of what is allowed on it and installed."""
    known = {f"{name}@{info.content_hash}" for name, info in tasks.items()}
    return {spec.name: sorted(rules.policy.tasks_on(spec.name) & known) for spec in rules.data_sets}
