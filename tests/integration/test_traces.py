"""A round as traces show it: real processes, and collectors that speak OpenTelemetry's protocol."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from protos.tracing import ATTRIBUTES, NAMES
from tests.integration.federation import Federation, job_file, run_cli, wait_for
from tests.otlp_receiver import Receiver, receiver

HOSPITALS = ("alpha", "beta", "gamma")
TICK_S = 1.0
CLOCKS_NS = 20_000_000
"""Between the clock of a node's session, which never jumps, and the machine's."""


def change(path: Path, section: str, **keys: Any) -> None:
    """Write keys of a section of a configuration file."""
    settings = yaml.safe_load(path.read_text())
    settings.setdefault(section, {}).update(keys)
    path.write_text(yaml.safe_dump(settings))


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[tuple[Federation, Receiver, Receiver]]:
    """A federation whose coordinator has a collector, and whose hospitals have another; `alpha`
    tells what its worker took."""
    made = Federation(tmp_path)
    with receiver() as platform, receiver() as hospitals:
        change(
            made.installation.config,
            "monitoring",
            trace_endpoint=f"http://{platform.address}",
            log_format="json",
        )
        made.start("coordinator")
        try:
            for name in HOSPITALS:
                made.add_node(name, tick_s=TICK_S)
                change(
                    made.agent(name) / "agent.yaml",
                    "tracing",
                    endpoint=f"http://{hospitals.address}",
                    times_of_work=name == "alpha",
                )
                made.start(name)
            made.wait_for_nodes(*HOSPITALS)
            yield made, platform, hospitals
        finally:
            made.stop()


def test_a_round_is_one_trace_across_coordinator_agents_and_workers(
    traced: tuple[Federation, Receiver, Receiver],
) -> None:
    """Each round's spans hang together, whoever exports them, and tell nothing of the data."""
    federation, platform, hospitals = traced
    spec = federation.folder / "job.yaml"
    spec.write_bytes(job_file(federation={"rounds": 2, "local_steps": 2}))
    code, out, err = run_cli(
        *("job", "submit", str(spec), "--json", "--dir", str(federation.installation.folder)),
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{platform.address}",
    )
    assert code == 0, err
    submitted = json.loads(out)
    job = federation.wait_for_end(submitted["job_id"])
    assert job.status == "completed"
    federation.stop()  # what is left is sent

    # The submission: the command's span, and under it the coordinator's.
    (submit,) = platform.named("submit")
    assert (submit.service, submit.trace_id) == ("feddp", submitted["trace_id"])
    assert submit["job_id"] == job.job_id
    (start,) = platform.named("start")
    assert (start.service, start.parent) == ("feddp-coordinator", submit.span_id)

    rounds = platform.named("round")
    assert sorted(one["round"] for one in rounds) == [1, 2]
    assert len({one.trace_id for one in rounds}) == 2
    by_id = {one.span_id: one for one in [*platform.spans, *hospitals.spans]}
    for root in rounds:
        assert (root.parent, root["outcome"], root.failed) == ("", "published", False)
        mine = [one for one in by_id.values() if one.trace_id == root.trace_id]
        for one in mine:
            assert one is root or by_id[one.parent].trace_id == root.trace_id
            assert one.start_ns <= one.end_ns
        parents = {(one.name, by_id[one.parent].name) for one in mine if one is not root}
        assert parents == {
            ("reserving", "round"),
            ("training", "round"),
            ("aggregating", "round"),
            ("publishing", "round"),
            ("order", "training"),
            ("fold", "aggregating"),
            ("take", "order"),
            ("attempt", "order"),
            ("admission", "attempt"),
            ("download", "attempt"),
            ("prepare", "attempt"),
            ("worker.check", "prepare"),
            ("release", "attempt"),
            ("work", "attempt"),
            ("worker.train", "work"),
            ("spool", "attempt"),
            ("upload", "attempt"),
        } | ({("publish", "publishing")} if root["round"] == 2 else set())
        orders = [one for one in mine if one.name == "order"]
        assert {one["node"] for one in orders} == set(HOSPITALS)
        for order in orders:
            # The node's own span, which another collector may hold, is linked from ours.
            of_it = [one for one in mine if one.parent == order.span_id]
            (attempt,) = (one for one in of_it if one.name == "attempt")
            (take,) = (one for one in of_it if one.name == "take")
            (upload,) = (
                one for one in mine if (one.name, one.parent) == ("upload", attempt.span_id)
            )
            assert take.links == ((root.trace_id, upload.span_id),)
            # An attempt that is over at once hands in before it has said anything else.
            assert order.links in (((root.trace_id, s.span_id),) for s in (attempt, upload))
            assert attempt.instance == order["node"]
            assert attempt.service == "feddp-agent"
        for release in (one for one in mine if one.name == "release"):
            # Ends at the moment that was fixed, a whole number of ticks, and not with the work.
            ticks = (release.end_ns - release.start_ns) / 1e9 / TICK_S
            assert ticks == pytest.approx(max(1, round(ticks)), abs=1e-5)

    for release in hospitals.named("release"):
        # Where the hospital did not ask for more, nothing begins or ends while the data is open.
        others = (
            one
            for one in hospitals.spans
            if one.instance == release.instance != "alpha" and one is not release
        )
        start_ns, end_ns = release.start_ns + CLOCKS_NS, release.end_ns - CLOCKS_NS
        inside = [o for o in others if any(start_ns < t < end_ns for t in (o.start_ns, o.end_ns))]
        assert inside == []

    assert {one.service for one in platform.spans} == {"feddp", "feddp-coordinator"}
    assert {one.service for one in hospitals.spans} == {"feddp-agent"}
    slow = {
        one.instance for one in hospitals.spans if one.name in ("work", "spool", "worker.train")
    }
    assert slow == {"alpha"}
    for one in by_id.values():
        assert one.name in NAMES
        assert {key for key, _ in one.about} <= {f"feddp.{name}" for name in ATTRIBUTES}

    # Log lines say the trace, at both ends.
    of_rounds = {one.trace_id for one in rounds}
    for name in ("coordinator", *HOSPITALS):
        lines = [json.loads(line) for line in federation.log(name).splitlines() if line[:1] == "{"]
        assert of_rounds <= {line.get("trace_id") for line in lines}, name
    ((worker_log),) = (federation.agent("alpha") / "logs").glob("worker-*.log")
    lines = [json.loads(line) for line in worker_log.read_text().splitlines() if line[:1] == "{"]
    assert of_rounds <= {line.get("trace_id") for line in lines}


