"""Sections that the coordinator shares with the router and with the tools around both.

`no_effect` says why a key changes nothing in the coordinator.
"""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import ValidationInfo, field_validator

from coordinator.config.keys import PORT, Section, beside_config, key

NO_QUERIES = "the query router reads it; the coordinator answers no queries"


class Routing(Section):
    """How the router spreads queries."""

    strategy: str = key(
        "weighted_response_time",
        "How queries are planned over nodes.",
        pattern=r"^[a-z][a-z0-9_]{0,63}$",
        allowed="a lower-case name",
        no_effect=NO_QUERIES,
    )
    max_concurrent_requests: int = key(
        500, "Most queries under way at once.", ge=1, le=1_000_000, no_effect=NO_QUERIES
    )
    timeout: float = key(
        45.0, "Longest time for one query.", unit="s", gt=0, le=3600, no_effect=NO_QUERIES
    )
    load_balancing: str = key(
        "weighted_response_time",
        "How a node is chosen among equals.",
        pattern=r"^[a-z][a-z0-9_]{0,63}$",
        allowed="a lower-case name",
        no_effect=NO_QUERIES,
    )


class Security(Section):
    """Who gets in."""

    enable_mtls: bool = key(
        True, "Client certificates on server.port; they cannot be switched off.", allowed="true"
    )
    token_expiry: int = key(
        1800,
        "Lifetime of a user's session at the router.",
        unit="s",
        ge=60,
        le=86_400,
        no_effect="the coordinator has no sessions to expire: it looks the caller's certificate up"
        " on every call; a join token's lifetime is `feddp node token --ttl`",
    )
    node_certificate_life_s: int = key(
        604_800,
        "How long a node's certificate is valid. The agent renews it when a third of that remains,"
        " and one whose certificate has ended replaces it within security.recovery_days.",
        unit="s",
        ge=10,
        le=31_536_000,
    )
    recovery_days: int = key(
        30,
        "How long after its end a node's certificate can still be replaced, by a proof of its key"
        " on server.enrollment_port; 0 for never: then the node joins again with a new token.",
        unit="days",
        ge=0,
        le=365,
    )
    approve_joins: bool = key(
        False,
        "Whoever redeems a join token waits until an operator approves (`feddp node approve`).",
    )
    rate_limit_per_user: int = key(
        30, "Queries of one user.", unit="per hour", ge=1, le=1_000_000, no_effect=NO_QUERIES
    )
    allowed_origins: tuple[str, ...] = key(
        (),
        "Web origins whose pages may call the router.",
        allowed="a list of https://HOST",
        no_effect="browsers call the router, never the coordinator",
    )

    @field_validator("enable_mtls")
    @classmethod
    def _mtls_stays(cls, value: bool) -> bool:
        if not value:
            raise ValueError("anyone could pose as a hospital; remove the line")
        return value


class Compliance(Section):
    """Duties of the organisation that runs the coordinator."""

    frameworks: tuple[str, ...] = key(
        (),
        "Rules that the installation is run under.",
        allowed="a list of names, such as hipaa, gdpr, hitech",
        no_effect="a name changes nothing by itself; the protections are the same for everyone",
    )
    audit_retention_days: int = key(
        2555,
        "How long ledgers and job records are kept at least.",
        unit="days",
        ge=1,
        le=36_525,
        no_effect="the coordinator deletes no ledger entry and no job, so every retention is met",
    )
    enable_detailed_logging: bool = key(
        True,
        "Detailed logs.",
        no_effect="monitoring.log_level sets the detail; no level logs a value computed from data",
    )
    pii_encryption_required: bool = key(
        True,
        "Encryption of personal data at rest.",
        no_effect="no patient record reaches the coordinator; it does not encrypt its database and"
        " models itself, so put storage on an encrypted volume",
    )


