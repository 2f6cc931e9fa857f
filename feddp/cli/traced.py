"""A command as a trace of its own, where the environment names an OpenTelemetry collector."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from feddp.cli.output import note
from protos import tracing

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables, the narrower one first."""


@dataclass(slots=True)
class Trace:
    """What people find it by.

    Attributes:
        trace_id: 32 hexadecimal digits; empty where nothing is traced.
        about: attributes that are known at the end.
    """

    trace_id: str = ""
    about: dict[str, str | int] = field(default_factory=dict)


@contextmanager
def traced(name: str) -> Iterator[Trace]:
    """What happens inside is a trace; it is sent before this ends, within 2 s or not at all."""
    trace = Trace()
    endpoint = next(filter(None, map(os.environ.get, ENDPOINTS)), "")
    if not (endpoint and _begun(endpoint)):
        yield trace
        return
    try:
        with tracing.span(name, None, trace.about, place=tracing.new_trace()) as place:
            if place is not None:
                trace.trace_id = f"{place.trace_id:032x}"
            yield trace
    finally:
        tracing.end()


def _begun(endpoint: str) -> bool:
    """Whether spans are sent; a command does its work without."""
    from protos.errors import Malformed

    try:
        from protos import otlp

        otlp.begin("feddp", endpoint, complain=False)
    except Malformed as error:
        note(f"warning: nothing is traced: {error.message}")
        return False
    return True
