"""`tracing` of `agent.yaml`: the hospital's own collector. Off unless an endpoint is given."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict

from node_agent.yaml_files.shapes import shaped


class TracingConfig(BaseModel):
    """Where this agent's spans go.

    Attributes:
        endpoint: empty for nowhere. The environment's OTEL_EXPORTER_OTLP_ENDPOINT is not asked.
        ca_file: whom to trust for https instead of the usual authorities, PEM; a relative path
            starts at the agent's folder.
        times_of_work: also how long the worker took once the data was open. That depends on
            records: only for a collector that nobody outside the hospital can read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    endpoint: Annotated[
        str,
        shaped(
            r"(https?://[^\s/@?#]+:[0-9]{1,5})?",
            "https://HOST:PORT of a collector of this hospital, or http:// without TLS",
            "https://collector.hospital.example:4317",
        ),
    ] = ""
    ca_file: str = ""
    times_of_work: bool = False
