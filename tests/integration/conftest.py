"""Fixtures of the whole-system tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.federation import NODES, Federation


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Federation]:
    """A running coordinator without nodes."""
    federation = Federation(tmp_path)
    federation.start("coordinator")
    yield federation
    federation.stop()


@pytest.fixture
def federation(coordinator: Federation) -> Federation:
    """A running coordinator with four connected agents."""
    for name in NODES:
        coordinator.add_node(name)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES)
    return coordinator
