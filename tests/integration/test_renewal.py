"""Certificates renew themselves under way: real processes, real TLS, lives of seconds."""

import json
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.identity import load_identity
from tests.integration.federation import NODES, Federation, cli_json, job_file, wait_for

LIFE_S = 20
THREE = NODES[:3]


@pytest.fixture
def short_lived(tmp_path: Path) -> Iterator[Federation]:
    """Three agents whose certificates are valid for 20 s."""
    federation = Federation(tmp_path)
    settings = yaml.safe_load(federation.installation.config.read_text())
    settings["security"] = {"node_certificate_life_s": LIFE_S}
    federation.installation.config.write_text(yaml.safe_dump(settings))
    try:
        federation.start("coordinator")
        for name in THREE:
            federation.add_node(name, tick_s=4.0)
            federation.start(name)
        federation.wait_for_nodes(*THREE)
        yield federation
    finally:
        federation.stop()


def events(federation: Federation, process: str) -> list[dict[str, Any]]:
    """What a process has logged."""
    lines = federation.log(process).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def named(federation: Federation, process: str, event: str) -> list[dict[str, Any]]:
    return [one for one in events(federation, process) if one["event"] == event]


def test_a_renewed_node_outlives_its_first_certificate_with_its_session_and_its_work(
    short_lived: Federation,
) -> None:
    """Rounds go on over the renewals and past the old ends: no stream breaks, each attempt is
    booked once and none is tried again."""
    federation = short_lived
    folders = {name: federation.agent(name) / "identity" for name in THREE}
    first = {name: load_identity(folder) for name, folder in folders.items()}
    job_id = federation.submit(job_file(federation={"rounds": 6, "local_steps": 2}))
    end_s = max(one.expires_at.timestamp() for one in first.values())
    lost: list[str] = []

    def past_every_old_end() -> bool:
        with federation.client() as client:
            lost.extend(one.name for one in client.nodes() if not one.connected)
        return time.time() > end_s + 3

    wait_for("the first certificates have ended", past_every_old_end)
    assert lost == []
    job = federation.wait_for_end(job_id)
    assert job.status == "completed", job.message
    booked = Counter(
        (one.statement.node, one.statement.round, one.statement.kind)
        for one in federation.entries()
    )
    kinds = ("reserve", "post")
    assert booked == {(n, r, kind): 1 for n in THREE for r in range(1, 7) for kind in kinds}
    for name in THREE:
        now = load_identity(folders[name])
        assert now.spiffe_id == first[name].spiffe_id
        assert now.key != first[name].key
        assert now.expires_at > first[name].expires_at
        assert stat.S_IMODE((folders[name] / "node.key").stat().st_mode) == 0o600
        assert {path.name for path in folders[name].iterdir()} == {
            "node.key",
            "node.crt",
            "bundle.pem",
            "ledger.key",
        }
        assert named(federation, name, "certificate_renewed")
        assert named(federation, name, "session_moved")
        for broken in ("session_ended", "coordinator_unreachable", "node_shut_out"):
            assert not named(federation, name, broken)
    status = cli_json("agent", "status", "--dir", str(federation.agent("alpha")))
    assert status["connected"]
    assert time.time() < status["certificate_renews_at"] < status["certificate_expires_at"]
    assert not named(federation, "coordinator", "superseded_certificate_shown")
