"""What the coordinator tells of by itself, when, and that it goes to one place only."""

import asyncio
import functools
import hashlib
import hmac
import json
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from coordinator.alerts import webhook as alert_webhook
from coordinator.alerts.body import ALARMS_MAX, Told, body, changes
from coordinator.alerts.conditions import (
    Alarm,
    Facts,
    Limits,
    NodeFact,
    WaitingJob,
    conditions,
)
from coordinator.alerts.watch import PAUSE_S, AlertWatch
from coordinator.alerts.webhook import NotTaken, Webhook
from coordinator.replicas.shared_blobs import Away
from tests.https_receiver import Receiver, https_receiver


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that waits."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


LIMITS = Limits(
    node_lost_s=120,
    job_waiting_s=3600,
    budget_remaining=0.1,
    certificate_s=86_400,
    node_certificate_s=3600,
)
NOW_S = 1_000_000.0
WELL = NodeFact("alpha", True, NOW_S, certificate_ends_s=NOW_S + 3601)


def names(**facts: object) -> list[str]:
    """Names of the alarms."""
    return [one.name for one in conditions(Facts(NOW_S, **facts), LIMITS)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        (
            "NodeUnhealthy",
            {"nodes": (replace(WELL, connected=False, heard_at_s=NOW_S - 120),)},
            {"nodes": (replace(WELL, connected=False, heard_at_s=NOW_S - 119),)},
        ),
        (
            "NodeQuarantined",
            {"nodes": (replace(WELL, connected=False, heard_at_s=0.0, quarantine="a copy"),)},
            {"nodes": (WELL,)},
        ),
        (
            "LedgerDisagreement",
            {"nodes": (replace(WELL, refuses=(("patients", "LEDGER_DISPUTED"),)),)},
            {"nodes": (replace(WELL, refuses=(("patients", "LEDGER_CATCHING_UP"),)),)},
        ),
        (
            "StoreUnreachable",
            {"store": Away(NOW_S - 120, "it answers 503")},
            {"store": Away(NOW_S - 119, "it answers 503")},
        ),
        ("DiskFilling", {"disk_free_share": 0.0999}, {"disk_free_share": 0.1}),
        ("LedgerDamaged", {"damaged": frozenset({"alpha/patients"})}, {}),
        (
            "PrivacyBudgetExhausted",
            {"remaining": {"alpha/patients": 0.0999}},
            {"remaining": {"alpha/patients": 0.1}},
        ),
        (
            "JobWaiting",
            {"jobs": (WaitingJob("j1", NOW_S - 3600, ("beta",)),)},
            {"jobs": (WaitingJob("j1", NOW_S - 3599, ("beta",)),)},
        ),
        (
            "CertificateExpiring",
            {"certificates": {"server": NOW_S + 86_399}},
            {"certificates": {"server": NOW_S + 86_400}},
        ),
        (
            "CertificateExpiring",
            {"nodes": (replace(WELL, certificate_ends_s=NOW_S + 3599),)},
            {"nodes": (replace(WELL, certificate_ends_s=0.0),)},
        ),
    ],
)
def test_each_thing_is_told_from_its_limit_on_and_not_before(
    name: str, wrong: dict[str, object], right: dict[str, object]
) -> None:
    """One alarm where something is wrong, none a moment before."""
    assert names(**wrong) == [name]
    assert names(**right) == []


def alarms(count: int) -> list[Alarm]:
    """So many nodes that are lost."""
    lost = tuple(replace(WELL, name=f"n{i}", connected=False, heard_at_s=0.0) for i in range(count))
    return conditions(Facts(NOW_S, nodes=lost), LIMITS)


