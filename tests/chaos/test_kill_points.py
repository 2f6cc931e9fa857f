"""kill -9 at every named point of the coordinator and of the agent."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.chaos import books, points
from tests.chaos.acts import NODES, Jobs, progress
from tests.chaos.lives import RESUME_S_MAX, WatchedFederation
from tests.chaos.scenarios import SCENARIOS
from tests.integration.federation import wait_for


@dataclass(slots=True)
class Census:
    """Which scenarios take which process past a point."""

    federation: WatchedFederation
    passed: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)
    """(role, point) -> (scenario, process), the cheapest first."""

    def take(self) -> None:
        """Play every scenario once with nobody killed but by the scenario itself."""
        for name, act in SCENARIOS.items():
            self.federation.forget_seen()
            finish(self.federation, act(self.federation))
            for process in ("coordinator", *NODES):
                role = "coordinator" if process == "coordinator" else "agent"
                with contextlib.suppress(AssertionError):
                    # A process passes the point after its reply when the reply is here already.
                    wait_for("its replies are over", lambda p=process: self._is_over(p), 1.0)  # type: ignore[misc]
                for point in self.federation.seen(process):
                    self.passed.setdefault((role, point), []).append((name, process))

    def _is_over(self, process: str) -> bool:
        seen = self.federation.seen(process)
        before = {p.removesuffix(":before") for p in seen if p.endswith(":before")}
        return all(f"{name}:after" in seen for name in before if ":reply" in name)


@pytest.fixture(scope="module")
def census(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Census]:
    """A federation that has been through every scenario once."""
    federation = WatchedFederation(tmp_path_factory.mktemp("chaos"))
    try:
        federation.configure(
            min_participants=2, node_disconnected_s=3, node_silent_s=12, heartbeat_interval_s=5
        )
        federation.start("coordinator")
        for name in NODES:
            federation.add_node(name)
            federation.start(name)
        federation.wait_for_nodes(*NODES)
        found = Census(federation)
        finish(federation, SCENARIOS["plain"](federation))
        found.take()
        yield found
    finally:
        federation.stop()


def finish(federation: WatchedFederation, jobs: Jobs) -> None:
    """Each job ends as it must, soon, with its books in order."""
    for job_id, status in jobs.items():
        wait_for(
            f"job {job_id} ends",
            lambda job_id=job_id: progress(federation, job_id)[1],  # type: ignore[misc]
            2 * RESUME_S_MAX,
        )
        job = federation.again(lambda client, job_id=job_id: client.job(job_id))
        assert job.status == status, job.message
        books.check_job(federation, job)


def kill_at(census: Census, role: str, point: str) -> None:
    """One process dies at the point, comes back, and everything ends as without that.

    A scenario that passed the point once may miss it the next time, where it depends on who is
    first; then another one is played, or the same again. So is one that took too long: once it may
    be the machine.
    """
    federation, missed = census.federation, "no scenario passes this point"
    for scenario, process in census.passed.get((role, point), []) * 2:
        federation.arm(process, point)
        try:
            jobs = SCENARIOS[scenario](federation)
            died = not federation.armed(process, point)
            resumed_s = time.monotonic() - federation.born_at_s[process]
            finish(federation, jobs)
            if scenario == "rolling" and died and resumed_s > RESUME_S_MAX:
                missed = f"the job was not taken up in time, but in {resumed_s:.1f} s"
            elif not federation.armed(process, point):
                return
        finally:
            for name in ("coordinator", *NODES):
                federation.disarm(name)
            federation.heal()
    pytest.fail(missed)


def test_every_named_point_is_exercised(census: Census) -> None:
    """A point that no scenario passes would never be killed at; an excluded one that is passed
    is excluded wrongly."""
    for role in points.TREES:
        passed = {point for known, point in census.passed if known == role}
        wanted = set(points.points(role))
        assert wanted - passed == set()
        excluded = {p for site in points.sites(role) if not site.serves(role) for p in site.points}
        assert excluded & passed == set()
        assert passed <= wanted


def test_there_are_enough_points() -> None:
    """The scan of the code finds at least what was asked for."""
    assert len(points.points("coordinator")) >= 40
    assert len(points.points("agent")) >= 20


@pytest.mark.parametrize("point", points.points("coordinator"))
def test_the_coordinator_killed_at(census: Census, point: str) -> None:
    """It goes on with each job where it stood within 10 s, and nothing is booked or done twice."""
    kill_at(census, "coordinator", point)


@pytest.mark.parametrize("point", points.points("agent"))
def test_an_agent_killed_at(census: Census, point: str) -> None:
    """It offers what it had finished again, and trains nothing twice."""
    kill_at(census, "agent", point)


def test_after_all_of_that_the_ledgers_verify(census: Census) -> None:
    """One chain per account, from the first entry to the last."""
    federation = census.federation
    while federation.rolling_job:
        finish(federation, SCENARIOS["rolling"](federation))
    books.check_ledgers(federation)
