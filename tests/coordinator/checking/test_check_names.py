"""`feddp coordinator check` looks whether nodes would find what they are told."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.authority import Authority
from certs.enrolment import private_pem
from coordinator.checking.check import check
from coordinator.checking.names import covers
from coordinator.config.config import load_config
from coordinator.installation import Installation, init
from coordinator.server_certificate import CHAIN, KEY, ServerCertificate, issue
from feddp.demo.ports import free_ports


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """A new one, which nodes dial as localhost."""
    return init(tmp_path / "c", "test.example")


def configured(made: Installation, **server: Any) -> None:
    """Settings of the section server."""
    settings = yaml.safe_load(made.config.read_text())
    settings["server"] |= server
    made.config.write_text(yaml.safe_dump(settings))


def said(made: Installation, subject: str) -> list[tuple[str, str]]:
    """(level, text) of what is found of a subject."""
    return [(one.level, one.text) for one in check(made.config) if one.subject == subject]


@contextmanager
def shows(made: Installation, port: int) -> Iterator[None]:
    """Somebody who answers at a port with the certificate of an installation."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.folder / "pki" / CHAIN, made.folder / "pki" / KEY)
    listener = socket.create_server(("127.0.0.1", port))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), connection, context.wrap_socket(connection, server_side=True):
                pass

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        answering.join()


def test_hosts_that_the_certificate_shows_need_no_word(installation: Installation) -> None:
    """As `init` leaves it."""
    subjects = {one.subject for one in check(installation.config)}
    assert not subjects & {"server.public_host", "server.public_enrollment_host"}
    assert "server.transfer_address" not in subjects


@pytest.mark.parametrize("key", ["public_host", "public_enrollment_host"])
def test_a_host_that_nodes_dial_and_the_certificate_lacks_is_told(
    installation: Installation, key: str
) -> None:
    """A warning, as a gateway may show the name."""
    configured(installation, **{key: "feddp.example"})
    [(level, text)] = said(installation, f"server.{key}")
    assert level == "warning"
    assert "feddp.example is not in the server's certificate" in text
    assert "server.ssl_cert" in text


def test_a_transfer_host_is_added_by_the_next_start_to_the_coordinators_own(
    installation: Installation,
) -> None:
    """A note until then, and nothing afterwards."""
    address = {"transfer_port": 8445, "transfer_address": "transfer.localhost:8445"}
    configured(installation, **address)
    lacks = "the next start adds transfer.localhost to the server's certificate"
    assert ("note", lacks) in said(installation, "server.transfer_address")
    ServerCertificate(load_config(installation.config, {})).refresh()
    assert ("note", lacks) not in said(installation, "server.transfer_address")


@pytest.mark.parametrize(
    ("named", "is_fine"),
    [("localhost", False), ("transfer.localhost", True)],
)
def test_a_given_certificate_without_the_transfer_host_is_told(
    installation: Installation, tmp_path: Path, named: str, is_fine: bool
) -> None:
    """Nobody adds it to that one: whoever issued it must."""
    authority = Authority.load(installation.folder / "pki")
    key, chain = issue(authority, ["localhost", named], [], datetime.now(UTC))
    (tmp_path / "own.crt").write_bytes(chain)
    (tmp_path / "own.key").write_bytes(private_pem(key))
    configured(
        installation,
        transfer_port=8445,
        transfer_address="transfer.localhost:8445",
        ssl_cert=str(tmp_path / "own.crt"),
        ssl_key=str(tmp_path / "own.key"),
    )
    found = said(installation, "server.transfer_address")
    lacks = [text for _, text in found if "is not in the server's certificate" in text]
    assert bool(lacks) != is_fine
    assert is_fine or ("ask for one with that name" in lacks[0] and "own.crt" in lacks[0])


def test_the_transfer_address_is_tried(installation: Installation, tmp_path: Path) -> None:
    """Nobody, this installation, somebody else."""
    (port,) = free_ports(1)
    configured(installation, transfer_port=port, transfer_address=f"localhost:{port}")
    [(level, text)] = said(installation, "server.transfer_address")
    assert (level, f"nobody answers at localhost:{port}" in text) == ("note", True)
    assert ("ok", f"port {port} is free") in said(installation, "server.transfer_port")
    with shows(installation, port):
        [(level, text)] = said(installation, "server.transfer_address")
        assert (level, "answers with a certificate of this installation" in text) == ("ok", True)
    with shows(init(tmp_path / "other", "other.example"), port):
        [(level, text)] = said(installation, "server.transfer_address")
        assert (level, "of somebody else: lead it to" in text) == ("warning", True)
        [(level, text)] = said(installation, "server.transfer_port")
        assert (level, "another program holds it" in text) == ("warning", True)


def test_a_transfer_host_without_an_address_is_told(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thing that is forgotten."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    configured(installation, transfer_port=8445, transfer_address="transfer.localhost:8445")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = said(installation, "server.transfer_address")
    assert any(level == "warning" and "enter it" in text for level, text in found)


@pytest.mark.parametrize(
    ("host", "is_fine"),
    [
        ("feddp.example", True),
        ("FEDDP.example", True),
        ("transfer.wild.example", True),
        ("a.transfer.wild.example", False),
        ("wild.example", False),
        ("192.0.2.7", True),
        ("[2001:db8::7]", True),
        ("192.0.2.8", False),
    ],
)
def test_a_host_is_a_certificates_as_its_clients_see_it(host: str, is_fine: bool) -> None:
    """By name, by one label under a wildcard, or by address."""
    assert (
        covers(host, ["feddp.example", "*.wild.example"], ["192.0.2.7", "2001:db8::7"]) == is_fine
    )
