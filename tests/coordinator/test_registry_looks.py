"""A coordinator reads who may call again every few seconds, whatever else fails then."""

import asyncio
import errno
from pathlib import Path

import pytest

from coordinator import server
from coordinator.config.config import load_config
from coordinator.installation import init


def test_whoever_is_shut_out_is_read_while_the_certificate_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without room keeps the certificate from being renewed, and nobody in."""
    made = init(tmp_path / "c", "test.example")
    coordinator = server.Coordinator(load_config(made.config, {}))
    monkeypatch.setattr(server, "CERTIFICATE_S", 0.01)
    looks: list[str] = []

    def refresh() -> bool:
        looks.append("certificate")
        raise OSError(errno.ENOSPC, "no space left on device")

    async def look() -> None:
        looks.append("registry")
        if len(looks) > 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(coordinator._certificate, "refresh", refresh)
    monkeypatch.setattr(coordinator.identities, "look", look)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(coordinator._keep_certificate(), 20))
    assert looks == ["certificate", "registry"] * 2
