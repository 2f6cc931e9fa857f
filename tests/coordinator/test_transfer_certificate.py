"""A host that nodes are told of is in the certificate that the coordinator makes itself."""

from pathlib import Path

import pytest
import yaml
from cryptography import x509

from coordinator.config.config import load_config
from coordinator.installation import init
from coordinator.server_certificate import CHAIN, ServerCertificate, hosts_of


def leaf(pki: Path) -> x509.Certificate:
    """What the server shows."""
    return x509.load_pem_x509_certificates((pki / CHAIN).read_bytes())[0]


@pytest.mark.parametrize(
    ("host", "address", "named"),
    [
        ("feddp.example", "transfer.feddp.example:443", "transfer.feddp.example"),
        ("feddp.example", "feddp.example:8445", "feddp.example"),
        ("192.0.2.7", "192.0.2.7:8445", "192.0.2.7"),
    ],
)
def test_it_is_added_once_and_those_that_were_there_stay(
    tmp_path: Path, host: str, address: str, named: str
) -> None:
    """Before the port is opened, by the same authority; one that is there already changes
    nothing."""
    made = init(tmp_path / "c", "test.example", host=host, enrollment_host="join.example")
    pki = made.folder / "pki"
    before = leaf(pki)
    settings = yaml.safe_load(made.config.read_text())
    settings["server"] |= {"transfer_port": 8445, "transfer_address": address}
    made.config.write_text(yaml.safe_dump(settings))
    certificate = ServerCertificate(load_config(made.config, {}))
    assert certificate.refresh() == (named not in (*hosts_of(before)[0], *hosts_of(before)[1]))
    names, addresses = hosts_of(leaf(pki))
    assert {*names, *addresses} == {named, *hosts_of(before)[0], *hosts_of(before)[1]}
    assert not certificate.refresh()
