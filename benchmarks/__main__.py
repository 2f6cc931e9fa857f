"""`make bench`: every case beside a floor measured in the same run; writes build/bench.json.

The machine may be shared and noisy: trust the ratio, not the seconds.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from benchmarks.cases import ALL, DEFAULT, QUICK, Case
from benchmarks.federation import free_disk_bytes
from benchmarks.measuring import give_way
from benchmarks.results import Result, peaks_beside_fewest_nodes, table, write
from protos.errors import FeddpError

GB = 1_000_000_000
DISK_BYTES_SPARE = 2 * GB
FAILURES = (FeddpError, RuntimeError, OSError, psutil.Error)


def main() -> int:
    """Run the cases and print them as a table; 1 when one did not finish."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--case", action="append", choices=sorted(ALL), help="only this; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="the small cases, within a minute")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    if options.list:
        for name in ALL:
            print(name if name in DEFAULT else f"{name} (only when it is named)")
        return 0
    chosen = {name: ALL[name] for name in options.case} if options.case else DEFAULT
    if options.quick:
        chosen = {name: QUICK[name] for name in options.case or QUICK if name in QUICK}
    results, failed = _run(chosen)
    results += peaks_beside_fewest_nodes(results)
    write(options.out, results)
    print(table(results))
    print(f"written to {options.out}")
    if failed:
        print(f"did not finish: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(cases: Mapping[str, Case]) -> tuple[list[Result], list[str]]:
    """Results, and the names of the cases that failed; a case without room is left out."""
    give_way()
    results: list[Result] = []
    failed = []
    for name, case in cases.items():
        need_gb, free_gb = case.disk_bytes / GB, free_disk_bytes() / GB
        if case.disk_bytes + DISK_BYTES_SPARE > free_disk_bytes():
            print(f"{name}: left out; it may need {need_gb:.0f} GB of disk, {free_gb:.0f} are free")
            continue
        print(f"{name}: running", flush=True)
        began_s = time.monotonic()
        try:
            results += case.run(name)
        except FAILURES as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)
    return results, failed


if __name__ == "__main__":
    sys.exit(main())
