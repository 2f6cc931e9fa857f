"""The audit of the real training path: silent where it is right, an alarm for each planted bug."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from tests.audit.checks import CHECKS, Alarm
from tests.audit.hospital import memory_folder
from tests.audit.planted import BUGS

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory; the worker's line of log for each of thousands of attempts goes nowhere."""
    with memory_folder() as made, capture_logs():
        yield made


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_training_path_raises_no_alarm(check: Callable[[Path], None], folder: Path) -> None:
    """From the file to the spooled bytes, with noise from the operating system."""
    check(folder)


CASES = [(name, check) for name, bug in BUGS.items() for check in (bug.caught_by, bug.also_by)]


@pytest.mark.parametrize(
    ("name", "check"),
    [case for case in CASES if case[1] is not None],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_planted_bug_is_caught(
    name: str, check: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by the check that is meant for it, and some by a second one."""
    BUGS[name].plant(monkeypatch)
    with pytest.raises(Alarm):
        check(folder)
