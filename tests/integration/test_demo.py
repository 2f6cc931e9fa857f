"""The demo as a user gets it: from a built wheel, in a folder that is no checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents; its dependencies come from this environment."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
        cwd=out,
    )
    [wheel] = out.glob("feddp-*.whl")
    target = out / "installed"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("tests/")]
        archive.extractall(target)
    return target


def feddp(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`feddp` from the wheel's contents."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "feddp", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_wheels_demo_runs_outside_the_checkout_and_gives_the_fixed_result(
    installed: Path, tmp_path: Path
) -> None:
    """Exit 0, every field of the result, a verified ledger, files that stay, nothing running."""
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import coordinator; print(coordinator.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(installed))
    done = feddp(installed, tmp_path, "demo", "--dir", "d", "--json", "out.json", "--keep")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result) >= {
        "status",
        "rounds",
        "job_id",
        "model",
        "nodes",
        "metrics",
        "ledger",
        "seconds",
    }
    assert (result["status"], result["rounds"]) == ("completed", 4)
    assert result["ledger"] == {"verified": True, "entries": 32}
    assert [n["class"] for n in result["nodes"]] == ["hpc", "cloud", "edge", "cloud"]
    assert Path(result["model"]["path"]).is_file()
    assert (tmp_path / "d/report.html").stat().st_size > 10_000
    assert set(result["metrics"]) == {"accuracy", "auc", "brier", "per_node"}
    # One run's figures vary with the noise; these bounds are ten deviations away.
    assert result["metrics"]["accuracy"] > 0.74
    assert result["metrics"]["auc"] > 0.86
    for pid in json.loads((tmp_path / "d/pids.json").read_text()).values():
        assert not Path(f"/proc/{pid}").exists()
    check_epsilon(installed, tmp_path, result)
    check_witnessed(installed, tmp_path)


def check_epsilon(installed: Path, folder: Path, result: dict[str, object]) -> None:
    """An outsider's accountant over the kept ledger gives what was booked."""
    done = feddp(installed, folder, "budget", "ledger", "--dir", "d", "--json")
    entries = json.loads(done.stdout)["entries"]
    for node in result["nodes"]:  # type: ignore[attr-defined]
        accountant = PLDAccountant()
        for entry in entries:
            if entry["node"] == node["name"] and entry["kind"] == "post":
                gaussian = dp_accounting.GaussianDpEvent(entry["noise_multiplier"])
                accountant.compose(dp_accounting.SelfComposedDpEvent(gaussian, entry["steps"]))
        exact = accountant.get_epsilon(node["delta"])
        assert exact * (1 - 1e-6) <= node["epsilon_spent"] <= exact * 1.001
        assert node["epsilon_spent"] <= node["epsilon_limit"]
    verified = feddp(installed, folder, "budget", "verify", "--dir", "d")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def check_witnessed(installed: Path, folder: Path) -> None:
    """Each node has read the job's entries to the last one and signed it, before it was stopped."""
    done = feddp(installed, folder, "budget", "ledger", "--dir", "d", "--json")
    ledger = json.loads(done.stdout)
    seen = {(one["account"], one["seq"]) for one in ledger["witnesses"]["heads"]}
    last = {(one["account"], one["entries"]) for one in ledger["accounts"]}
    assert len(last) == 4
    assert last <= seen
    assert all(entries == 8 for _, entries in last)


def test_a_demo_never_writes_over_another(installed: Path, tmp_path: Path) -> None:
    """A folder that holds a demo is refused before anything is started."""
    (tmp_path / "d/coordinator").mkdir(parents=True)
    done = feddp(installed, tmp_path, "demo", "--dir", "d")
    assert done.returncode == 2
    assert "coordinator" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x"])
def test_a_nonsense_epsilon_is_refused_before_anything_starts(
    installed: Path, tmp_path: Path, value: str
) -> None:
    """Wrong usage is exit code 2 and leaves no folder."""
    done = feddp(installed, tmp_path, "demo", "--dir", "d", "--epsilon", value)
    assert done.returncode == 2
    assert not (tmp_path / "d").exists()
