"""Sends spans to an OpenTelemetry collector by OTLP over gRPC. Loaded only where that is asked for.

A collector that is slow, away or full costs nobody anything: spans wait in a bounded queue, the
oldest go first, and the process ends without them after `CLOSE_S`.
"""

import logging
import os
import ssl
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc

from protos import tracing
from protos.errors import Malformed

QUEUE_SPANS_MAX: Final = 4096
BATCH_SPANS_MAX: Final = 256
EVERY_S: Final = 2.0
EXPORT_TIMEOUT_S: Final = 5.0
CLOSE_S: Final = 1.5
"""For what is left at the end. Together with `ABORT_S` below the 2 s that an end may take."""

ABORT_S: Final = 0.3

_HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
_TRACES_HEADERS: Final = "OTEL_EXPORTER_OTLP_TRACES_HEADERS"

MISSING: Final = (
    "traces need OpenTelemetry, which is not installed: pip install 'feddp[otel]', or take the "
    "endpoint out of the configuration"
)


def is_installed() -> bool:
    """Whether `begin` would find what it needs."""
    try:
        import opentelemetry.exporter.otlp.proto.grpc.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        return False
    return True


def begin(
    service: str,
    endpoint: str,
    *,
    ca_file: Path | None = None,
    ratio: float = 1.0,
    instance: str = "",
    complain: bool = True,
) -> None:
    """Export this process's spans from now on.

    Args:
        service: what the process is, such as "feddp-coordinator".
        endpoint: https://HOST:PORT, or http:// for a collector that is reached without TLS.
        ca_file: whom to trust instead of the usual authorities, PEM.
        ratio: of new traces that are exported.
        instance: which of its kind; a node's name at an agent.
        complain: log when the collector does not take spans.

    Raises:
        Malformed: OTEL_MISSING, TRACING_INVALID.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import IdGenerator
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ImportError:
        raise Malformed("OTEL_MISSING", MISSING) from None

    class Ids(IdGenerator):
        """Gives out the ids of the span that is being made."""

        place: tracing.Place

        def generate_trace_id(self) -> int:
            return self.place.trace_id

        def generate_span_id(self) -> int:
            return self.place.span_id

    logging.getLogger("opentelemetry").setLevel(logging.ERROR if complain else logging.CRITICAL)
    exporter = OTLPSpanExporter(
        endpoint=endpoint,
        insecure=True if urlsplit(endpoint).scheme == "http" else None,
        credentials=_credentials(ca_file),
        timeout=EXPORT_TIMEOUT_S,
    )
    processor = BatchSpanProcessor(
        exporter,
        max_queue_size=QUEUE_SPANS_MAX,
        schedule_delay_millis=EVERY_S * 1000,
        max_export_batch_size=BATCH_SPANS_MAX,
    )
    known = {"service.name": service, "service.version": version("feddp")}
    if instance:
        known["service.instance.id"] = instance
    ids = Ids()
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # whether a trace is sampled was decided where it began
        resource=Resource(known),  # not `create`, which would add what the environment says
        id_generator=ids,
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor)
    tracer, one_at_a_time = provider.get_tracer("feddp"), threading.Lock()

    def context_of(place: tracing.Place) -> trace.SpanContext:
        return trace.SpanContext(
            place.trace_id, place.span_id, is_remote=False, trace_flags=trace.TraceFlags(1)
        )

    def export(one: tracing.Finished) -> None:
        parent = trace.INVALID_SPAN
        if one.parent is not None:
            parent = trace.NonRecordingSpan(context_of(one.parent))
        with one_at_a_time:
            ids.place = one.place
            made = tracer.start_span(
                one.name,
                context=trace.set_span_in_context(parent),
                attributes={f"feddp.{name}": value for name, value in one.attributes.items()},
                links=[trace.Link(context_of(place)) for place in one.links],
                start_time=_nanoseconds(one.start_s),
            )
        if one.failed:
            made.set_status(trace.StatusCode.ERROR)
        made.end(_nanoseconds(one.end_s))

    tracing.begin(export, lambda: _close(processor.shutdown, exporter.shutdown), ratio)


def _close(send_the_rest: Callable[[], None], abort: Callable[[], None]) -> None:
    """Bounded: the library waits 30 s for a collector that does not answer."""
    sending = threading.Thread(target=send_the_rest, name="spans", daemon=True)
    sending.start()
    sending.join(CLOSE_S)
    if sending.is_alive():
        aborting = threading.Thread(target=abort, name="no-spans", daemon=True)
        aborting.start()
        aborting.join(ABORT_S)


def export_nothing(endpoint: str, *, ca_file: Path | None = None) -> None:
    """Export no span and wait for the answer, by the settings that `begin` would use.

    Raises:
        Malformed: OTEL_MISSING, TRACING_INVALID.
        grpc.RpcError: the collector's answer, or that there was none within `EXPORT_TIMEOUT_S`.
    """
    try:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
        from opentelemetry.util.re import parse_env_headers
    except ImportError:
        raise Malformed("OTEL_MISSING", MISSING) from None
    parts = urlsplit(endpoint)
    said = os.environ.get(_TRACES_HEADERS) or os.environ.get(_HEADERS) or ""
    metadata = tuple(parse_env_headers(said, liberal=True).items())
    credentials = _credentials(ca_file) or grpc.ssl_channel_credentials()
    plain = parts.scheme == "http"
    with (
        grpc.insecure_channel(parts.netloc)
        if plain
        else grpc.secure_channel(parts.netloc, credentials)
    ) as channel:
        stub: Any = pb_grpc.TraceServiceStub
        stub(channel).Export(
            pb.ExportTraceServiceRequest(), timeout=EXPORT_TIMEOUT_S, metadata=metadata
        )


def authority_fault(ca_file: Path | None) -> str:
    """Why no collector could be verified with this file; empty for nothing."""
    try:
        _credentials(ca_file)
    except Malformed as error:
        return error.message
    return ""


def _credentials(ca_file: Path | None) -> grpc.ChannelCredentials | None:
    if ca_file is None:
        return None
    try:
        # gRPC takes anything, and then trusts nobody without a word.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
        return grpc.ssl_channel_credentials(ca_file.read_bytes())
    except ssl.SSLError:
        raise Malformed(
            "TRACING_INVALID",
            f"{ca_file} holds no certificate in PEM; it is to hold the collector's authority",
        ) from None
    except OSError as error:
        raise Malformed(
            "TRACING_INVALID",
            f"{ca_file} cannot be read ({error.strerror}); it is to hold the collector's "
            "authority, PEM",
        ) from None


def _nanoseconds(at_s: float) -> int:
    return round(at_s * 1e9)
