"""What may be wrong with a source, before its data is opened and afterwards."""

import stat
from pathlib import Path


class WrongHeader(Exception):
    """A source is not there or lacks a declared column; a sentence for the hospital.

    Attributes:
        reason: may be told to the coordinator, the sentence not.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class DataProblem(Exception):
    """The records cannot be read as declared. For the hospital only; holds no value of a cell."""


def is_plain(path: Path) -> bool:
    """Whether a file is one that ends; a pipe would be waited for. True also where none is found,
    which whoever reads it says better."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
