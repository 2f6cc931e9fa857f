"""The agent's look at the headers of its data sets: at its start, and whenever a file changed.

Else a wrong column would be found with the first order, after a quote has said that all is well.
"""

import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from node_agent.data.aside import run_aside
from node_agent.data.datasets import DataSetSpec
from node_agent.data.headers import WrongHeader, check_header
from node_agent.folder.config import Folder
from node_agent.policy.steward import Rules, Steward
from protos.errors import FeddpError

log = structlog.get_logger(__name__)

LOOK_S: Final = 2.0
"""A look at files that have not changed asks for their sizes and times alone."""

DATABASE_LOOK_S: Final = 300.0
"""A database that was down is asked again so often, though no file has changed."""

FIRST_LOOK_S: Final = 5.0
"""For the first look, before the agent greets without it."""

AGAIN_S: Final = 60.0
"""After a look that could not be made."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a data set cannot be used.

    Attributes:
        reason: may be told to the coordinator.
        text: names the file and the column, for the hospital alone.
    """

    reason: str
    text: str


class HeaderWatch:
    """What is wrong with which data set, as of the last look.

    Attributes:
        faults: data set -> its fault.
    """

    def __init__(self, folder: Folder, steward: Steward) -> None:
        self.faults: Mapping[str, Fault] = {}
        self._folder = folder
        self._steward = steward
        self._seen: object = None
        self._again_s = math.inf

    def reasons(self) -> dict[str, str]:
        """Data set -> what the coordinator is told of it."""
        return {name: fault.reason for name, fault in self.faults.items()}

    def texts(self) -> dict[str, str]:
        """Data set -> what the hospital is told of it."""
        return {name: fault.text for name, fault in self.faults.items()}

    async def run(self, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Look again and again; never ends by itself."""
        while True:
            await self.look()
            await pause(LOOK_S)

    async def look(self) -> None:
        """Read the headers, if a file has changed since the last look; log what is new of it."""
        rules, now = await asyncio.to_thread(_stamps, self._steward)
        if rules is None or (now == self._seen and time.monotonic() < self._again_s):
            return
        if any(one.source.suffix != ".csv" for one in rules.data_sets):
            found = await _faults_aside(self._folder, rules.data_sets)
        else:
            found = await asyncio.to_thread(faults_of, rules.data_sets)
        self._seen, self._again_s = now, math.inf
        before = self.faults
        if found is None:
            self._again_s = time.monotonic() + AGAIN_S
            log.warning(
                "headers_not_read",
                do="nothing, if it does not come again: what was found before stays, and it is "
                f"tried again in {AGAIN_S:.0f} s; else look for room in memory",
            )
            declared = {one.name for one in rules.data_sets}
            found = {name: fault for name, fault in before.items() if name in declared}
        self.faults = found
        for name, fault in found.items():
            if before.get(name) != fault:
                log.error(
                    "data_set_unavailable",
                    data_set=name,
                    reason=fault.reason,
                    detail=fault.text,
                    do="mend the file or datasets.yaml; until then no order is planned on it",
                )
        for name in sorted(before.keys() - found.keys()):
            log.info("data_set_available", data_set=name)


def faults_of(data_sets: tuple[DataSetSpec, ...]) -> dict[str, Fault]:
    """Data set -> what is wrong with its source's header."""
    found: dict[str, Fault] = {}
    for one in data_sets:
        try:
            check_header(one)
        except WrongHeader as error:
            found[one.name] = Fault(error.reason, str(error))
    return found


def _stamps(steward: Steward) -> tuple[Rules | None, object]:
    """The rules, and a value that differs from an earlier one when a file was written since."""
    try:
        rules = steward.rules()
    except FeddpError:  # the session says so
        return None, None
    asked = any(one.database for one in rules.data_sets)
    turn = int(time.monotonic() / DATABASE_LOOK_S) if asked else 0
    files = tuple((_stamp(one.source), _stamp(one.opt_out)) for one in rules.data_sets)
    return rules, (rules, files, turn)


def _stamp(path: Path | None) -> tuple[int, int, int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


async def _faults_aside(
    folder: Folder, data_sets: Sequence[DataSetSpec]
) -> dict[str, Fault] | None:
    """Of the data sets that the agent goes by, which need not be those of the files as they are."""
    given = json.dumps([one.model_dump(mode="json") for one in data_sets])
    found = await run_aside("node_agent.data.header_watch", folder.root, given)
    return None if found is None else {name: Fault(*fault) for name, fault in found.items()}


def main() -> None:
    """Print the faults of the data sets that stdin declares as JSON."""
    given = tuple(DataSetSpec.model_validate(one) for one in json.load(sys.stdin))
    found = faults_of(given)
    sys.stdout.write(json.dumps({name: [one.reason, one.text] for name, one in found.items()}))


if __name__ == "__main__":
    main()
