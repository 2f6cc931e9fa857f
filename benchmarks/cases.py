"""The cases of `make bench`, by name."""

from collections.abc import Mapping
from typing import Final, Protocol

from benchmarks.dp_step import DpStep
from benchmarks.fleet import Fleet
from benchmarks.gateway_calls import Unary, Upload
from benchmarks.growth import Growth
from benchmarks.idle import Idle
from benchmarks.ledger import Admission, Reservations
from benchmarks.ledger_verify import Verify
from benchmarks.many_sessions import ManySessions
from benchmarks.null_round import NullRounds
from benchmarks.replicated import Replicated
from benchmarks.restoring import Restore
from benchmarks.results import Result
from benchmarks.startup import Startup

KB_40: Final = 10_000
MB_100: Final = 25_000_000
GB_1: Final = 250_000_000
"""Parameters, float32, of a model of that size."""


class Case(Protocol):
    """Something to measure."""

    @property
    def disk_bytes(self) -> int:
        """What it may leave on disk until it is over."""

    def run(self, case: str) -> list[Result]:
        """Measure it under that name."""


QUICK: Final[Mapping[str, Case]] = {
    "null-4x40KB": NullRounds(4, KB_40, warm_up=5, rounds=30, floor_rounds=60, seconds_max=60),
    "start-4": Startup(nodes=4, times=1),
    "idle-4": Idle(nodes=4, seconds=10),
    "dp-sgd-step": DpStep(199, 13, (), steps=20, runs=10),
}
"""What `--quick` runs: less than a minute."""

DEFAULT: Final[Mapping[str, Case]] = {
    "null-4x40KB": NullRounds(4, KB_40, warm_up=5, rounds=80, floor_rounds=80, seconds_max=120),
    "null-64x40KB": NullRounds(64, KB_40, warm_up=3, rounds=12, floor_rounds=15, seconds_max=240),
    "null-4x100MB": NullRounds(4, MB_100, warm_up=1, rounds=5, floor_rounds=4, seconds_max=120),
    "null-16x100MB": NullRounds(16, MB_100, warm_up=1, rounds=2, floor_rounds=2, seconds_max=180),
    "null-4x1GB": NullRounds(4, GB_1, warm_up=1, rounds=1, floor_rounds=1, seconds_max=240),
    "start-4": Startup(nodes=4, times=3),
    "idle-4": Idle(nodes=4, seconds=20),
    "ledger-4-writers-sqlite": Reservations("sqlite", writers=4, each=500),
    "ledger-4-writers-postgresql": Reservations("postgresql", writers=4, each=500),
    "ledger-10000-sqlite": Admission("sqlite", earlier=10_000, times=200),
    "ledger-10000-postgresql": Admission("postgresql", earlier=10_000, times=200),
    "ledger-verify-100k": Verify(entries=100_000),
    "dp-sgd-step": DpStep(199, 13, (), steps=20, runs=40),
    "dp-sgd-step-mlp": DpStep(256, 64, (128, 64), steps=20, runs=12),
}

ALL: Final[Mapping[str, Case]] = {
    **DEFAULT,
    "null-64x100MB": NullRounds(64, MB_100, warm_up=1, rounds=1, floor_rounds=1, seconds_max=600),
    "fleet-100": Fleet(100, KB_40, rounds=5, seconds_max=120),
    "fleet-1000": Fleet(1000, KB_40, rounds=3, seconds_max=300),
    "replicas-4x40KB": Replicated(4, KB_40, warm_up=5, rounds=80, seconds_max=120),
    "replicas-4x100MB": Replicated(4, MB_100, warm_up=1, rounds=4, seconds_max=240),
    "transfer-4x100MB": Replicated(4, MB_100, warm_up=1, rounds=4, seconds_max=240, transfer=True),
    "growth-4x40KB": Growth("sqlite", 4, KB_40, warm_up=5, rounds=100, seconds_max=180),
    "growth-16x40KB": Growth("sqlite", 16, KB_40, warm_up=5, rounds=100, seconds_max=240),
    "growth-4x40KB-postgresql": Growth(
        "postgresql", 4, KB_40, warm_up=5, rounds=100, seconds_max=240
    ),
    "growth-4x100MB": Growth("sqlite", 4, MB_100, warm_up=1, rounds=8, seconds_max=240),
    "ledger-verify-1M": Verify(entries=1_000_000),
    "restore-1gb": Restore(entries=200_000, models=10),
    "gateway-unary-passthrough": Unary("passthrough", warm_up=200, calls=2000),
    "gateway-unary-terminate": Unary("terminate", warm_up=200, calls=2000),
    "gateway-upload-40ms": Upload("terminate", 0.040, model_bytes=MB_100 * 4, times=3),
    "gateway-500-passthrough": ManySessions("passthrough", 500, watch_s=20),
    "gateway-500-terminate": ManySessions("terminate", 500, watch_s=20),
}
"""Those that take longest run only when they are named."""
