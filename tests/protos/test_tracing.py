"""Spans: what they may tell, what they are called, and that exporting them holds nobody."""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from certs.authority import Authority
from certs.enrolment import private_pem
from coordinator.server_certificate import issue
from protos import otlp, tracing
from protos.errors import InvariantBroken, Malformed
from protos.tracing import Finished, Place
from tests.otlp_receiver import receiver

END_S_MAX = 2.0


@pytest.fixture
def finished() -> Iterator[list[Finished]]:
    """What is exported."""
    kept: list[Finished] = []
    tracing.begin(kept.append, lambda: None)
    yield kept
    tracing.end()


def test_nothing_is_traced_unless_it_is_asked_for() -> None:
    """Neither a place nor a line's ids, and calls carry nothing."""
    assert not tracing.is_on()
    assert tracing.of_round("job", 1, 0) is None
    assert tracing.new_trace() is None
    with tracing.span("fold", Place(1, 2), {}) as place:
        assert place is None
        assert tracing.metadata() == ()
        assert tracing.log_ids(None, "", {}) == {}


def test_a_rounds_trace_follows_from_the_job(finished: list[Finished]) -> None:
    """A restarted coordinator, or another one, goes on in the same trace; a round that was begun
    anew is another one."""
    one = tracing.of_round("job", 1, 0)
    assert one is not None
    assert one == tracing.of_round("job", 1, 0)
    others = [("job", 2, 0), ("job", 1, 1), ("job2", 1, 0)]
    assert len({one.trace_id, *(tracing.of_round(*other).trace_id for other in others)}) == 4  # type: ignore[union-attr]
    assert one.named("order", "a") == one.named("order", "a") != one.named("order", "b")


def test_a_span_says_where_it_stands_and_whether_it_failed(finished: list[Finished]) -> None:
    """Lines and calls inside say its ids; an exception leaves a mark and no words."""
    root = tracing.new_trace()
    assert root is not None

    def fail() -> None:
        with tracing.span("prepare", root, {"node": "a"}):
            here = tracing.here()
            assert here is not None
            assert tracing.metadata() == (("traceparent", here.traceparent),)
            ids = f"{root.trace_id:032x}", f"{here.span_id:016x}"
            assert tracing.log_ids(None, "", {}) == {"trace_id": ids[0], "span_id": ids[1]}
            raise ValueError("a value of a patient")

    with pytest.raises(ValueError, match="a value"):
        fail()
    (span,) = finished
    assert (span.name, span.parent, span.failed) == ("prepare", root, True)
    assert span.attributes == {"node": "a"}
    assert "patient" not in str(span)
    assert tracing.here() is None


def test_a_span_can_only_tell_what_is_on_the_lists(finished: list[Finished]) -> None:
    """A loss, a norm or a count has no attribute to stand in."""
    place, times_s = Place(1, 2), (0.0, 1.0)
    with pytest.raises(InvariantBroken):
        tracing.record("gradient", place, None, times_s, {})
    with pytest.raises(InvariantBroken):
        tracing.record("order", place, None, times_s, {"loss": 1})
    assert finished == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "00-" + "A" * 32 + "-" + "1" * 16 + "-01",
        "01-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01\n",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01-more",
    ],
)
def test_what_is_no_traceparent_is_ignored(text: str) -> None:
    """Whatever a peer sends, no call fails for it."""
    assert tracing.parse(text) is None


def test_a_traceparent_is_read_as_it_is_written() -> None:
    """W3C Trace Context, version 00."""
    for place in (Place(0x1A, 0x2B), Place(1 << 127, 1 << 63, sampled=False)):
        assert tracing.parse(place.traceparent) == place
    assert Place(0x1A, 0x2B).traceparent == f"00-{0x1A:032x}-{0x2B:016x}-01"


def test_a_share_of_the_rounds_is_traced_and_all_of_such_a_round() -> None:
    """Whether a trace is sampled follows from its id, and who is asked next is told."""
    kept: list[Finished] = []
    tracing.begin(kept.append, lambda: None, 0.25)
    try:
        places = [tracing.of_round("job", number, 0) for number in range(2000)]
        for place in places:
            assert place is not None
            assert tracing.parse(place.named("order", "a").traceparent) == place.named("order", "a")
            tracing.record("round", place, None, (0.0, 1.0), {})
        share = sum(place.sampled for place in places if place is not None) / len(places)
        assert 0.2 < share < 0.3  # 5 deviations of a fair choice
        assert len(kept) == share * len(places)
    finally:
        tracing.end()


def test_the_collector_is_who_its_certificate_says(tmp_path: Path) -> None:
    """Spans go over TLS to the authority that the configuration names, and to no other."""
    now, names = datetime.now(UTC), (["localhost"], [])
    authorities = [Authority.create(tmp_path / name, "x.example") for name in ("right", "wrong")]
    for authority, arrives in zip(authorities, (1, 0), strict=True):
        key, chain = issue(authorities[0], *names, now)
        credentials = grpc.ssl_server_credentials([(private_pem(key), chain)])
        ca_file = tmp_path / "ca.pem"
        ca_file.write_bytes(authority.trust_bundle)
        with receiver(credentials, "localhost:0") as collector:
            otlp.begin("test", f"https://{collector.address}", ca_file=ca_file, complain=False)
            tracing.record("fold", Place(1, 2), None, (0.0, 1.0), {"node": "a"})
            tracing.end()
            assert len(collector.spans) == arrives


def test_a_missing_authority_of_the_collector_is_named(tmp_path: Path) -> None:
    """Nothing starts half traced."""
    with pytest.raises(Malformed, match=r"ca\.pem cannot be read"):
        otlp.begin("test", "https://localhost:4317", ca_file=tmp_path / "ca.pem")
    assert not tracing.is_on()


def test_without_opentelemetry_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is to trace and cannot does not start as if it did."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Malformed, match=r"pip install 'feddp\[otel\]'") as missing:
        otlp.begin("test", "http://127.0.0.1:9")
    assert missing.value.reason == "OTEL_MISSING"
    assert not tracing.is_on()


def test_a_collector_that_takes_nothing_costs_no_time_and_no_memory_and_the_end_is_bounded() -> (
    None
):
    """It accepts the connection and is silent: spans are dropped, and the end comes within 2 s."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        otlp.begin("test", f"http://127.0.0.1:{port}", complain=False)
        count = 3 * otlp.QUEUE_SPANS_MAX
        began_s = time.monotonic()
        for _ in range(count):
            tracing.record("fold", Place(1, 2), None, (0.0, 1.0), {"node": "a"})
        each_us = (time.monotonic() - began_s) / count * 1e6
        began_s = time.monotonic()
        tracing.end()
        took_s = time.monotonic() - began_s
    assert took_s < END_S_MAX + 0.5  # a busy machine may be late to wake us
    assert each_us < 1000


def test_the_end_without_a_receiver_is_bounded() -> None:
    """Nobody listens at all."""
    otlp.begin("test", "http://127.0.0.1:9", complain=False)
    tracing.record("fold", Place(1, 2), None, (0.0, 1.0), {})
    began_s = time.monotonic()
    tracing.end()
    assert time.monotonic() - began_s < END_S_MAX + 0.5
