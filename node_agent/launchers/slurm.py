"""Workers as Slurm batch jobs, by the commands of a login node: sbatch, squeue, scancel."""

import os
import shlex
from pathlib import Path
from typing import Final

from node_agent.launchers.base import Limits
from node_agent.launchers.scheduled import SchedulerUnavailable, Stage, Ticket, run_command
from node_agent.launchers.settings import SlurmSettings

WAITING: Final = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
LIVE: Final = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "COMPLETING", "RESIZING"})
UNKNOWN_JOB: Final = "Invalid job id"

PASSED_BY_SLURM: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "TMPDIR", "SLURM_JOB_ID")


class Slurm:
    """See `node_agent.launchers.scheduled.Scheduler`.

    Args:
        prefix: of the names of this agent's jobs.
    """

    def __init__(self, settings: SlurmSettings, prefix: str) -> None:
        self._settings = settings
        self._prefix = prefix

    @property
    def time_limit_s(self) -> float:
        """After which Slurm ends a job."""
        return 60.0 * self._settings.time_limit_minutes

    async def check(self) -> None:
        """`sbatch --test-only`: whether Slurm answers, and takes what agent.yaml asks for."""
        ticket = Ticket(f"{self._prefix}check", ["true"], {}, Path(os.devnull), Limits())
        asked = sbatch_arguments(self._settings, ticket)
        await run_command([*asked, "--test-only"], batch_script(ticket))

    async def submit(self, ticket: Ticket) -> str:
        """`sbatch`, the script on its stdin."""
        printed = await run_command(sbatch_arguments(self._settings, ticket), batch_script(ticket))
        job = printed.strip().partition(";")[0]
        if not job.isdigit():
            raise SchedulerUnavailable("sbatch printed no job id")
        return job

    async def stage(self, job: str) -> tuple[Stage, str]:
        """`squeue`; it forgets a job some minutes after its end."""
        try:
            printed = await run_command(
                ["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T|%r"]
            )
        except SchedulerUnavailable as error:
            if UNKNOWN_JOB in str(error):
                return Stage.GONE, "it has ended"
            raise
        word, _, reason = printed.strip().partition("|")
        if word in WAITING:
            return Stage.WAITING, f"{word} ({reason})"
        return (Stage.RUNNING if word in LIVE else Stage.GONE), word or "it has ended"

    async def cancel(self, job: str) -> None:
        """`scancel`."""
        try:
            await run_command(["scancel", job])
        except SchedulerUnavailable as error:
            if UNKNOWN_JOB not in str(error):
                raise

    async def left(self) -> list[str]:
        """By the names that this agent gives."""
        printed = await run_command(
            ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%j"]
        )
        jobs = (line.strip().partition("|") for line in printed.splitlines())
        return [job for job, _, name in jobs if name.startswith(self._prefix)]


def sbatch_arguments(settings: SlurmSettings, ticket: Ticket) -> list[str]:
    """The command that asks for a job.

    It is never started anew by Slurm: that could train one attempt twice.
    """
    wanted = {
        "job-name": ticket.name,
        "time": str(settings.time_limit_minutes),
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(ticket.limits.threads),
        "output": str(ticket.log_path).replace("%", "%%"),
        "open-mode": "append",
        # The login node's variables stay there.
        "export": "NONE",
        "chdir": "/",
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "gres": settings.gres,
        "mem": f"{settings.memory_mib}M" if settings.memory_mib else "",
    }
    named = [f"--{name}={value}" for name, value in wanted.items() if value]
    return ["sbatch", "--parsable", "--no-requeue", *named]


def batch_script(ticket: Ticket) -> str:
    """A shell script that becomes the worker, with the variables that it needs and no other."""
    given = " ".join(f'${{{name}+"{name}=${name}"}}' for name in PASSED_BY_SLURM)
    set_ = " ".join(shlex.quote(f"{name}={value}") for name, value in ticket.environment.items())
    return f"#!/bin/sh\numask 077\nexec env -i {given} {set_} {shlex.join(ticket.command)}\n"