class Monitoring(Section):
    """What the coordinator tells about itself."""

    prometheus_endpoint: str = key(
        "",
        "Address of Prometheus.",
        allowed="a URL",
        no_effect="Prometheus fetches /metrics from server.health_port; nothing is pushed to it",
    )
    grafana_endpoint: str = key(
        "", "Address of Grafana.", allowed="a URL", no_effect="Grafana asks Prometheus, not us"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = key("INFO", "Least level logged.")
    log_format: Literal["auto", "json", "text"] = key(
        "auto",
        "Log lines as JSON, one object a line, or for people; auto: JSON unless stderr is a"
        " terminal.",
    )
    trace_endpoint: str = key(
        "",
        "OpenTelemetry collector that takes spans by OTLP over gRPC; empty for no traces. Needs the"
        " extra feddp[otel]. Headers that it wants go into OTEL_EXPORTER_OTLP_HEADERS.",
        pattern=rf"^(https?://[^\s/@?#]+:{PORT})?$",
        allowed="https://HOST:PORT, http://HOST:PORT without TLS, or nothing",
    )
    trace_ca: Path | None = key(
        None,
        "Whom to trust as that collector instead of the usual authorities, PEM.",
        allowed="a file",
    )
    trace_sample_ratio: float = key(
        1.0,
        "Share of rounds that are traced; agents follow what was decided for the round.",
        ge=0,
        le=1,
    )
    metrics_retention: str = key(
        "30d",
        "How long metrics are kept.",
        pattern=r"^[1-9][0-9]{0,4}[smhdwy]$",
        allowed="a number and one of s, m, h, d, w, y",
        no_effect="Prometheus keeps metrics: give it --storage.tsdb.retention.time",
    )
    alert_webhook: str = key(
        "",
        "Where the coordinator posts its own alerts, in the form of Alertmanager's webhook: one"
        " HTTPS URL, no redirect is followed. Empty for none; Alertmanager makes others from the"
        " metrics.",
        allowed="https://HOST[:PORT]/PATH, or nothing",
        secret=True,
    )
    alert_webhook_ca: Path | None = key(
        None,
        "Whom to trust as that receiver instead of the machine's authorities, PEM.",
        allowed="a file",
    )
    alert_webhook_secret: Path | None = key(
        None,
        "Signs each post (HMAC-SHA256, header X-Feddp-Signature). It holds the secret and nothing"
        " else, and is read at each post.",
        allowed="a file",
    )
    alert_every_s: float = key(30.0, "Between two looks.", unit="s", ge=1, le=3600)
    alert_node_lost_s: float = key(
        120.0, "A node without a session is told after so long.", unit="s", ge=1, le=2_592_000
    )
    alert_job_waiting_s: float = key(
        3600.0, "A job that waits is told after so long.", unit="s", ge=1, le=2_592_000
    )
    alert_budget_remaining: float = key(
        0.1, "An account of which less epsilon is left is told.", ge=0, le=1000
    )
    alert_certificate_days: float = key(
        14.0,
        "The server's or the authority's certificate is told so long before its end; a node's when"
        " a fifth of security.node_certificate_life_s remains.",
        unit="days",
        ge=0,
        le=365,
    )

    @field_validator("alert_webhook")
    @classmethod
    def _https_alone(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme != "https" or not parts.hostname or not value.isprintable()):
            raise ValueError("alerts are posted by HTTPS alone")
        if parts.username is not None or parts.fragment or " " in value:
            raise ValueError("it has no user, no fragment and no blank; a secret has a key for it")
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("its port is no number up to 65535") from None
        try:
            (parts.hostname or "").encode("idna")
            value.removeprefix(f"https://{parts.netloc}").encode("ascii")
        except UnicodeError:
            raise ValueError(
                "its host has a part that is empty or longer than 63 letters, or its path a letter "
                "that is not ASCII: write that as %XX"
            ) from None
        return value

    @field_validator("trace_ca", "alert_webhook_ca", "alert_webhook_secret")
    @classmethod
    def _resolved(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return beside_config(value, info)

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value
