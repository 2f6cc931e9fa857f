"""`make audit`: a one-run audit of the real training path; writes build/audit.json."""

import argparse
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from tests.audit.hospital import memory_folder
from tests.audit.one_run import CASES, audit
from tests.audit.planted import BUGS


def main() -> int:
    """Audit each case; 1 when an attack refutes what is claimed."""
    parser = argparse.ArgumentParser(prog="make audit", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/audit.json"))
    parser.add_argument(
        "--plant",
        choices=sorted(BUGS),
        help="with this bug in the path: what the audit makes of it",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        if options.plant:
            BUGS[options.plant].plant(patch)
        for case in CASES:
            with memory_folder() as folder, capture_logs():
                one = audit(case, folder)
            found.append({**one, "planted": options.plant})
            _say(
                f"{case.name}: {one['correct']} of {one['guesses']} guesses right, epsilon at least"
                f" {one['epsilon_lower_bound']:.2f} ({one['confidence']:.0%}), claimed"
                f" {one['epsilon_claimed']:.2f}, {one['seconds']:.1f} s"
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    _say(f"written to {options.out}")
    refuted = [one["case"] for one in found if one["epsilon_lower_bound"] > one["epsilon_claimed"]]
    if refuted:
        _say(f"the claim is refuted: {', '.join(refuted)}")
    return 1 if refuted else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
