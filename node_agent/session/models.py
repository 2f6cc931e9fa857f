"""The models that rounds begin with: fetched, and kept while a job may need them again."""

from collections.abc import Collection

from node_agent.connection.transfer import Transfers
from node_agent.policy.orders import Order
from node_agent.session.ledger_thread import LedgerThread
from node_agent.state.spool import Spool

KEPT_OF_A_JOB = 2


class Models:
    """Remembers the newest of each job."""

    def __init__(self, transfers: Transfers, spool: Spool, ledger: LedgerThread) -> None:
        self._transfers = transfers
        self._spool = spool
        self._ledger = ledger
        self._recent: dict[str, list[str]] = {}

    async def fetch(self, order: Order) -> bool:
        """Have the order's model in the spool; whether an older one of its job is over.

        Raises:
            FeddpError: it cannot be had.
        """
        await self._transfers.fetch(order.base_model_digest, order.base_model_bytes)
        recent = self._recent.setdefault(order.job_id, [])
        if order.base_model_digest not in recent[-1:]:
            recent.append(order.base_model_digest)
        over = len(recent) > KEPT_OF_A_JOB
        del recent[:-KEPT_OF_A_JOB]
        return over

    def keep_jobs(self, jobs: Collection[str]) -> None:
        """Forget what other jobs had."""
        self._recent = {job: kept for job, kept in self._recent.items() if job in jobs}

    async def sweep(self, needed: Collection[str]) -> None:
        """Remove what neither `needed` nor a job that goes on has use for."""
        kept = {*needed}.union(*self._recent.values())
        await self._ledger.soon(self._spool.keep_models, kept)
