"""Verification of a whole ledger, every signature of it checked."""

import os
import resource
import time
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.results import Result, result
from privacy.filters import Filter, make_filter
from privacy.ledger import Entry, Kind, Statement, append, sign
from privacy.signature_pool import SignaturePool
from privacy.verification import verify

NODES: Final = ("a", "b", "c", "d")
KINDS: Final[tuple[Kind, ...]] = ("reserve", "post")
FLOOR_SHARE: Final = 10
"""The floor is measured with one entry of so many."""


@dataclass(frozen=True, slots=True)
class Verify:
    """A ledger of four nodes, each attempt reserved and posted, each entry signed.

    The floor is its signatures alone, in as many processes.
    """

    entries: int

    disk_bytes = 0

    def run(self, case: str) -> list[Result]:
        """One verification, with as many processes as there are cores."""
        entries, filters, keys = _ledger(self.entries)
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
        return [
            result(case, "verify_time", value_s, "s", floor_s),
            result(case, "verify_cpu", value_cpu_s, "s", floor_cpu_s),
        ]


def _cpu_s() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, kinds))


def _ledger(count: int) -> tuple[list[Entry], dict[str, Filter], dict[str, bytes]]:
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
