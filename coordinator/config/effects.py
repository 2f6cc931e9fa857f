"""What a valid configuration will not do, and where its numbers contradict each other."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal

from coordinator.config.keys import Section, extra
from coordinator.config.sections import CoordinatorConfig

TARGET_LATENCY_S = 0.2
"""95th percentile that the deployment guide promises."""

TARGET_RATE_PER_S = 1000
"""Requests per second that the deployment guide promises."""

COHORT_MIN = 3
HIPAA_YEARS = 6
"""45 CFR 164.316(b)(2)(i)."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark on a key.

    Attributes:
        key: dotted, as in the file.
        level: "note": the key does nothing here, and why; "warning": somebody will be surprised.
    """

    key: str
    level: Literal["note", "warning"]
    text: str


def effects(config: CoordinatorConfig) -> list[Finding]:
    """Keys that the file sets and that have no effect, then contradictions, then risks."""
    given = _given(config)
    return [
        *_without_effect(config),
        *_epsilon_of_noise(config, given),
        *_budget_of_users(config, given),
        *_router_load(config, given),
        *_retention(config, given),
        *_risks(config),
    ]


def _given(config: CoordinatorConfig) -> frozenset[str]:
    return frozenset(
        f"{section}.{name}"
        for section, values in _sections(config)
        for name in values.model_fields_set
    )


def _sections(config: CoordinatorConfig) -> Iterator[tuple[str, Section]]:
    for name in CoordinatorConfig.model_fields:
        yield name, getattr(config, name)


def _without_effect(config: CoordinatorConfig) -> Iterator[Finding]:
    for section, values in _sections(config):
        for name, field in type(values).model_fields.items():
            if name in values.model_fields_set and (why := extra(field, "no_effect")):
                yield Finding(f"{section}.{name}", "note", f"no effect: {why}")
    if config.federation.model_registry and (
        config.storage.blob_dir != config.federation.model_registry
    ):
        yield Finding("federation.model_registry", "note", "no effect: storage.blob_dir is given")


def _epsilon_of_noise(config: CoordinatorConfig, given: frozenset[str]) -> Iterator[Finding]:
    """What the noise multiplier is worth, for a query and for a job that names no target."""
    from privacy.calibration import noise_multiplier_for
    from privacy.filters import make_filter
    from privacy.releases import Release

    sigma, delta = config.privacy.noise_multiplier, config.privacy.delta
    asked = config.privacy.epsilon_per_query
    budget = make_filter("gdp", 0, max(asked, 1e-4), delta)
    if "privacy.epsilon_per_query" in given:
        one = budget.epsilon_of(budget.cost_units(Release("gaussian", sigma, 1.0, 1)))
        if one > 1.01 * asked:
            needed = noise_multiplier_for(budget, budget.limit_units, 1, 1, 1.0)
            yield Finding(
                "privacy.epsilon_per_query",
                "warning",
                f"contradicts privacy.noise_multiplier: {sigma:g} at delta {delta:g} is epsilon "
                f"{one:.2f} for one release, and epsilon {asked:g} needs a noise multiplier of "
                f"{needed:.0f}",
            )
    if "privacy.noise_multiplier" in given:
        steps = config.federation.planned_steps
        job = budget.epsilon_of(budget.cost_units(Release("gaussian", sigma, 1.0, steps)))
        yield Finding(
            "privacy.noise_multiplier",
            "note",
            f"a job of {steps} full-batch steps that names no target_epsilon costs each data set "
            f"epsilon {job:.3g} at delta {delta:g}; jobs should name target_epsilon",
        )


def _budget_of_users(config: CoordinatorConfig, given: frozenset[str]) -> Iterator[Finding]:
    from privacy.filters import make_filter

    if "privacy.max_budget_per_user" not in given:
        return
    one, most = config.privacy.epsilon_per_query, config.privacy.max_budget_per_user
    delta = config.privacy.delta
    if most >= one:
        limit = make_filter("gdp", 0, most, delta)
        query = make_filter("gdp", 0, max(one, 1e-4), delta)
        yield Finding(
            "privacy.max_budget_per_user",
            "warning",
            f"{most:g} / {one:g} = {math.floor(most / one + 1e-9)} queries holds only by naive "
            f"addition; Gaussian composition at delta {delta:g} admits about "
            f"{limit.limit_units // query.limit_units}",
        )
        together = limit.epsilon_of(10 * limit.limit_units)
        yield Finding(
            "privacy.max_budget_per_user",
            "warning",
            f"a limit per user protects no patient: 10 users who share answers have epsilon "
            f"{together:.1f}; each hospital's own ledger is what limits the loss",
        )


def _router_load(config: CoordinatorConfig, given: frozenset[str]) -> Iterator[Finding]:
    routing, rate = config.routing, config.security.rate_limit_per_user
    if "routing.timeout" in given and routing.timeout > TARGET_LATENCY_S:
        yield Finding(
            "routing.timeout",
            "warning",
            f"a 95th percentile under {TARGET_LATENCY_S * 1000:.0f} ms cannot be the time of an "
            f"answer that may take {routing.timeout:g} s; it can only mean the router's own "
            "overhead or the time to the first token",
        )
    if "routing.max_concurrent_requests" in given:
        per_s = routing.max_concurrent_requests / routing.timeout
        if per_s < TARGET_RATE_PER_S:
            yield Finding(
                "routing.max_concurrent_requests",
                "warning",
                f"{routing.max_concurrent_requests} at once, at up to {routing.timeout:g} s each, "
                f"are as few as {per_s:.0f} requests/s, not {TARGET_RATE_PER_S:,}",
            )
    if "security.rate_limit_per_user" in given:
        yield Finding(
            "security.rate_limit_per_user",
            "warning",
            f"{TARGET_RATE_PER_S:,} requests/s at {rate} per hour and user take "
            f"{TARGET_RATE_PER_S * 3600 / rate:,.0f} users",
        )


def _retention(config: CoordinatorConfig, given: frozenset[str]) -> Iterator[Finding]:
    days = config.compliance.audit_retention_days
    if "compliance.audit_retention_days" not in given:
        return
    years = round(days / 365.25)
    if years and 365 * years <= days < _most_days(years):
        yield Finding(
            "compliance.audit_retention_days",
            "warning",
            f"{days} days are short of {years} calendar years, which have up to "
            f"{_most_days(years)} days with their leap days",
        )
    if "hipaa" in config.compliance.frameworks and days < _most_days(HIPAA_YEARS):
        yield Finding(
            "compliance.audit_retention_days",
            "warning",
            f"HIPAA's documentation rule is {HIPAA_YEARS} years, up to {_most_days(HIPAA_YEARS)} "
            "days (45 CFR 164.316(b)(2)(i))",
        )


def _most_days(years: int) -> int:
    """Days in the longest run of `years` calendar years that starts in one of four years."""
    return max((date(first + years, 1, 1) - date(first, 1, 1)).days for first in range(2024, 2028))


def _risks(config: CoordinatorConfig) -> Iterator[Finding]:
    server, federation = config.server, config.federation
    if federation.min_participants < COHORT_MIN:
        yield Finding(
            "federation.min_participants",
            "warning",
            f"with {federation.min_participants} nodes, each can subtract its own update from "
            "the average and see the other's; only the noise still protects it",
        )
    if server.host not in _LOOPBACK and server.public_host in _LOOPBACK:
        yield Finding(
            "server.public_host",
            "warning",
            f"tokens will tell nodes to dial {server.public_host}, which only this machine can",
        )
    if server.health_host not in _LOOPBACK:
        yield Finding(
            "server.health_host",
            "note",
            f"/metrics on {server.health_host} names nodes and data sets to whoever reaches port "
            f"{server.health_port}, without TLS",
        )
    monitoring = config.monitoring
    if monitoring.alert_webhook and monitoring.alert_webhook_secret is None:
        yield Finding(
            "monitoring.alert_webhook",
            "note",
            "posts are not signed: whoever reaches the receiver can post there too; "
            "monitoring.alert_webhook_secret signs them",
        )
    yield from _missing_files("server", server, "ssl_cert", "ssl_key")
    yield from _missing_files("monitoring", monitoring, "alert_webhook_ca", "alert_webhook_secret")
    if not monitoring.trace_endpoint:  # else it keeps the coordinator from starting
        yield from _missing_files("monitoring", monitoring, "trace_ca")


def _missing_files(section: str, values: Section, *names: str) -> Iterator[Finding]:
    for name in names:
        path = getattr(values, name)
        if path is not None and not path.is_file():
            yield Finding(f"{section}.{name}", "warning", f"there is no file {path}")
