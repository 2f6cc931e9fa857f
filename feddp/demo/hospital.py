"""Fill an agent's folder with one demo hospital's records, data-set declaration and policy.

python -m feddp.demo.hospital NAME --dir DIR
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from feddp.demo import heart
from node_agent.data.datasets import FILE_NAME
from node_agent.folder.config import parse
from node_agent.policy.policy import Policy
from node_agent.tasks import registry
from protos.content import write_durable
from protos.errors import Conflict, FeddpError, NotFound

POLICY_NAME: Final = "policy.yaml"
TASKS: Final = (registry.TABULAR, registry.EVALUATION, registry.NULL)
EPSILON_LIMIT: Final = 10.0
DELTA: Final = 1e-5

Choice = Literal["allow", "refuse"]


def write_hospital(
    folder: Path,
    hospital: heart.Hospital,
    *,
    epsilon_limit: float = EPSILON_LIMIT,
    delta: float = DELTA,
    unaccounted: Choice = "refuse",
    tasks: Sequence[str] = TASKS,
    engineer_key: str = "",
    unsigned: Choice = "refuse",
) -> None:
    """Write data/train.csv, datasets.yaml and policy.yaml, over earlier ones.

    Args:
        tasks: names of installed tasks; the policy pins their content hashes.
        engineer_key: public, hexadecimal, of whoever may ask; empty for nobody.
        unsigned: whether orders that nobody signed are taken.

    Raises:
        NotFound: TASK_UNKNOWN; nothing is written.
        Malformed: POLICY_INVALID, for a limit that no policy may have; nothing is written.
    """
    for name in tasks:
        registry.config_model(name)
    account = {
        "name": "patients",
        "epsilon_limit": epsilon_limit,
        "delta": delta,
        "filter": "auto",
        "rdp_order": 0,
        "epsilon_per_job_max": epsilon_limit,
        "noise_multiplier_min": 0.3,
        "unaccounted": unaccounted,
    }
    pinned = [f"{name}@{registry.installed()[name].content_hash}" for name in tasks]
    policy = {
        "accounts": [account],
        "allow": [{"data_set": heart.DATA_SET, "tasks": pinned}],
        "outcome_tick_s": 1.0,
        "who_may_ask": {"unsigned": unsigned, "engineers": _engineers(engineer_key)},
    }
    parse(Policy, policy, folder / POLICY_NAME, "POLICY_INVALID")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_durable(data / "train.csv", _csv(hospital.train_rows))
    _write_yaml(folder / FILE_NAME, {"data_sets": [_declaration(hospital)]})
    _write_yaml(folder / POLICY_NAME, policy)


def _engineers(public_key: str) -> list[dict[str, Any]]:
    if not public_key:
        return []
    return [{"name": "engineer", "public_key": public_key, "projects": ["default"]}]


def _declaration(hospital: heart.Hospital) -> dict[str, Any]:
    return {
        "name": heart.DATA_SET,
        "source": "data/train.csv",
        "patient": heart.PATIENT,
        "label": heart.LABEL,
        # Counted, as these records are public; a hospital's steward types a rounded number.
        "declared_n": len(hospital.train_rows),
        "version": 1,
        "account": "patients",
        "columns": heart.COLUMNS,
    }


def _csv(rows: list[heart.Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [heart.PATIENT, *heart.COLUMNS, heart.LABEL], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    write_durable(path, yaml.safe_dump(content, sort_keys=False, width=1000).encode())


def _refuse_existing(folder: Path) -> None:
    """A steward's policy is not replaced by a demo's."""
    for name in (FILE_NAME, POLICY_NAME):
        if (folder / name).exists():
            raise Conflict(
                "FILE_EXISTS",
                f"{folder / name} exists and is not written over; move it away, or choose another"
                " --dir.",
            )


def _public_key(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise NotFound("KEY_MISSING", f"there is no public key in {path}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for an unknown hospital, limits that make no sense and a used folder."""
    parser = argparse.ArgumentParser(
        prog="python -m feddp.demo.hospital", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("name", choices=sorted(heart.NODES))
    parser.add_argument("--dir", type=Path, required=True, help="the agent's folder")
    parser.add_argument("--epsilon-limit", type=float, default=EPSILON_LIMIT)
    parser.add_argument("--delta", type=float, default=DELTA)
    parser.add_argument("--unaccounted", choices=["allow", "refuse"], default="refuse")
    parser.add_argument(
        "--engineer-key",
        type=Path,
        metavar="FILE",
        help="public half of the key whose orders are taken, as `feddp job key new` wrote it",
    )
    options = parser.parse_args(arguments)
    try:
        _refuse_existing(options.dir)
        key = _public_key(options.engineer_key) if options.engineer_key else ""
        write_hospital(
            options.dir,
            heart.hospitals()[options.name],
            epsilon_limit=options.epsilon_limit,
            delta=options.delta,
            unaccounted=options.unaccounted,
            engineer_key=key,
        )
    except FeddpError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    sys.stdout.write(
        f"{options.name}: data/train.csv, datasets.yaml, policy.yaml in {options.dir}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
