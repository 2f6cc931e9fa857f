"""What is posted: the body that Prometheus's Alertmanager posts (webhook, version 4), and how it is
signed. Pure."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from coordinator.alerts.conditions import Alarm

ALARMS_MAX: Final = 500
"""In one body; how many more there are is said."""

SIGNATURE: Final = "X-Feddp-Signature"
_NEVER: Final = "0001-01-01T00:00:00Z"
"""How Alertmanager writes the end of what goes on."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the receiver knows: alarms by fingerprint, each with when it was first seen."""

    alarms: Mapping[str, tuple[Alarm, float]]

    def seeing(self, now: Sequence[Alarm], now_s: float) -> "Told":
        """The same once it knows what is wrong now."""
        return Told(
            {one.fingerprint: self.alarms.get(one.fingerprint, (one, now_s)) for one in now}
        )


@dataclass(frozen=True, slots=True)
class Notice:
    """What has changed since the receiver was told last; `began` and `ended` with when it began."""

    began: tuple[tuple[Alarm, float], ...]
    ended: tuple[tuple[Alarm, float], ...]

    def __bool__(self) -> bool:
        return bool(self.began or self.ended)


def changes(before: Told, after: Told) -> Notice:
    """What the receiver must be told."""
    new, old = after.alarms, before.alarms
    return Notice(
        tuple(one for key, one in new.items() if key not in old),
        tuple(one for key, one in old.items() if key not in new),
    )


def body(notice: Notice, coordinator: str, now_s: float) -> bytes:
    """The JSON that is posted.

    Args:
        coordinator: the trust domain; a label of every alarm.
    """
    # What began goes first: of too many it is what must not be lost.
    told = [_alert(one, at_s, coordinator, None) for one, at_s in notice.began]
    told += [_alert(one, at_s, coordinator, now_s) for one, at_s in notice.ended]
    shown = told[:ALARMS_MAX]
    return json.dumps(
        {
            "version": "4",
            "groupKey": f'{{}}:{{coordinator="{coordinator}"}}',
            "truncatedAlerts": len(told) - len(shown),
            "status": "firing" if notice.began else "resolved",
            "receiver": "feddp",
            "groupLabels": {"coordinator": coordinator},
            "commonLabels": {"coordinator": coordinator},
            "commonAnnotations": {},
            "externalURL": "",
            "alerts": shown,
        }
    ).encode()


def signature(secret: bytes, data: bytes, now_s: float) -> str:
    """The header's value: `t=SECONDS,v1=HEX`, HMAC-SHA256 over SECONDS, a full stop and the body;
    a receiver refuses an old time, so that nobody can post it again."""
    at = str(int(now_s))
    made = hmac.new(secret, at.encode() + b"." + data, hashlib.sha256).hexdigest()
    return f"t={at},v1={made}"


def _alert(alarm: Alarm, began_s: float, coordinator: str, ended_s: float | None) -> dict[str, Any]:
    return {
        "status": "firing" if ended_s is None else "resolved",
        "labels": {
            "alertname": alarm.name,
            "severity": alarm.severity,
            "coordinator": coordinator,
            **dict(alarm.labels),
        },
        "annotations": {"summary": alarm.summary, "description": alarm.description},
        "startsAt": _moment(began_s),
        "endsAt": _NEVER if ended_s is None else _moment(ended_s),
        "generatorURL": "",
        "fingerprint": alarm.fingerprint,
    }


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
