"""A person's profile as files: an address, a key, a certificate, and the roots to trust.

The key of a certificate that is asked for lies beside the present one, in `next.pem`, before
anybody is asked. The certificate is renamed over `chain.pem`, which is the switch, and the key over
`key.pem` comes last: whoever reads the folder in between takes the key that the certificate is for.
A folder without `key.pem` is no profile yet.
"""

from pathlib import Path
from typing import Final

import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from certs.enrolment import new_key
from certs.keyfiles import load_certificate_key, private_pem
from protos.content import sync_directory, write_durable
from protos.errors import Malformed, NotFound

KEY, CHAIN, BUNDLE = "key.pem", "chain.pem", "bundle.pem"
NEXT_KEY: Final = "next.pem"
DESCRIPTION: Final = "profile.yaml"


def waiting_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The key of a request whose answer was lost, or a new one; on the disk, mode 0600."""
    try:
        return load_certificate_key(folder / NEXT_KEY)
    except (NotFound, Malformed):
        key = new_key()
        write_durable(folder / NEXT_KEY, private_pem(key))
        return key


def adopt(folder: Path, chain: bytes, bundle: bytes) -> None:
    """Put the certificate of the waiting key in the place of what there was.

    Args:
        bundle: the roots to trust from now on; empty for those that are trusted.
    """
    if bundle:
        write_durable(folder / BUNDLE, bundle)
    write_durable(folder / CHAIN, chain)
    (folder / NEXT_KEY).replace(folder / KEY)
    sync_directory(folder)


DEFAULT_PROJECT: Final = "default"


def describe(folder: Path, address: str, name: str, project: str = DEFAULT_PROJECT) -> None:
    """Write whose profile it is, and at which coordinator.

    Args:
        address: "host:port" of the mTLS port.
    """
    described = {"address": address, "name": name}
    if project != DEFAULT_PROJECT:  # a profile without it can be read by every release
        described["project"] = project
    write_durable(folder / DESCRIPTION, yaml.safe_dump(described).encode())
