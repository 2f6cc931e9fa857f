"""Whether data sets of a node share patients: `python -m node_agent.data.overlaps DIR` tells.

Only the patient column is read, in a process of its own, which says a yes or no for each pair of
data sets and no more: neither how many patients nor which. Nothing of it leaves the hospital. A
patient is compared as trained on, by `node_agent.data.consent.spelling` of the id; two ids of one
person are not seen.
"""

import argparse
import itertools
import json
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from node_agent.data.consent import spelling
from node_agent.data.datasets import DataSetSpec
from node_agent.folder.config import Folder
from node_agent.policy.steward import Steward
from node_agent.sources.choice import source_of
from node_agent.sources.problems import DataProblem
from node_agent.sources.source import MISSING, text_of
from protos.errors import FeddpError

IDS_MAX: Final = 1 << 21
"""Hashes of ids that are held of one data set at a time, 8 bytes each and as much to sort them."""

NICE: Final = 15


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two data sets have in common.

    Attributes:
        kind: "same_file"; "patients", at least one id; "unknown", a file could not be compared.
        accounts: who pays, in the order of `data_sets`; two accounts if they differ.
    """

    data_sets: tuple[str, str]
    accounts: tuple[str, str]
    kind: Literal["same_file", "patients", "unknown"]

    @property
    def is_warning(self) -> bool:
        """Whether a patient may spend two budgets."""
        return self.accounts[0] != self.accounts[1]

    def said(self) -> str:
        """A sentence for the steward."""
        one, two = self.data_sets
        what = {
            "same_file": f"data sets {one} and {two} are the same file",
            "patients": f"data sets {one} and {two} have patients in common",
            "unknown": f"data sets {one} and {two} could not be compared for patients in common",
        }[self.kind]
        if not self.is_warning:
            return f"{what}; both are paid by account {self.accounts[0]}, which counts for both"
        limits = " and ".join(self.accounts)
        if self.kind == "unknown":
            return f"{what}; whether the limits of accounts {limits} hold is not known"
        return (
            f"{what}: those patients spend both accounts, {limits}, and neither limit holds for "
            "them; let one account pay, or take them out of one of the files"
        )


def overlaps(data_sets: Sequence[DataSetSpec]) -> list[Overlap]:
    """Pairs of data sets that share patients, or may; in the order of declaration."""
    found, ids = [], _Ids()
    for one, two in itertools.combinations(data_sets, 2):
        kind: Literal["same_file", "patients", "unknown"] | None = None
        if one.database == two.database and _same_file(one.source, two.source):
            kind = "same_file"
        else:
            shared = ids.in_common(one, two)
            kind = "unknown" if shared is None else "patients" if shared else None
        if kind is not None:
            found.append(Overlap((one.name, two.name), (one.account, two.account), kind))
    return found


def compared(data_sets: Sequence[DataSetSpec]) -> tuple[object, ...]:
    """Differs from an earlier one when there is something else to compare."""
    return tuple(
        (one.name, one.account, one.patient, one.source, one.database, _stamp(one.source))
        for one in data_sets
    )


class _Ids:
    """Compares by 64 bits of each id, keyed by this process; a part of all ids at a time."""

    def __init__(self) -> None:
        self._parts: dict[str, int] = {}

    def in_common(self, one: DataSetSpec, two: DataSetSpec) -> bool | None:
        """Whether one id stands in both; None if a file cannot be read."""
        parts = max(self._parts_of(one), self._parts_of(two))
        if 0 in (self._parts_of(one), self._parts_of(two)):
            return None
        try:
            return any(
                _meet(self._hashes(one, part, parts), self._hashes(two, part, parts))
                for part in range(parts)
            )
        except _Unreadable:  # written since
            return None

    def _parts_of(self, spec: DataSetSpec) -> int:
        """In how many parts its ids are held; 0 if they cannot be read."""
        if spec.name not in self._parts:
            try:
                cells = sum(len(ids) for ids in _batches(spec))
                self._parts[spec.name] = 1 + cells // IDS_MAX
            except _Unreadable:
                self._parts[spec.name] = 0
        return self._parts[spec.name]

    @staticmethod
    def _hashes(spec: DataSetSpec, part: int, parts: int) -> "array[int]":
        found = array("q")
        for ids in _batches(spec):
            found.extend(h for h in {hash(one) for one in ids} if h % parts == part)
        return found


class _Unreadable(Exception):
    """Not a file with that column."""


def _batches(spec: DataSetSpec) -> Iterator[list[str]]:
    """Ids of a source, some at a time, each at least once; spelt as `node_agent.data.records` does.

    Raises:
        _Unreadable.
    """
    try:
        for piece in source_of(spec).pieces(spec.patient):
            yield list(_spelt(piece))
    except DataProblem:
        raise _Unreadable from None


def _spelt(cells: Iterable[Any]) -> Iterator[str]:
    for cell in cells:
        text = text_of(cell)
        if text is not None and text not in MISSING and (spelt := spelling(text)):
            yield spelt


def _meet(one: "array[int]", two: "array[int]") -> bool:
    import numpy as np

    return bool(np.intersect1d(np.asarray(one), np.asarray(two)).size)


def _same_file(one: Path, two: Path) -> bool:
    try:
        return one.samefile(two)
    except OSError:
        return one.resolve() == two.resolve()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def main() -> int:
    """Print the overlaps of an agent's data sets as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = Folder(parser.parse_args().folder.absolute())
    os.nice(NICE)
    try:
        found = overlaps(Steward(folder).rules().data_sets)
    except FeddpError:
        return 1
    sys.stdout.write(json.dumps([asdict(one) for one in found]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
