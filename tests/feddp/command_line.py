"""What a command of `feddp` left behind."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ran:
    """Its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error that stderr holds as JSON."""
        return json.loads(self.err)["error"]


Run = Callable[..., Ran]

Verify = Callable[..., tuple[int, str]]
"""(export, *nodes' files) -> exit code of `budget verify` and all that it printed."""
