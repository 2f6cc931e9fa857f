"""`feddp coordinator check` looks whether alerts would get to their receiver, and posts nothing."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.checking.check import check
from coordinator.installation import Installation, init
from feddp.demo.ports import free_ports
from tests.https_receiver import https_receiver


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """A new one."""
    return init(tmp_path / "c", "test.example")


def said(made: Installation, **monitoring: Any) -> list[tuple[str, str]]:
    """(level, text) of what is found of the receiver."""
    settings = yaml.safe_load(made.config.read_text())
    settings["monitoring"] = {name: str(value) for name, value in monitoring.items()}
    made.config.write_text(yaml.safe_dump(settings))
    return [
        (one.level, one.text)
        for one in check(made.config)
        if one.subject == "monitoring.alert_webhook" and "not signed" not in one.text
    ]


def test_a_receiver_that_is_there_and_trusted_is_told_and_gets_nothing(
    installation: Installation, tmp_path: Path
) -> None:
    """By its own authority; by the machine's it is not trusted."""
    assert said(installation) == []
    with https_receiver(tmp_path / "r") as receiver:
        [(level, text)] = said(
            installation, alert_webhook=receiver.url, alert_webhook_ca=receiver.ca_file
        )
        assert (level, "nothing was posted" in text) == ("ok", True)
        [(level, text)] = said(installation, alert_webhook=receiver.url)
        assert (level, "its certificate is not trusted" in text) == ("warning", True)
        assert receiver.requests == []
        assert "sesame" not in text


def test_what_keeps_alerts_from_their_receiver_is_told(
    installation: Installation, tmp_path: Path
) -> None:
    """Each by what is wrong, and none keeps the coordinator from starting."""
    (port,) = free_ports(1)
    nobody = f"https://127.0.0.1:{port}/hook"
    junk, empty = tmp_path / "junk.pem", tmp_path / "empty"
    junk.write_text("no certificate")
    empty.write_text("\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "Connection refused"),
        ({"alert_webhook_ca": junk}, "monitoring.alert_webhook_ca cannot be read, or holds no"),
        ({"alert_webhook_ca": tmp_path / "none"}, "monitoring.alert_webhook_ca cannot be read"),
        ({"alert_webhook_secret": empty}, "monitoring.alert_webhook_secret is an empty file"),
        ({"alert_webhook_secret": tmp_path / "none"}, "alert_webhook_secret cannot be read"),
    ]
    for over, words in cases:
        [(level, text)] = said(installation, alert_webhook=nobody, **over)
        assert level == "warning"
        assert words in text
