"""Whether the scheduler that agent.yaml names would take a worker; nothing is begun there."""

import asyncio
from pathlib import Path

from node_agent.doctor.report import Check
from node_agent.launchers.scheduled import Scheduler, SchedulerUnavailable
from node_agent.launchers.settings import (
    KubernetesSettings,
    LauncherSettings,
    LocalSettings,
    SlurmSettings,
)


def check_launcher(settings: LauncherSettings) -> Check | None:
    """None where workers run on this machine: the checks of its memory and training are theirs."""
    if isinstance(settings, LocalSettings):
        return None
    try:
        asyncio.run(_scheduler(settings).check())
    except SchedulerUnavailable as error:
        do = (
            f"mend `launcher` in agent.yaml, or ask who runs {_NAMES[settings.kind]}; until then "
            "every order is refused with WORKER_FAILED, and costs nothing"
        )
        return Check("launcher", "failed", str(error), do)
    return Check("launcher", "ok", f"{_NAMES[settings.kind]} would take a worker")


_NAMES = {"slurm": "Slurm", "kubernetes": "Kubernetes"}


def _scheduler(settings: SlurmSettings | KubernetesSettings) -> Scheduler:
    if isinstance(settings, SlurmSettings):
        from node_agent.launchers.slurm import Slurm

        return Slurm(settings, "feddp-doctor-")
    from node_agent.launchers.kubernetes import Kubernetes

    return Kubernetes(settings, "doctor", Path("/"))
