"""Write the tables of docs/benchmarks.md from what `make bench` and `make bench-peers` found.

So a number in the documentation comes from a command and never from a hand.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.results import Result, headings, read, rows

DOCUMENT = Path("docs/benchmarks.md")


def main() -> None:
    """Replace each table whose results there are; the others stay."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description=__doc__)
    parser.add_argument("--bench", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--restore", type=Path, default=Path("build/bench-restore.json"))
    parser.add_argument("--peers", type=Path, default=Path("build/bench-peers.json"))
    options = parser.parse_args()
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, path, floor in (
        ("bench", options.bench, "floor"),
        ("restore", options.restore, "floor"),
        ("peers", options.peers, "flower"),
    ):
        if not path.exists():
            print(f"{path} is missing; the table {name} stays as it was")
            continue
        measured = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        table = f"Measured {measured:%Y-%m-%d}.\n\n{markdown(read(path), floor)}"
        text = replaced(text, name, table)
        print(f"{DOCUMENT}: the table {name} is that of {path}")
    DOCUMENT.write_text(text, encoding="utf-8")


def markdown(results: Sequence[Result], floor: str) -> str:
    """The results as a table; columns that are empty throughout are left out."""
    lines = rows(results)
    kept = [column for column in range(len(headings())) if any(line[column] for line in lines)]
    every = [headings(floor), tuple("---" for _ in headings()), *lines]
    return "\n".join("| " + " | ".join(line[column] for column in kept) + " |" for line in every)


def replaced(text: str, name: str, table: str) -> str:
    """The document with another table between the two markers of that name.

    Raises:
        ValueError: a marker is missing.
    """
    start, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{DOCUMENT} must hold the markers {start.strip()} and {end}")
    return f"{before}{start}{table}\n{end}{after}"


if __name__ == "__main__":
    main()
