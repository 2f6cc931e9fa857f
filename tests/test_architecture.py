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
        ROOT / "node_agent/ledger/account_filters.py",
        ROOT / "node_agent/policy/judgement.py",
        ROOT / "node_agent/session/machine.py",
        ROOT / "privacy/filters.py",
        ROOT / "privacy/balance.py",
    ]
    shells = {
        *("answers.py", "driver.py", "effects.py", "live.py", "passing_time.py", "telling.py"),
        *("turn_taker.py", "turns.py"),
    }
    for path in cores:
        if path.name in shells:
            continue
        impure = imports(path) & {"asyncio", "time", "random", "secrets", "structlog", "sqlalchemy"}
        assert not impure, f"{path.relative_to(ROOT)} imports {sorted(impure)}"
        assert "await " not in path.read_text(), path.name


def test_the_policy_knows_no_order_and_no_ledger() -> None:
    """What a steward may write is one thing, and what is refused by it another."""
    tree = ast.parse((ROOT / "node_agent/policy/policy.py").read_text())
    named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "node_agent.ledger.vouching" in named
    assert not named & {"node_agent.policy.judgement", "node_agent.policy.orders", "privacy.ledger"}


def loaded_by(command: str, modules: str) -> set[str]:
    """What a fresh process of `feddp COMMAND` has loaded once it has imported `modules`."""
    code = (
        "import sys, feddp.cli.app\n"
        "from feddp.process import LONG_LIVED, become_long_lived, loading\n"
        f"assert {command.split()!r} in LONG_LIVED\n"
        "become_long_lived()\n"
        f"with loading():\n    import {modules}\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


UNUSED_WHILE_SERVING = {"rich", "pygments", "ssl", "_ssl", "_hashlib", "attr"}
"""A second OpenSSL, and what libraries load only because it is installed."""


def test_an_idle_agent_loads_none_of_the_heavy_libraries() -> None:
    """Its memory is the machine's: torch and numpy belong to the worker of a job."""
    heavy = {"torch", "numpy", "scipy", "pyarrow", "pandas", "sqlalchemy", "dp_accounting", "pygal"}
    heavy.add("opentelemetry")
    loaded = loaded_by("agent run", "feddp.logging, node_agent.agent")
    assert loaded & (heavy | UNUSED_WHILE_SERVING | {"alembic", "jsonschema"}) == set()


def test_a_coordinator_starts_without_what_only_some_calls_need() -> None:
    """Its start is what every agent waits for; it loads the rest when somebody asks for it."""
    later = {"alembic", "mako", "jsonschema", "referencing", "dp_accounting", "scipy", "torch"}
    later |= {"opentelemetry", "coordinator.alerts.webhook"}
    loaded = loaded_by("coordinator serve", "feddp.logging, coordinator.server")
    assert loaded & (later | (UNUSED_WHILE_SERVING - {"ssl", "_ssl", "_hashlib"})) == set()


def test_training_loads_of_opacus_its_hooks_alone() -> None:
    """A worker's start is what a job's first round waits for; who needs the rest finds it."""
    code = (
        "import sys, node_agent.tasks.tabular\n"
        "print(*sys.modules)\n"
        "from opacus import GradSampleModule, PrivacyEngine\n"
        "from privacy.row_gradients import GradSampleModule as ours\n"
        "assert GradSampleModule is ours and 'opacus.privacy_engine' in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert "opacus.grad_sample" in loaded
    unused = {"opacus.privacy_engine", "sympy", "scipy.stats", "torch.distributed.tensor"}
    assert loaded & unused == set()


def test_what_the_long_lived_processes_hide_can_still_be_loaded() -> None:
    """Hidden from one import only: who needs it later finds it."""
    code = (
        "from feddp.process import become_long_lived\n"
        "become_long_lived()\n"
        "import _hashlib, rich, ssl, asyncio, hashlib\n"
        "print(hashlib.sha256(b'').hexdigest()[:8])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "e3b0c442"


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
    from coordinator.observing.metrics import METHODS

    assert set(RULES) | WITHOUT_CERTIFICATE == set(METHODS)
    assert not set(RULES) & WITHOUT_CERTIFICATE
