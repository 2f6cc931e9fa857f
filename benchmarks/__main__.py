"""`make bench`: every case as a ratio to a floor in the same run; writes build/bench.json.

The machine may be shared and noisy: trust the ratio, not the seconds.
"""

import argparse
import json
from pathlib import Path

from benchmarks.null_round import null_round


def main() -> None:
    """Run the cases and print them as a table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="rounds to time (2 or more)")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    results = null_round(nodes=4, parameters=10_000, rounds=max(2, options.rounds))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    for one in results:
        print(
            f"{one['case']:<24} {one['metric']:<20} {one['value']:>9} {one['unit']:<4} "
            f"floor {one['floor']:>8}  ratio {one['ratio']}"
        )
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
