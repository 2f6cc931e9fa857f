"""`make bench-peers`: the same null rounds in Flower and here, one after the other.

In build/bench-peers.json `floor` is what the peer takes, so a ratio below 1 means that feddp takes
less. Flower runs in deployment mode with TLS (it has no mTLS) and keeps no ledger.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.cases import KB_40, MB_100
from benchmarks.flower import PeerRounds, run_flower
from benchmarks.measuring import give_way
from benchmarks.null_round import NullRounds
from benchmarks.results import Result, result, table, write
from protos.errors import FeddpError

FLOWER: Final = "flwr>=1.41,<1.42"
FAILURES: Final = (FeddpError, RuntimeError, OSError, psutil.Error)


@dataclass(frozen=True, slots=True)
class PeerCase:
    """The same work for both."""

    ours: NullRounds
    peer_rounds: int
    peer_seconds_max: float


CASES: Final = {
    "flower-4x40KB": PeerCase(
        NullRounds(4, KB_40, warm_up=3, rounds=20, floor_rounds=3, seconds_max=40), 3, 90
    ),
    "flower-4x100MB": PeerCase(
        NullRounds(4, MB_100, warm_up=1, rounds=3, floor_rounds=1, seconds_max=80), 2, 150
    ),
}


def main() -> int:
    """Run Flower and feddp in turn; 1 when one of them did not finish."""
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="only this")
    parser.add_argument("--venv", type=Path, default=Path("build/peers-venv"))
    parser.add_argument("--out", type=Path, default=Path("build/bench-peers.json"))
    options = parser.parse_args()
    binaries = _environment(options.venv)
    give_way()
    results: list[Result] = []
    failed = []
    for name in options.case or CASES:
        print(f"{name}: running", flush=True)
        began_s = time.monotonic()
        try:
            results += _compare(name, CASES[name], binaries)
        except FAILURES as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)
    write(options.out, results)
    print(table(results, floor="flower"))
    print(f"written to {options.out}")
    return 1 if failed else 0


def _environment(folder: Path) -> Path:
    """Flower's own environment, made once; its programs are in the folder that is returned."""
    binaries = folder.resolve() / "bin"
    if not (binaries / "flower-superlink").exists():
        print(f"installing {FLOWER} into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([str(binaries / "python"), *install, FLOWER, "numpy"], check=True)
    return binaries


def _compare(name: str, case: PeerCase, binaries: Path) -> list[Result]:
    ours = {one.metric: one for one in case.ours.run(name)}
    with tempfile.TemporaryDirectory(prefix="feddp-bench-") as folder:
        peer: PeerRounds = run_flower(
            binaries,
            Path(folder),
            case.ours.nodes,
            case.ours.parameters,
            case.peer_rounds,
            case.peer_seconds_max,
        )
    scale = 1000 if ours["round_time"].unit == "ms" else 1
    unit = ours["round_time"].unit
    peak_mib = ours["coordinator_idle_memory"].value + ours["coordinator_peak_over_idle"].value
    peer_round = scale * statistics.median(peer.round_s)
    return [
        result(name, "round_time", ours["round_time"].value, unit, peer_round),
        result(name, "server_cpu", ours["coordinator_cpu"].value, unit, scale * peer.server_cpu_s),
        result(name, "server_peak_memory", peak_mib, "MiB", peer.server_peak_mib),
    ]


if __name__ == "__main__":
    sys.exit(main())
