"""The audit of the real training path: silent where it is right, an alarm for each planted bug."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from tests.audit import __main__ as command
from tests.audit import checks
from tests.audit.checks import CHEAP, CHECKS, Alarm
from tests.audit.hospital import memory_folder
from tests.audit.one_run import CASES as ATTACKS
from tests.audit.one_run import audit
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


SEEDS = range(25)


@pytest.mark.parametrize("check", CHEAP, ids=lambda check: check.__name__)
def test_a_cheap_check_raises_no_false_alarm_with_any_of_many_seeds(
    check: Callable[..., None],
) -> None:
    """Other initial weights and samples each time; `make audit` does so for all six."""
    for seed in SEEDS:
        with memory_folder() as folder, capture_logs():
            check(folder, seed)


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


@pytest.mark.parametrize("name", BUGS)
def test_an_attack_runs_to_its_end_with_each_bug(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that samples; where it broke off, `make audit` would end with exit code 1 and no
    alarm."""
    BUGS[name].plant(monkeypatch)
    assert audit(ATTACKS[-1], folder)["guesses"] > 0


def test_the_audit_itself_runs_the_check_that_catches_each_bug() -> None:
    """Attacks alone see four of the sixteen; `make audit` is to name all."""
    assert {bug.caught_by for bug in BUGS.values()} <= set(command.CHECKS)


@pytest.mark.parametrize("seeds", ["0", "-3", "many"])
def test_an_audit_without_a_check_is_refused(seeds: str, tmp_path: Path) -> None:
    """It would end with exit code 0, whatever is planted."""
    with pytest.raises(SystemExit) as refused:
        command.main(["--out", str(tmp_path / "audit.json"), "--seeds", seeds])
    assert refused.value.code == 2


@pytest.mark.parametrize("planted", [None, "proximal-clipped", "rows-clipped-apart"])
def test_the_audit_ends_with_exit_1_and_names_the_check_that_raised_an_alarm(
    planted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no attack sees anything; what each check found is in a file beside."""
    monkeypatch.setattr(command, "CASES", ())
    monkeypatch.setattr(command, "CHECKS", (checks.check_sensitivity, checks.check_proximal))
    out = tmp_path / "audit.json"
    asked = ["--out", str(out), "--seeds", "2", *(["--plant", planted] if planted else [])]
    assert command.main(asked) == (1 if planted else 0)
    found = json.loads((tmp_path / "audit-checks.json").read_text())
    alarms = [one["check"] for one in found if one["alarm"]]
    expected = {None: [], "proximal-clipped": ["proximal"], "rows-clipped-apart": ["sensitivity"]}
    assert alarms == 2 * expected[planted]
    assert {one["planted"] for one in found} == {planted}
    assert [one["seed"] for one in found] == [0, 0, 1, 1]
    assert json.loads(out.read_text()) == []
