"""List what is installed in this environment as a CycloneDX 1.6 document on standard output.

Needs nothing but the standard library, so that it runs in any image: `python sbom.py [WHEELS]`.
With the folder of the wheels that were installed, each component has its wheel's SHA-256. The
document is the same for the same packages: it has no time and no random number.
"""

import hashlib
import json
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any


def document(wheels: Path | None) -> dict[str, Any]:
    """The whole document."""
    hashes = _hashes(wheels) if wheels else {}
    found = {_name(one): one for one in distributions()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [_component(name, found[name], hashes) for name in sorted(found)],
    }


def _name(one: Distribution) -> str:
    """As an index spells it."""
    return re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()


def _component(name: str, one: Distribution, hashes: dict[tuple[str, str], str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{one.version}",
        "name": name,
        "version": one.version,
        "purl": f"pkg:pypi/{name}@{one.version.replace('+', '%2B')}",
    }
    if expressions := one.metadata.get_all("License-Expression"):
        found["licenses"] = [{"expression": expressions[0]}]
    if digest := hashes.get((name, one.version)):
        found["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return found


def _hashes(wheels: Path) -> dict[tuple[str, str], str]:
    """(name, version) -> SHA-256 of its wheel, hexadecimal."""
    found = {}
    for path in wheels.glob("*.whl"):
        name, version = path.name.split("-")[:2]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[re.sub(r"[-_.]+", "-", name).lower(), version] = digest
    return found


if __name__ == "__main__":
    json.dump(document(Path(sys.argv[1]) if sys.argv[1:] else None), sys.stdout, indent=2)
