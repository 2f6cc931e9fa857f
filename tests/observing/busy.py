"""Metrics of a coordinator that has done one of everything, so that every label is seen."""

from typing import get_args

from prometheus_client import generate_latest

from coordinator.observing.metrics import Direction, EntryKind, Holder, Metrics, Outcome, Phase


def busy() -> Metrics:
    """Each method called once."""
    one = Metrics()
    one.leads()
    one.request("/feddp.v1.Jobs/ListJobs", "OK", 0.1)
    one.budget("alpha", "cohort", 2.0, 1.0)
    one.node_health("alpha", True)
    for phase in get_args(Phase):
        one.round_phase(phase, 1.0)
    for outcome in get_args(Outcome):
        one.round_ended(outcome)
    for direction in get_args(Direction):
        one.transferred(direction, 1)
    for kind in get_args(EntryKind):
        one.ledger_entries(kind, 1)
    one.damaged_accounts(0)
    one.jobs({"running": 1})
    one.jobs_waiting(1, 60.0)
    one.accounts(1, 0, 0)
    one.chains(2, 1)
    one.refused_accounts("alpha", {"disputed": 1})
    one.unreconciled_accounts("alpha", 1)
    one.nodes({"enrolled": 1}, 0, 1)
    one.left_out("alpha", 3)
    one.users(1)
    one.operations(paused=False, backup_at_s=1.0, epoch=1)
    one.node_certificate("alpha", 1.0)
    one.node_certificate_life(604_800.0)
    for holder in get_args(Holder):
        one.certificate(holder, 1.0)
    return one


def text_of(metrics: Metrics) -> str:
    """What Prometheus reads."""
    return generate_latest(metrics.registry).decode()
