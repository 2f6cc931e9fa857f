"""A collector of OpenTelemetry's own protocol, for tests: keeps every span that it is sent."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class Seen:
    """One span as it arrived; ids in hexadecimal, no parent is empty."""

    service: str
    instance: str
    name: str
    trace_id: str
    span_id: str
    parent: str
    start_ns: int
    end_ns: int
    failed: bool
    links: tuple[tuple[str, str], ...]
    about: tuple[tuple[str, str | int], ...]

    def __getitem__(self, name: str) -> str | int:
        return dict(self.about)[f"feddp.{name}"]


class Receiver(pb_grpc.TraceServiceServicer):
    """Takes everything."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.address = ""

    def Export(  # noqa: N802 - gRPC names the method
        self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            whose = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for one in scope.spans:
                    self.spans.append(_seen(whose, one))
        return pb.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Seen]:
        """Every span of that name."""
        return [one for one in self.spans if one.name == name]


def _seen(whose: dict[str, str], one: object) -> Seen:
    return Seen(
        whose["service.name"],
        whose.get("service.instance.id", ""),
        one.name,
        one.trace_id.hex(),
        one.span_id.hex(),
        one.parent_span_id.hex(),
        one.start_time_unix_nano,
        one.end_time_unix_nano,
        one.status.code == 2,
        tuple((link.trace_id.hex(), link.span_id.hex()) for link in one.links),
        tuple((a.key, a.value.string_value or a.value.int_value) for a in one.attributes),
    )


@contextmanager
def receiver(
    credentials: grpc.ServerCredentials | None = None, address: str = "127.0.0.1:0"
) -> Iterator[Receiver]:
    """One that listens."""
    server, taking = grpc.server(ThreadPoolExecutor(2)), Receiver()
    pb_grpc.add_TraceServiceServicer_to_server(taking, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    taking.address = f"{address.rpartition(':')[0]}:{port}"
    server.start()
    try:
        yield taking
    finally:
        server.stop(0).wait()