def test_the_body_is_alertmanagers() -> None:
    """Version 4, as Alertmanager posts it: what takes its alerts takes ours."""
    before = Told({}).seeing(alarms(1), NOW_S)
    posted = json.loads(body(changes(Told({}), before), "hospitals.example", NOW_S))
    assert {name: posted[name] for name in ("version", "status", "truncatedAlerts")} == {
        "version": "4",
        "status": "firing",
        "truncatedAlerts": 0,
    }
    assert posted["alerts"] == [
        {
            "status": "firing",
            "labels": {
                "alertname": "NodeUnhealthy",
                "severity": "critical",
                "coordinator": "hospitals.example",
                "node": "n0",
            },
            "annotations": {
                "summary": "Node n0 is not connected.",
                "description": "Its hospital runs `feddp agent doctor`; jobs go on without it "
                "where they can.",
            },
            "startsAt": "1970-01-12T13:46:40.000Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "",
            "fingerprint": alarms(1)[0].fingerprint,
        }
    ]
    over = changes(before, before.seeing([], NOW_S + 60))
    (ended,) = json.loads(body(over, "hospitals.example", NOW_S + 60))["alerts"]
    assert (ended["status"], ended["startsAt"], ended["endsAt"]) == (
        "resolved",
        "1970-01-12T13:46:40.000Z",
        "1970-01-12T13:47:40.000Z",
    )
    assert ended["fingerprint"] == posted["alerts"][0]["fingerprint"]


def test_a_body_has_a_bound_and_says_what_is_left_out() -> None:
    """A network that falls apart makes one bounded post."""
    notice = changes(Told({}), Told({}).seeing(alarms(ALARMS_MAX + 7), NOW_S))
    posted = json.loads(body(notice, "x", NOW_S))
    assert (len(posted["alerts"]), posted["truncatedAlerts"]) == (ALARMS_MAX, 7)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that takes everything."""
    with https_receiver(tmp_path / "there") as made:
        yield made


class Watched:
    """A watch whose facts a test sets."""

    def __init__(self, receiver: Receiver, secret: Path | None = None) -> None:
        self.facts = Facts(NOW_S)
        webhook = Webhook(receiver.url, receiver.ca_file, secret)
        self.watch = AlertWatch(self._facts, LIMITS, webhook, "hospitals.example", 30.0)

    async def _facts(self, now_s: float) -> Facts:
        return replace(self.facts, now_s=now_s)

    async def look(self, now_s: float, *damaged: str) -> None:
        """Look once while these accounts are damaged."""
        self.facts = Facts(now_s, damaged=frozenset(damaged))
        await self.watch.look(now_s)


def shown(posted: dict[str, object]) -> list[tuple[str, str]]:
    """(account, status) of a body's alerts."""
    return [(one["labels"]["account"], one["status"]) for one in posted["alerts"]]  # type: ignore[index,attr-defined]


@in_a_loop
async def test_an_alarm_is_told_once_and_its_end_once(there: Receiver) -> None:
    """Looks that find the same again post nothing."""
    watched = Watched(there)
    for at_s, damaged in enumerate([(), ("a",), ("a",), ("a", "b"), ("b",), ("b",), ()]):
        await watched.look(NOW_S + at_s, *damaged)
    assert [shown(one) for one in there.bodies] == [
        [("a", "firing")],
        [("b", "firing")],
        [("a", "resolved")],
        [("b", "resolved")],
    ]


@in_a_loop
async def test_posts_are_signed_so_that_they_cannot_be_made_up_or_posted_again(
    there: Receiver, tmp_path: Path
) -> None:
    """HMAC-SHA256 over the time and the very bytes; the secret is read anew at each post."""
    secret = tmp_path / "secret"
    watched = Watched(there, secret)
    for number, key in enumerate((b"first", b"second")):
        secret.write_bytes(key + b"\n")
        await watched.look(NOW_S + number, f"account{number}")
        posted = there.requests[-1]
        at, _, made = posted["headers"]["X-Feddp-Signature"].partition(",v1=")
        signed = f"{at.removeprefix('t=')}.{posted['body']}".encode()
        assert made == hmac.new(key, signed, hashlib.sha256).hexdigest()
        assert (posted["method"], posted["path"]) == ("POST", "/hook?key=sesame")
        assert posted["headers"]["Content-Type"] == "application/json"
    secret.write_bytes(b"\n")
    await watched.look(NOW_S + 2)
    assert len(there.requests) == 2, "without its secret it is not posted unsigned"


