"""The launcher that agent.yaml names."""

from typing import Protocol

from blake3 import blake3

from node_agent.folder.config import AgentConfig, Folder
from node_agent.launchers.base import StartWorker
from node_agent.launchers.local import LocalLauncher
from node_agent.launchers.settings import LocalSettings, SlurmSettings

TAG_LETTERS = 12


class Launcher(Protocol):
    """Starts workers, and ends what an earlier life of the agent left."""

    @property
    def start(self) -> StartWorker:
        """Start one."""
        ...

    async def reap(self) -> None:
        """Once, before the first start."""
        ...


def launcher_of(folder: Folder, config: AgentConfig) -> Launcher:
    """What `config` chooses; loads only that one's code."""
    writable = (folder.spool / "out",)
    chosen = config.launcher
    if isinstance(chosen, LocalSettings):
        return LocalLauncher(writable)
    from node_agent.launchers.scheduled import Scheduled, Scheduler

    tag = tag_of(folder, config)
    prefix = f"feddp-{tag}-"
    scheduler: Scheduler
    if isinstance(chosen, SlurmSettings):
        from node_agent.launchers.slurm import Slurm

        scheduler = Slurm(chosen, prefix)
    else:
        from node_agent.launchers.kubernetes import Kubernetes

        scheduler = Kubernetes(chosen, tag, folder.root)
    return Scheduled(scheduler, prefix, folder.spool / "workers", writable)


def tag_of(folder: Folder, config: AgentConfig) -> str:
    """Names this agent's allocations among others of the same account."""
    name = f"{config.trust_domain}\n{config.node}\n{folder.root}"
    return blake3(name.encode()).hexdigest()[:TAG_LETTERS]