def test_a_collector_that_is_away_neither_slows_nor_fails_a_round_and_the_end_is_quick(
    tmp_path: Path,
) -> None:
    """Nobody listens where spans go: the job is done, and each process ends within 2 s."""
    made = Federation(tmp_path)
    nowhere = "http://127.0.0.1:9"
    change(made.installation.config, "monitoring", trace_endpoint=nowhere)
    made.start("coordinator")
    try:
        for name in HOSPITALS:
            made.add_node(name, tick_s=TICK_S)
            change(made.agent(name) / "agent.yaml", "tracing", endpoint=nowhere)
            made.start(name)
        made.wait_for_nodes(*HOSPITALS)
        job = made.wait_for_end(made.submit(job_file(federation={"rounds": 2, "local_steps": 2})))
        assert job.status == "completed"
        wait_for("the collector is missed", lambda: "StatusCode.UNAVAILABLE" in made.log("alpha"))
        for name in ("alpha", "coordinator"):
            began_s = time.monotonic()
            made.terminate(name)
            assert time.monotonic() - began_s < 5.0, name
    finally:
        made.stop()


def test_an_agent_exports_nothing_unless_its_own_file_says_where(tmp_path: Path) -> None:
    """Neither an order that is traced nor the environment makes a hospital send spans."""
    made = Federation(tmp_path)
    with receiver() as platform, pytest.MonkeyPatch.context() as patch:
        change(made.installation.config, "monitoring", trace_endpoint=f"http://{platform.address}")
        made.start("coordinator")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{platform.address}")
        try:
            for name in HOSPITALS:
                made.add_node(name, tick_s=TICK_S)
                made.start(name)
            made.wait_for_nodes(*HOSPITALS)
            job = made.wait_for_end(made.submit(job_file(federation={"rounds": 1})))
            assert job.status == "completed"
        finally:
            made.stop()
    assert {one.service for one in platform.spans} == {"feddp-coordinator"}
    assert platform.named("order")
    assert all(one.links == () for one in platform.spans)
