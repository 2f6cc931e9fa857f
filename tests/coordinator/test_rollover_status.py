"""Who would be shut out by the next step of a rollover, by the coordinator's database."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from certs.authority import Authority
from certs.enrolment import new_key
from certs.spiffe import SpiffeId
from coordinator import rollover
from coordinator.installation import init
from coordinator.store import certificates
from coordinator.store.database import Database
from protos.errors import WrongPhase

LIFE = timedelta(days=7)


def issue(folder: Path, name: str, ended_days: float) -> None:
    """Register a certificate of a node by the present authority that ended so many days ago."""
    authority = Authority.load(folder / "pki")
    identity = SpiffeId(authority.trust_domain, "node", name)
    made = datetime.now(UTC) - timedelta(days=ended_days) - LIFE
    issued = authority.issue(new_key().public_key(), identity, now=made, lifetime=LIFE)
    database = opened(folder)
    database.write_now(lambda c: certificates.add(c, issued))
    database.close()


def opened(folder: Path) -> Database:
    return Database(f"sqlite:///{folder / 'coordinator.db'}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coordinator's; the operator's own certificate is out of the way."""
    init(tmp_path / "c", "test.example")
    database = opened(tmp_path / "c")
    operator = SpiffeId("test.example", "user", "operator")
    database.write_now(lambda c: certificates.revoke(c, operator))
    database.close()
    return tmp_path / "c"


def behind(folder: Path) -> list[str]:
    return [name.rpartition("/")[2] for name, _ in rollover.status(folder).behind]


def test_a_node_that_is_off_and_may_still_recover_is_not_shut_out_unseen(folder: Path) -> None:
    """Its certificate has ended; it comes back by itself only if it knows the next root."""
    issue(folder, "off", ended_days=29)
    issue(folder, "gone", ended_days=31)
    rollover.begin(folder)
    issue(folder, "learned", ended_days=1)
    assert behind(folder) == ["off"]
    with pytest.raises(WrongPhase, match=r"switch would shut out spiffe://test.example/node/off: "):
        rollover.switch(folder)
    rollover.switch(folder, force=True)
    assert behind(folder) == ["off"]
    with pytest.raises(WrongPhase, match=r"finish would shut out spiffe://test.example/node/off: "):
        rollover.finish(folder)
    assert rollover.finish(folder, force=True).phase == "settled"


def test_who_may_not_recover_holds_no_rollover_up(folder: Path) -> None:
    """`security.recovery_days: 0`: a node whose certificate has ended joins again in any case."""
    config = folder / "coordinator.yaml"
    settings = yaml.safe_load(config.read_text()) | {"security": {"recovery_days": 0}}
    config.write_text(yaml.safe_dump(settings))
    issue(folder, "off", ended_days=1)
    rollover.begin(folder)
    assert behind(folder) == []
