"""`make audit`: one-run attacks on the real training path, and what no attack can see checked.

Writes build/audit.json, what each attack has shown, and build/audit-checks.json beside it.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from tests.audit.checks import CHECKS, Alarm
from tests.audit.hospital import memory_folder
from tests.audit.one_run import CASES, audit
from tests.audit.planted import BUGS


def main(words: Sequence[str] | None = None) -> int:
    """Attack each case and run each check; 1 when one of them refutes what is claimed."""
    parser = argparse.ArgumentParser(prog="make audit", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/audit.json"))
    parser.add_argument(
        "--plant",
        choices=sorted(BUGS),
        help="with this bug in the path: what the audit makes of it",
    )
    parser.add_argument(
        "--seeds",
        type=_at_least_one,
        default=1,
        metavar="N",
        help="run each check with initial weights of so many seeds, and new noise",
    )
    options = parser.parse_args(words)
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
        checks = [
            {**_checked(check, seed), "planted": options.plant}
            for seed in range(options.seeds)
            for check in CHECKS
        ]
    _say(f"{len(checks)} checks, {sum(one['alarm'] is not None for one in checks)} alarms")
    beside = options.out.with_name(f"{options.out.stem}-checks.json")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for path, content in ((options.out, found), (beside, checks)):
        path.write_text(json.dumps(content, indent=2) + "\n")
        _say(f"written to {path}")
    refuted = [one["case"] for one in found if one["epsilon_lower_bound"] > one["epsilon_claimed"]]
    refuted += dict.fromkeys(str(one["check"]) for one in checks if one["alarm"])
    if refuted:
        _say(f"the claim is refuted: {', '.join(refuted)}")
    return 1 if refuted else 0


def _at_least_one(text: str) -> int:
    """With none nothing would be checked, and nothing raise an alarm."""
    if (number := int(text)) < 1:
        raise ValueError("from 1")
    return number


def _checked(check: Callable[..., None], seed: int) -> dict[str, Any]:
    """Run one check with one seed; what it found, None for nothing."""
    name, began_s, alarm = check.__name__.removeprefix("check_"), time.perf_counter(), None
    with memory_folder() as folder, capture_logs():
        try:
            check(folder, seed)
        except Alarm as error:
            alarm = str(error)
    seconds = time.perf_counter() - began_s
    _say(f"{name}, seed {seed}: {f'ALARM, {alarm}' if alarm else 'no alarm'}, {seconds:.1f} s")
    return {"check": name, "seed": seed, "alarm": alarm, "seconds": round(seconds, 2)}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
