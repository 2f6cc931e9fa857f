"""`launcher` in agent.yaml: where workers run."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from node_agent.yaml_files.shapes import shaped

Word = Annotated[
    str,
    shaped(
        r"[A-Za-z0-9_.,:@=&|*()\[\]-]{0,256}",
        "a word as sbatch takes it, without spaces",
        "research",
    ),
]
DnsName = Annotated[
    str,
    shaped(
        r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?",
        "a name as Kubernetes has them: small letters, digits, dots and dashes",
        "feddp",
    ),
]
Quantity = Annotated[
    str,
    shaped(r"[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?", "an amount as Kubernetes takes it", "4Gi"),
]

MINUTES_MAX = 30 * 24 * 60


class LocalSettings(BaseModel):
    """Workers are child processes of the agent."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["local"] = "local"


class SlurmSettings(BaseModel):
    """Workers are batch jobs. The agent's folder, the data and the Python installation must be
    seen by compute nodes under the same paths.

    Attributes:
        time_limit_minutes: Slurm ends a worker then, whatever it does; another is asked for.
        gres: as sbatch takes it, "gpu:1".
        memory_mib: 0 for the partition's default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["slurm"]
    partition: Word = ""
    account: Word = ""
    qos: Word = ""
    constraint: Word = ""
    gres: Word = ""
    memory_mib: int = Field(default=0, ge=0, le=1 << 30)
    time_limit_minutes: int = Field(default=240, ge=2, le=MINUTES_MAX)


class KubernetesSettings(BaseModel):
    """Workers are Jobs. The agent's folder is a volume that worker pods mount at the same path.

    Attributes:
        image: has this same version of feddp with the extra `agent`.
        folder_claim: the PersistentVolumeClaim (ReadWriteMany, or all on one machine) of the
            agent's folder.
        data_claims: claims that hold records, mounted read-only: name -> absolute path.
        run_as_user: the agent's own user id; only its owner may enter a mailbox.
        gpus: of `gpu_resource`, for each worker.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["kubernetes"]
    namespace: DnsName
    image: Annotated[
        str,
        shaped(
            r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}",
            "the name of an image",
            "registry.example/feddp-agent:0.1.0",
        ),
    ]
    folder_claim: DnsName
    data_claims: dict[DnsName, str] = Field(
        default_factory=dict, max_length=32, examples=[{"records": "/srv/records"}]
    )
    run_as_user: int = Field(default=10001, ge=1, lt=1 << 31)
    memory: Quantity = "4Gi"
    gpus: int = Field(default=0, ge=0, le=64)
    gpu_resource: Annotated[
        str, shaped(r"[a-z0-9./-]{1,128}", "the name of a resource", "nvidia.com/gpu")
    ] = "nvidia.com/gpu"
    time_limit_minutes: int = Field(default=240, ge=2, le=MINUTES_MAX)

    @field_validator("data_claims")
    @classmethod
    def _absolute(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value.values():
            if not Path(path).is_absolute():
                raise ValueError("each path must be absolute, for instance {records: /srv/records}")
        return value


LauncherSettings = Annotated[
    LocalSettings | SlurmSettings | KubernetesSettings, Field(discriminator="kind")
]
