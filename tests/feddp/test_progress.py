"""How far a long check has come: on a terminal, and nowhere else."""

import io
import sys

import pytest

from feddp.cli.progress import Progress


class Terminal(io.StringIO):
    """A stderr that people look at."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def test_a_terminal_sees_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count, the share, and a second pass from its beginning; stdout stays the answer's."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress("entries") as progress:
        progress.told(2000, 0.25)
        progress.told(1_000_000, 1.0)
        progress.told(2000, 0.25)
    assert "2,000 entries" in terminal.getvalue()
    assert "25%" in terminal.getvalue()


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads stderr by a program reads errors there."""
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    with Progress("entries") as progress:
        progress.told(2000, 0.25)
    assert pipe.getvalue() == ""
