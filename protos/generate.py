"""Generate the Python wire code beside the .proto files, or check that it is current."""

import argparse
import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("protos/feddp/v1/*.proto"))
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Run protoc over every source, with the root as its path: imports read `protos.feddp.v1`."""
    # protoc finds its plug-ins by PATH: take those of this environment, activated or not.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    flags = ["python_out", "mypy_out", "grpc_python_out", "mypy_grpc_out"]
    arguments = ["protoc", f"-I{ROOT}", *(f"--{flag}={out}" for flag in flags), *SOURCES]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message is above")


def stale(fresh: Path) -> list[str]:
    """Names of generated files that differ from, or are missing beside, a fresh run."""
    committed, new = ROOT / "protos/feddp/v1", fresh / "protos/feddp/v1"
    names = {
        path.name for folder in (committed, new) for mask in GENERATED for path in folder.glob(mask)
    }
    _, mismatch, errors = filecmp.cmpfiles(committed, new, sorted(names), shallow=False)
    return sorted(mismatch + errors)


def main() -> None:
    """`python protos/generate.py [--check]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="fail when the committed code is stale"
    )
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        names = stale(Path(folder))
    if names:
        sys.exit(f"generated code is stale: {', '.join(names)}; run `make protos` and commit")


if __name__ == "__main__":
    main()
