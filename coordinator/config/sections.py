"""Every key of the coordinator's configuration file, with its meaning, unit, bounds and default.

One class for each section; the sections that concern more than the coordinator are in
`surroundings`.
"""

from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import ValidationInfo, field_validator

from coordinator.config.keys import Section, beside_config, key
from coordinator.config.surroundings import (
    NO_QUERIES,
    Compliance,
    Monitoring,
    Routing,
    Security,
)
from privacy.releases import GRAD_NORM_MIN
from protos.transfer_address import follows

PORT_MAX = 65535
POSTGRESQL: Final = "postgresql+psycopg"


class Server(Section):
    """Where the coordinator listens, and under which name nodes reach it."""

    host: str = key("0.0.0.0", "Address on which the two gRPC ports listen.")  # noqa: S104
    port: int = key(8443, "Port for nodes and people, mutual TLS.", ge=1, le=PORT_MAX)
    enrollment_port: int = key(
        8444,
        "Port on which a node that has no certificate yet redeems its token.",
        ge=1,
        le=PORT_MAX,
    )
    health_host: str = key(
        "127.0.0.1",
        "Address for /health, /ready and /metrics. They are plain HTTP and ask for no identity;"
        " in a pod, where probes come from outside, set 0.0.0.0 and a network policy.",
    )
    health_port: int = key(8080, "Port for /health, /ready and /metrics.", ge=1, le=PORT_MAX)
    ssl_enabled: bool = key(
        True, "TLS on both gRPC ports; it cannot be switched off.", allowed="true"
    )
    ssl_cert: Path | None = key(
        None,
        "Certificate chain that the server shows, PEM. Without it, the one that"
        " `feddp coordinator init` issued under storage.pki_dir.",
        allowed="a file, together with ssl_key",
    )
    ssl_key: Path | None = key(
        None, "Private key of ssl_cert, PEM.", allowed="a file, together with ssl_cert"
    )
    public_host: str = key("localhost", "Name or address that nodes dial; it goes into tokens.")
    public_enrollment_host: str = key(
        "",
        "Name that joining nodes dial; empty means public_host. A gateway with one port for"
        " everything tells the two apart by the name.",
        allowed="a name, or nothing",
    )
    public_port: int = key(
        0, "Port that nodes dial; 0 means the same as server.port.", ge=0, le=PORT_MAX
    )
    public_enrollment_port: int = key(
        0,
        "Port that joining nodes dial; 0 means the same as server.enrollment_port.",
        ge=0,
        le=PORT_MAX,
    )
    gateway_sidecar: bool = key(
        False,
        "Behind the gateway that ends TLS stands a second proxy, which ends it again and speaks TLS"
        " on with a certificate of `feddp coordinator gateway`: x-forwarded-client-cert then has"
        " exactly two elements, the client's and the gateway's.",
    )
    replica_host: str = key(
        "",
        "Name or address under which other replicas reach this one, a pod's address say; with it"
        " several coordinators share one PostgreSQL and one storage.blob_url, one of them leads,"
        " and each passes connections on to it.",
        allowed="a name or an address, or nothing for one coordinator alone",
    )

    transfer_port: int = key(
        0,
        "Port on which every replica, leading or not, serves the bytes of models and updates to"
        " nodes, mutual TLS; 0 for none.",
        ge=0,
        le=PORT_MAX,
    )
    transfer_address: str = key(
        "",
        "HOST:PORT that nodes are told for the bytes of models and updates; the host is public_host"
        " or a name under it, and is added to the certificate that the coordinator makes itself. A"
        " node that cannot reach it uses the connection that it has.",
        allowed="HOST:PORT, together with transfer_port, or nothing",
    )

    @field_validator("transfer_address")
    @classmethod
    def _dialled_by_nodes(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        if not info.data.get("transfer_port"):
            raise ValueError("nobody serves there: give server.transfer_port too")
        if not follows(value, str(info.data.get("public_host", ""))):
            raise ValueError(
                "nodes do not dial it: give HOST:PORT with the host of server.public_host, or a"
                " name under it (transfer.HOST)"
            )
        return value

    @property
    def transfer_host(self) -> str:
        """Of transfer_address, without brackets; empty for none."""
        return self.transfer_address.rpartition(":")[0].strip("[]")

    @field_validator("replica_host")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if any(character.isspace() for character in value):
            raise ValueError("a name or an address has no blanks in it")
        return value

    @field_validator("ssl_enabled")
    @classmethod
    def _tls_stays(cls, value: bool) -> bool:
        if not value:
            raise ValueError("models and identities would travel in the clear; remove the line")
        return value

    @field_validator("enrollment_port", "health_port", "transfer_port")
    @classmethod
    def _own_port(cls, value: int, info: ValidationInfo) -> int:
        for other in ("port", "enrollment_port", "health_port"):
            if other != info.field_name and value and info.data.get(other) == value:
                raise ValueError(f"server.{other} has the same port; give each its own")
        return value

    @field_validator("ssl_key")
    @classmethod
    def _both_or_none(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "ssl_cert" in info.data and (value is None) != (info.data["ssl_cert"] is None):
            raise ValueError("ssl_cert and ssl_key go together; give both or neither")
        return beside_config(value, info)

    @field_validator("ssl_cert")
    @classmethod
    def _resolved(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return beside_config(value, info)

    @field_validator("public_port", "public_enrollment_port")
    @classmethod
    def _same_unless_given(cls, value: int, info: ValidationInfo) -> int:
        listening = str(info.field_name).removeprefix("public_")
        return value or int(info.data.get(listening, 0))


class Privacy(Section):
    """What a job gets that does not say otherwise."""

    epsilon_per_query: float = key(
        0.05, "Epsilon that one query may cost.", gt=0, le=100, no_effect=NO_QUERIES
    )
    delta: float = key(
        1e-5, "Delta of the epsilon that jobs are planned and shown with.", ge=1e-30, le=0.1
    )
    max_budget_per_user: float = key(
        5.0, "Epsilon that one user's queries may cost in all.", gt=0, le=1000, no_effect=NO_QUERIES
    )
    noise_multiplier: float = key(
        1.5,
        "Noise of a job that gives neither target_epsilon nor noise_multiplier: its standard"
        " deviation over the clipping bound.",
        gt=0,
        le=1e6,
    )
    mechanism: Literal["rdp", "gdp"] = key(
        "rdp",
        "Composition rule.",
        no_effect="each hospital's policy.yaml fixes the rule (filter: gdp or rdp) when its account"
        " is created, and it cannot change afterwards",
    )
    max_grad_norm: float = key(
        0.1, "Bound C to which each patient's summed gradient is clipped.", ge=GRAD_NORM_MIN, le=1e6
    )


class Federation(Section):
    """Rounds: who takes part, how long, when they end."""

    coordinator_role: bool = key(
        True, "This process coordinates rounds; it has no other role.", allowed="true"
    )
    model_registry: Path | None = key(
        None, "Folder for models; storage.blob_dir goes before it.", allowed="a folder"
    )
    aggregation_method: Literal["fedprox"] = key("fedprox", "How a round trains and averages.")
    min_participants: int = key(
        3, "Fewest nodes in a round; a job may ask for more.", unit="nodes", ge=2, le=10_000
    )
    max_rounds: int = key(100, "Most rounds of one job.", unit="rounds", ge=1, le=10_000)
    convergence_threshold: float = key(
        0.001,
        "A job has converged when the relative movement of the global model per round, its known"
        " noise included, stays below this.",
        gt=0,
        le=1,
    )
    convergence_patience: int = key(
        3, "Rounds in a row that must be below the threshold.", unit="rounds", ge=1, le=1000
    )
    proximal_mu: float = key(0.01, "FedProx's pull towards the round's model.", ge=0, le=1000)
    local_steps: int = key(
        5, "Gradient steps of a node in one round.", unit="steps", ge=1, le=10_000
    )
    planned_steps: int = key(
        20, "Gradient steps of a job whose rounds are auto.", unit="steps", ge=1, le=1_000_000
    )
    deadline_s: int = key(
        300,
        "From the order until a round with a quorum closes without the node.",
        unit="s",
        ge=1,
        le=604_800,
    )
    grace_factor: float = key(
        3.0,
        "Once a round has its quorum, a node that is still at work is waited for until so many"
        " times what its own slowest recent round took, at least 10 s and at most until the"
        " deadline; 0 waits until the deadline.",
        ge=0,
        le=1000,
    )
    batch_size: int = key(
        256,
        "Expected patients in a step where they are sampled.",
        unit="patients",
        ge=1,
        le=1_000_000,
    )
    poisson_from_n: int = key(
        1000,
        "Declared size from which patients are sampled; below it every step uses all of them.",
        unit="patients",
        ge=1,
        le=1_000_000_000,
    )
    heartbeat_interval_s: int = key(
        10, "Most time between two heartbeats of a node.", unit="s", ge=1, le=30
    )
    node_silent_s: int = key(
        30, "A node that is silent for this long is lost.", unit="s", ge=2, le=3600
    )
    node_disconnected_s: int = key(
        10, "A node whose stream has broken is lost after this long.", unit="s", ge=1, le=3600
    )

    @field_validator("coordinator_role")
    @classmethod
    def _coordinates(cls, value: bool) -> bool:
        if not value:
            raise ValueError("this program is the coordinator; start the router for other roles")
        return value

    @field_validator("model_registry")
    @classmethod
    def _resolved(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return beside_config(value, info)

    @field_validator("node_silent_s")
    @classmethod
    def _longer_than_a_beat(cls, value: int, info: ValidationInfo) -> int:
        if value <= info.data.get("heartbeat_interval_s", 0):
            raise ValueError(
                "must be above federation.heartbeat_interval_s: healthy nodes are lost"
            )
        return value


class Storage(Section):
    """Where state lives. Relative paths start at the folder of the configuration file."""

    database_url: str = key(
        "sqlite:///coordinator.db",
        "Jobs, ledgers, nodes and certificates. PostgreSQL needs the extra feddp[postgres]; keep a "
        "password in the environment (FEDDP_STORAGE__DATABASE_URL) or in PGPASSFILE.",
        allowed="sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST:PORT/NAME",
        secret=True,
    )
    blob_dir: Path = key(
        Path("blobs"),
        "Models and updates; without it federation.model_registry, if that is given.",
        allowed="a folder",
    )
    blob_url: str = key(
        "",
        "Store that several coordinators share: every model and update is there, too, before it"
        " counts. Needs the extra feddp[s3]; credentials and region come from the environment"
        " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION) or the machine's role.",
        allowed="s3://BUCKET or s3://BUCKET/PREFIX, or nothing",
    )
    blob_endpoint: str = key(
        "",
        "Address of an S3-compatible store; empty for Amazon's.",
        allowed="https://HOST:PORT or http://HOST:PORT, or nothing",
    )
    pki_dir: Path = key(
        Path("pki"),
        "The authority's keys and certificates; `feddp coordinator init` makes it.",
        allowed="a folder",
    )
    revocations_file: Path = key(
        Path("revocations.jsonl"),
        "Every revoked certificate, and each node that is disabled, quarantined or let in again,"
        " appended as it happens: `feddp coordinator restore` needs to know who was shut out after"
        " the backup. Best on another disk than the database, or shipped elsewhere; each replica"
        " appends what it has done.",
        allowed="a file in a folder that is there",
    )
    model_bytes_max: int = key(
        4 << 30, "Largest model, and largest update.", unit="bytes", ge=1024, le=1 << 40
    )

    @field_validator("blob_dir", "pki_dir", "revocations_file")
    @classmethod
    def _resolved(cls, value: Path, info: ValidationInfo) -> Path:
        return beside_config(value, info) or value

    @field_validator("blob_url")
    @classmethod
    def _bucket(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme != "s3" or not parts.netloc or parts.username):
            raise ValueError(
                "it names a bucket as s3://BUCKET or s3://BUCKET/PREFIX; credentials come from the "
                "environment"
            )
        return value.rstrip("/")

    @field_validator("blob_endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.netloc or parts.username):
            raise ValueError("an address of a store is https://HOST:PORT or http://HOST:PORT")
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("its port is no number up to 65535") from None
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str, info: ValidationInfo) -> str:
        if value != value.strip():
            raise ValueError(
                "it begins or ends with a blank or a line's end, as of a Secret that was made from "
                "a file with one: write it without (`printf %s`)"
            )
        if value.startswith("postgresql"):
            return postgresql_url(value)
        name = value.removeprefix("sqlite:///")
        if name == value or name in ("", ":memory:"):
            raise ValueError("state is kept in one SQLite file, or in PostgreSQL")
        return f"sqlite:///{beside_config(Path(name), info)}"


def postgresql_url(url: str) -> str:
    """The URL if its parts can be told.

    Raises:
        ValueError: a sentence that repeats none of them.
    """
    if not url.startswith(f"{POSTGRESQL}://"):
        raise ValueError(f"a PostgreSQL address begins with {POSTGRESQL}://")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(
            "the address cannot be taken apart; write @ : / ? # % within a name or password as "
            "%40 %3A %2F %3F %23 %25"
        ) from None
    if port == 0 or not parts.path.strip("/") or "/" in parts.path[1:] or parts.fragment:
        raise ValueError("a PostgreSQL address ends in one database's name: ...HOST:PORT/NAME")
    return url


class CoordinatorConfig(Section):
    """The whole file. Paths in it are absolute once it has been loaded."""

    server: Server = key(Server(), "")
    privacy: Privacy = key(Privacy(), "")
    routing: Routing = key(Routing(), "")
    security: Security = key(Security(), "")
    compliance: Compliance = key(Compliance(), "")
    monitoring: Monitoring = key(Monitoring(), "")
    federation: Federation = key(Federation(), "")
    storage: Storage = key(Storage(), "")
