"""How far something long has come, on a terminal's stderr; in a pipe, nothing."""

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """A line that is drawn anew while the `with` lasts, and gone after it."""

    def __init__(self, unit: str) -> None:
        """Nothing is drawn before the first `told`.

        Args:
            unit: what is counted, for people: "entries".
        """
        self._unit = unit
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def told(self, count: int, share: float) -> None:
        """So many are done, which is this share of all, from 0 to 1; it may begin anew."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._start()
        self._bar.update(self._task, completed=share, description=f"{count:,} {self._unit}")

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        console = Console(stderr=True)
        self._bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(self._unit, total=1.0)
        self._bar.start()
