"""What a gateway adds to a call, and what it leaves of an upload's speed on a long way."""

import secrets
import statistics
import time
from dataclasses import dataclass

import grpc

from benchmarks.gateway_site import Mode, site, start
from benchmarks.long_way import LongWay
from benchmarks.measuring import MIB
from benchmarks.results import Result, result
from feddp.transfer import upload
from protos.feddp.v1 import models_pb2, models_pb2_grpc, transfer_pb2_grpc


@dataclass(frozen=True, slots=True)
class Unary:
    """Calls that read the list of models, in turn direct and through Envoy."""

    mode: Mode
    warm_up: int
    calls: int

    disk_bytes = 0

    def run(self, case: str) -> list[Result]:
        """The medians; in turn, so that the machine's other work strikes both."""
        with site(self.mode) as running:
            start(running)
            with running.operator(running.direct) as one, running.operator(running.through) as two:
                stubs = [models_pb2_grpc.ModelsStub(channel) for channel in (one, two)]
                took_s: list[list[float]] = [[], []]
                for _ in range(self.warm_up + self.calls):
                    for stub, times_s in zip(stubs, took_s, strict=True):
                        began_s = time.perf_counter()
                        stub.ListModels(models_pb2.ListModelsRequest(), timeout=20)
                        times_s.append(time.perf_counter() - began_s)
        direct, through = (1000 * statistics.median(one[self.warm_up :]) for one in took_s)
        return [result(case, "unary_p50", through, "ms", direct)]


@dataclass(frozen=True, slots=True)
class Upload:
    """One initial model, sent as an engineer's client sends it, in the ranges and messages in which
    an agent sends its updates; incompressible."""

    mode: Mode
    round_trip_s: float
    model_bytes: int
    times: int

    @property
    def disk_bytes(self) -> int:
        """Each model is kept."""
        return 2 * self.times * self.model_bytes

    def run(self, case: str) -> list[Result]:
        """The slowest of the uploads; beside it the same way without a gateway."""
        with site(self.mode) as running:
            start(running)
            rates = []
            for target in (running.direct, running.through):
                with LongWay(target, self.round_trip_s / 2) as way:
                    rates.append(min(self._rates(running.operator(way.address))))
        direct, through = rates
        return [result(case, "upload_rate", through, "MiB/s", direct)]

    def _rates(self, channel: grpc.Channel) -> list[float]:
        """MiB/s of each upload over one connection."""
        rates = []
        with channel:
            stub = transfer_pb2_grpc.TransferStub(channel)
            for _ in range(self.times):
                data = secrets.token_bytes(self.model_bytes)
                began_s = time.perf_counter()
                upload(stub, data, lambda call: call())
                rates.append(self.model_bytes / MIB / (time.perf_counter() - began_s))
        return rates
