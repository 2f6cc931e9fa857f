"""A job, and a node that can take it, for tests of planning and quoting."""

from coordinator.config.config import CoordinatorConfig
from coordinator.jobspec import Job, parse_job
from coordinator.rounds.events import Absence, Offer
from coordinator.rounds.node_facts import NodeFacts
from coordinator.store.ledger import Account
from coordinator.store.shares import Share
from privacy.filters import make_filter
from privacy.ledger import Balance
from protos.feddp.v1 import federation_pb2 as federation

HASH = "0" * 64
SPEC = b"""
name: heart
task: tabular-classifier
dataset: heart-disease
federation: {rounds: 4, local_steps: 5}
privacy: {target_epsilon: 2.0, delta: 1.0e-5}
"""


def job(spec: bytes = SPEC) -> Job:
    return parse_job(spec, CoordinatorConfig())


def facts(
    *,
    limit: float = 5.0,
    kind: str = "gdp",
    order: int = 0,
    declared_n: int = 199,
    balance: Balance | None = None,
    per_job: float = 5.0,
    job_units: int = 0,
    job_releases: int = 0,
    last: float | None = None,
    no_updates: int = 0,
    cut_off: int = 0,
    shares: tuple[Share, ...] = (),
    signed: float | None = None,
) -> NodeFacts:
    filter_ = make_filter(kind, order, limit, 1e-5)
    account = Account("a/patients", "a", balance or Balance(filter_), 0, HASH)
    return NodeFacts(
        node="a",
        connected=True,
        disabled=False,
        data_set=federation.DataSet(
            name="heart-disease",
            account="patients",
            declared_n=declared_n,
            tasks=[f"tabular-classifier@{HASH}"],
        ),
        steward=federation.Account(
            name="patients",
            filter=kind,
            rdp_order=order,
            epsilon_limit=limit,
            delta=1e-5,
            epsilon_per_job_max=per_job,
            noise_multiplier_min=0.3,
        ),
        account=account,
        job_units=job_units,
        job_releases=job_releases,
        last_noise_multiplier=last,
        shares=shares,
        job_no_updates=no_updates,
        job_cut_off=cut_off,
        signed_epsilon=signed,
    )


def offered(answer: Offer | Absence) -> Offer:
    assert isinstance(answer, Offer), answer
    return answer


def absent(answer: Offer | Absence) -> Absence:
    assert isinstance(answer, Absence), answer
    return answer


def share(limit_units: int, used_units: int, kind: str = "project") -> Share:
    return Share(kind, "default", 0.7, limit_units, used_units)
