"""Verification of a whole ledger, every signature of it checked: in memory, and by the command."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.measuring import TreeTrace
from benchmarks.results import Result, result
from privacy.balance import Balance
from privacy.filters import Filter, make_filter
from privacy.ledger import Entry, Kind, Statement, append, sign, to_json
from privacy.signature_pool import SignaturePool
from privacy.verification import verify

NODES: Final = ("a", "b", "c", "d")
KINDS: Final[tuple[Kind, ...]] = ("reserve", "post")
FLOOR_SHARE: Final = 10
"""The floor is measured with one entry of so many."""

ENTRY_BYTES_MAX: Final = 1000
"""Of an exported entry."""


@dataclass(frozen=True, slots=True)
class Verify:
    """A ledger of four nodes, each attempt reserved and posted, each entry signed.

    The floor is its signatures alone, in as many processes. The command is `feddp budget verify
    FILE` of its export, from its start to its exit.
    """

    entries: int

    @property
    def disk_bytes(self) -> int:
        """The export."""
        return self.entries * ENTRY_BYTES_MAX

    def run(self, case: str) -> list[Result]:
        """One verification in memory, with as many processes as there are cores; one command."""
        entries, filters, keys = signed_ledger(self.entries)
        cores = os.cpu_count() or 1
        cpu_s = _cpu_s()
        _signatures_s(entries[:cores], keys, cores)
        start_cpu_s = _cpu_s() - cpu_s
        cpu_s = _cpu_s()
        floor_s = FLOOR_SHARE * _signatures_s(entries[::FLOOR_SHARE], keys, cores)
        floor_cpu_s = FLOOR_SHARE * (_cpu_s() - cpu_s - start_cpu_s)
        cpu_s, began_s = _cpu_s(), time.perf_counter()
        found = verify(entries, filters, keys, processes=cores)
        value_s, value_cpu_s = time.perf_counter() - began_s, _cpu_s() - cpu_s
        if not found.ok or found.counts["post"] != self.entries // 2:
            raise RuntimeError(f"{case}: the ledger does not verify")
        accounts = [
            _account(name, filters[name], keys, found.heads[name], found.balances[name])
            for name in filters
        ]
        with tempfile.TemporaryDirectory(prefix="feddp-bench-") as folder:
            file = Path(folder) / "ledger.json"
            _export(file, entries, accounts)
            entries.clear()
            cpu_s = _cpu_s()
            command_s, peak_mib = _command(file, self.entries)
            command_cpu_s = _cpu_s() - cpu_s
        return [
            result(case, "verify_time", value_s, "s", floor_s),
            result(case, "verify_cpu", value_cpu_s, "s", floor_cpu_s),
            result(case, "command_time", command_s, "s", floor_s),
            result(case, "command_cpu", command_cpu_s, "s", floor_cpu_s),
            result(case, "command_peak_memory", peak_mib, "MiB"),
        ]


def _account(
    name: str, budget: Filter, keys: Mapping[str, bytes], head: tuple[int, str], balance: Balance
) -> dict[str, Any]:
    node = name.partition("/")[0]
    return {
        "account": name,
        "node": node,
        "filter": budget.kind,
        "rdp_order": budget.order,
        "epsilon_limit": budget.epsilon_limit,
        "epsilon_limit_highest": budget.epsilon_limit,
        "delta": budget.delta,
        "ledger_public_key": keys[node].hex(),
        "entries": head[0],
        "head_hash": head[1],
        "posted_units": balance.posted_units,
        "guarantee": balance.guarantee,
    }


def _export(file: Path, entries: Iterable[Entry], accounts: list[dict[str, Any]]) -> None:
    """As `feddp budget ledger --json` prints it, entry by entry."""
    witnesses = {"coordinator_ledger_key": "", "heads": [], "checkpoints": []}
    beside = json.dumps({"accounts": accounts, "witnesses": witnesses}, indent=2)
    with file.open("w") as text:
        text.write(f'{beside.rstrip().removesuffix("}").rstrip()},\n  "entries": [')
        for number, entry in enumerate(entries):
            text.write("," * (number > 0) + f"\n{json.dumps(to_json(entry), indent=2)}")
        text.write("\n  ]\n}\n")


def _command(file: Path, count: int) -> tuple[float, float]:
    """Seconds of `feddp budget verify FILE`, and MiB that it and what it started held together."""
    arguments = ["budget", "verify", str(file), "--json"]
    began_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "feddp", *arguments], stdout=subprocess.PIPE, text=True
    )
    with TreeTrace(process.pid) as trace:
        said, _ = process.communicate()
        seconds = time.perf_counter() - began_s
    if process.returncode or json.loads(said)["entries"] != count:
        raise RuntimeError(f"the command found: {said}")
    return seconds, trace.peak_mib


def _cpu_s() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, kinds))


def signed_ledger(count: int) -> tuple[list[Entry], dict[str, Filter], dict[str, bytes]]:
    """(so many entries, filter of each account, public key of each node)."""
    signers = {node: Ed25519PrivateKey.generate() for node in NODES}
    heads: dict[str, Entry] = {}
    entries = []
    for number in range(count // len(NODES) // len(KINDS)):
        for kind in KINDS:
            for node, signer in signers.items():
                one = Statement(
                    *(kind, f"{number:020x}{node}", "default", node, f"{node}/patients", "cohort"),
                    *(f"job-{number // 100:012x}", number % 100 + 1, "patient", 1000),
                    mechanism="gaussian",
                    noise_multiplier=2000.0 + number % 997 / 8,
                    sample_rate=1.0,
                    steps=5,
                )
                entry = append(one, heads.get(node), sign(signer, one))
                heads[node] = entry
                entries.append(entry)
    filters = {f"{node}/patients": make_filter("gdp", 0, 1000.0, 1e-5) for node in NODES}
    keys = {node: signer.public_key().public_bytes_raw() for node, signer in signers.items()}
    return entries, filters, keys


def _signatures_s(entries: list[Entry], keys: dict[str, bytes], processes: int) -> float:
    """Seconds that these entries' signatures take, their bytes being at hand."""
    signed = [
        (keys[one.statement.node], one.statement.canonical(), one.node_signature) for one in entries
    ]
    with SignaturePool(processes) as pool:
        for place, one in enumerate(signed[:processes]):
            pool.add(place, *one)
        pool.wrong()  # the processes have started
        began_s = time.perf_counter()
        for place, one in enumerate(signed):
            pool.add(place, *one)
        if pool.wrong():
            raise RuntimeError("a right signature was called wrong")
        return time.perf_counter() - began_s
