"""What is known of a node when a round is planned: its steward's word and the ledger's."""

from dataclasses import dataclass

from coordinator.jobspec import Job
from coordinator.rounds.events import Absence
from coordinator.store.ledger import Account
from coordinator.store.shares import Share
from protos.feddp.v1 import federation_pb2 as federation


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of one node that holds the job's data set.

    Attributes:
        disabled: an operator has disabled it.
        data_set: as the node published it last.
        steward: the account's bounds as the node published them last; None if it did not.
        account: the account in the central ledger; None before the node's first session.
        job_units: filter units that this job has posted or holds there.
        job_releases: how many releases these are.
        job_no_updates: how many of these opened the data and gave no update.
        job_cut_off: how many of these were open when their round closed.
        last_noise_multiplier: of this job's newest attempt there; None for none.
        taken: another job has the node, or goes first for it.
        steps_possible: local steps that fit into its deadline, as it said; 0 for no bound.
        shares: limits of its policy, within the account's, that this job counts against.
        signed_epsilon: the most epsilon at one node that was signed of the job; None where nobody
            signed it.
        barred: what was signed of the job keeps it from this node, or all work is paused.
        damaged: the account's chain here is not what was kept of it.
        restored_from: the moment of the backup that the coordinator was restored from, where the
            node has not handed in its account since; empty where it has.
    """

    node: str
    connected: bool
    disabled: bool
    data_set: federation.DataSet
    steward: federation.Account | None
    account: Account | None
    job_units: int
    job_releases: int
    last_noise_multiplier: float | None
    taken: Absence | None = None
    steps_possible: int = 0
    shares: tuple[Share, ...] = ()
    barred: Absence | None = None
    damaged: bool = False
    restored_from: str = ""
    job_no_updates: int = 0
    job_cut_off: int = 0
    signed_epsilon: float | None = None

    def local_steps(self, job: Job) -> int:
        """Steps of a round there."""
        return min(job.local_steps, self.steps_possible or job.local_steps)
