"""Where a query is asked, as the data steward declares it. A credential never stands in it."""

from pathlib import Path
from typing import Annotated, Final
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node_agent.yaml_files.shapes import shaped

CREDENTIAL_BYTES_MAX: Final = 4096
DRIVERS: Final = {"postgresql": "psycopg", "sqlite": "pysqlite"}
"""Databases that are known here to keep a transaction from writing, with a test each."""

PASSED_ON_PREFIX: Final = "FEDDP_SOURCE_"
"""Of the agent's environment only variables named so reach a worker."""


Variable = Annotated[
    str,
    shaped(
        rf"{PASSED_ON_PREFIX}[A-Z0-9_]{{1,64}}",
        f"the name of a variable that begins with {PASSED_ON_PREFIX}, in capitals",
        f"{PASSED_ON_PREFIX}OMOP",
    ),
]


class Database(BaseModel):
    """A database that answers a query.

    Attributes:
        url: as SQLAlchemy takes it, without a password; sqlite:////absolute/path for a file.
        password_env: the variable of the agent's environment that holds the password.
        password_file: the file that holds it, on its first line; absolute once loaded.
        read_s: seconds that the query is given time for; fixed by the steward, as a duration that
            followed from the data would tell something of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            examples=["postgresql+psycopg://reader@omop.example:5432/omop"],
        ),
    ]
    password_env: Variable | None = None
    password_file: Path | None = Field(default=None, examples=["omop.password"])
    read_s: float = Field(default=5.0, ge=0, le=3600, allow_inf_nan=False)

    @property
    def dialect(self) -> str:
        """The kind of database."""
        return self.url.partition(":")[0].partition("+")[0]

    @property
    def is_reached_by_network(self) -> bool:
        """Whether a worker needs a network for it; a file or a socket's folder needs none."""
        parts = urlsplit(self.url)
        query = parse_qs(parts.query)
        hosts = [parts.hostname or ""]
        hosts += [host for text in query.get("host", []) for host in text.split(",")]
        elsewhere = "hostaddr" in query or "service" in query
        named = any(one and one[0] not in "/@" for one in hosts)
        return self.dialect != "sqlite" and (named or elsewhere)

    @model_validator(mode="after")
    def _consistent(self) -> "Database":
        driver = self.url.partition(":")[0].partition("+")[2]
        if self.dialect not in DRIVERS or driver not in ("", DRIVERS[self.dialect]):
            known = " or ".join(f"{name}+{of}://" for name, of in DRIVERS.items())
            raise ValueError(
                f"url must begin with {known}: there a query is known to be kept from writing"
            )
        try:
            parts = urlsplit(self.url)
            secret = parts.password is not None or "password" in parts.query.lower()
        except ValueError:
            raise ValueError("url cannot be read") from None
        if self.dialect == "sqlite" and not self.url.startswith("sqlite:////"):
            raise ValueError("url of an SQLite file must be sqlite:////absolute/path")
        if secret:
            raise ValueError(
                "url must hold no password: name a password_file, or a password_env that begins "
                f"with {PASSED_ON_PREFIX}"
            )
        if self.password_env is not None and self.password_file is not None:
            raise ValueError("give password_env or password_file, not both")
        return self
