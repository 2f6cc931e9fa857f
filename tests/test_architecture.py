"""Rules of the source tree that a reader relies on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("certs", "coordinator", "feddp", "node_agent", "privacy", "protos")
ALLOWED = {
    "protos": {"protos"},
    "certs": {"certs", "protos"},
    "privacy": {"privacy", "protos"},
    "coordinator": {"coordinator", "certs", "privacy", "protos"},
    "node_agent": {"node_agent", "certs", "privacy", "protos"},
    "feddp": set(PACKAGES),
}


def imports(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    """The coordinator and the node agent never import each other; privacy knows neither."""
    for path in (ROOT / package).rglob("*.py"):
        foreign = (imports(path) & set(PACKAGES)) - ALLOWED[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_the_cores_are_pure() -> None:
    """No clock, randomness, logging, SQL or await in what decides."""
    cores = [
        *(ROOT / "coordinator/rounds").glob("*.py"),
        ROOT / "node_agent/session/machine.py",
        ROOT / "privacy/filters.py",
        ROOT / "privacy/balance.py",
    ]
    shells = {"answers.py", "driver.py", "effects.py", "live.py", "turn_taker.py", "turns.py"}
    for path in cores:
        if path.name in shells:
            continue
        impure = imports(path) & {"asyncio", "time", "random", "secrets", "structlog", "sqlalchemy"}
        assert not impure, f"{path.relative_to(ROOT)} imports {sorted(impure)}"
        assert "await " not in path.read_text(), path.name


def test_an_idle_agent_loads_none_of_the_heavy_libraries() -> None:
    """Its memory is the machine's: torch and numpy belong to the worker of a job."""
    heavy = "torch numpy scipy pyarrow pandas sqlalchemy dp_accounting pygal"
    code = (
        f"import sys, node_agent.agent\nprint([n for n in {heavy.split()!r} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_received_can_be_executed(package: str) -> None:
    """No pickle, eval, exec or unsafe loader anywhere in the product."""
    banned_calls = {"eval", "exec", "compile", "__import__"}
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert not imports(path) & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name):
                    assert node.func.id not in banned_calls, f"{path}:{node.lineno}"
                if isinstance(node.func, ast.Attribute):
                    name = ast.unparse(node.func)
                    assert name not in {"yaml.load", "torch.load", "numpy.load", "np.load"}, path


def test_generated_code_is_current() -> None:
    """What is committed is what protoc makes of the .proto files."""
    done = subprocess.run(
        [sys.executable, "protos/generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_every_rpc_has_a_rule_and_every_rule_an_rpc() -> None:
    """Default deny is only as good as the table is complete."""
    from coordinator.authz import RULES, WITHOUT_CERTIFICATE
    from coordinator.metrics import METHODS

    assert set(RULES) | WITHOUT_CERTIFICATE == set(METHODS)
    assert not set(RULES) & WITHOUT_CERTIFICATE