@in_a_loop
async def test_a_receiver_that_fails_is_tried_again_after_longer_pauses_and_told_what_is(
    there: Receiver,
) -> None:
    """What waits is what is wrong: nothing piles up, and what came and went is not told."""
    watched = Watched(there)
    there.answer("503")
    at_s, tried = NOW_S, 1
    await watched.look(at_s, "gone", "kept")
    for pause_s in (*PAUSE_S, PAUSE_S[-1]):
        await watched.look(at_s + pause_s - 0.01, "gone", "kept")
        assert len(there.requests) == tried
        at_s, tried = at_s + pause_s, tried + 1
        await watched.look(at_s, "gone", "kept")
        assert len(there.requests) == tried
    there.answer("200")
    await watched.look(at_s + PAUSE_S[-1], "kept")
    assert [shown(one) for one in there.bodies] == [[("kept", "firing")]]


@in_a_loop
async def test_a_redirect_is_not_followed(there: Receiver, tmp_path: Path) -> None:
    """Whoever answers for the receiver cannot send the coordinator to another address."""
    with https_receiver(tmp_path / "other") as other:
        for status in ("301", "302", "303", "307", "308"):
            there.answer(f"{status} {other.url}")
            with pytest.raises(NotTaken, match="redirects are not followed"):
                await Webhook(there.url, there.ca_file, None).post(b"{}")
        assert len(there.requests) == 5
        assert other.requests == []


@in_a_loop
async def test_the_receiver_is_who_its_certificate_says(there: Receiver, tmp_path: Path) -> None:
    """Another authority's certificate, and one for another name, get nothing."""
    with https_receiver(tmp_path / "other") as other, pytest.raises(NotTaken, match="not trusted"):
        await Webhook(there.url, other.ca_file, None).post(b"{}")
    with https_receiver(tmp_path / "named", "elsewhere.example") as named:
        with pytest.raises(NotTaken, match="not trusted"):
            await Webhook(named.url, named.ca_file, None).post(b"{}")
        assert there.requests == named.requests == []


@in_a_loop
async def test_the_proxy_of_the_environment_is_not_asked(
    there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configured URL is where it goes."""
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await Webhook(there.url, there.ca_file, None).post(b"{}")
    assert len(there.requests) == 1


@in_a_loop
async def test_a_receiver_that_answers_nothing_is_given_up_and_holds_nobody(
    there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop goes on meanwhile, and no second post begins while the first one hangs."""
    monkeypatch.setattr(alert_webhook, "WHOLE_TIMEOUT_S", 0.5)
    there.answer("silence")
    webhook = Webhook(there.url, there.ca_file, None)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.01)

    beating = asyncio.create_task(beat())
    with pytest.raises(NotTaken, match="no answer within"):
        await webhook.post(b"{}")
    beating.cancel()
    assert beats > 10
    with pytest.raises(NotTaken, match="still holds"):
        await webhook.post(b"{}")
    assert len(there.requests) == 1


@in_a_loop
async def test_a_post_that_breaks_off_keeps_no_later_one_back(
    there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was, in words of ours and at once."""
    webhook = Webhook(there.url, there.ca_file, None)
    with monkeypatch.context() as patched:
        patched.setattr(webhook, "_target", "/f\u00fc")
        with pytest.raises(NotTaken, match="UnicodeEncodeError"):
            await webhook.post(b"{}")
    await webhook.post(b"{}")
    assert len(there.requests) == 1


@in_a_loop
async def test_no_log_line_repeats_the_url(there: Receiver) -> None:
    """A webhook's path is often its password."""
    there.answer("500")
    with capture_logs() as lines:
        await Watched(there).look(NOW_S, "a")
    assert [one["event"] for one in lines] == ["alerts_not_told"]
    assert "it answered 500" in lines[0]["detail"]
    assert "sesame" not in str(lines)
    assert "/hook" not in str(lines)
