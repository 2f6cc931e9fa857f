"""Alerts of a running coordinator, at a real HTTPS server in a process of its own."""

import hashlib
import hmac
import time
from pathlib import Path
from typing import Any

from tests.https_receiver import https_receiver
from tests.integration.federation import Federation, null_job, wait_for
from tests.integration.test_traces import HOSPITALS, change


def test_a_lost_node_and_a_waiting_job_are_told_and_their_ends_too(tmp_path: Path) -> None:
    """While the receiver is away a job runs as ever; then it is told what is wrong, signed."""
    made = Federation(tmp_path / "federation")
    secret = tmp_path / "secret"
    secret.write_text("sesame\n")
    with https_receiver(tmp_path / "receiver") as there:
        change(
            made.installation.config,
            "monitoring",
            alert_webhook=there.url,
            alert_webhook_ca=str(there.ca_file),
            alert_webhook_secret=str(secret),
            alert_every_s=1,
            alert_node_lost_s=1,
            alert_job_waiting_s=1,
        )
        made.start("coordinator")
        try:
            for name in HOSPITALS:
                made.add_node(name)
                made.start(name)
            made.wait_for_nodes(*HOSPITALS)
            there.answer("silence")
            made.kill("beta")
            done = made.submit(null_job(2))
            made.start("beta")
            assert made.wait_for_end(done).status == "completed"
            made.kill("beta")
            waits = made.submit(null_job(1))
            there.answer("200")

            def told(status: str) -> set[tuple[str, str]]:
                return {
                    (
                        one["labels"]["alertname"],
                        one["labels"].get("node", one["labels"].get("job_id")),
                    )
                    for posted in there.bodies
                    for one in posted["alerts"]
                    if one["status"] == status
                }

            wrong = {("NodeUnhealthy", "beta"), ("JobWaiting", waits)}
            wait_for("both are told", lambda: wrong <= told("firing"))
            made.start("beta")
            assert made.wait_for_end(waits).status == "completed"
            wait_for("both are over", lambda: wrong <= told("resolved"))
        finally:
            began_s = time.monotonic()
            made.stop()
        assert time.monotonic() - began_s < 15
        assert all(_is_signed(one, b"sesame") for one in there.requests)
        assert "sesame" not in made.log("coordinator")


def _is_signed(request: dict[str, Any], secret: bytes) -> bool:
    at, _, made = request["headers"]["X-Feddp-Signature"].removeprefix("t=").partition(",v1=")
    return hmac.compare_digest(
        made, hmac.new(secret, f"{at}.{request['body']}".encode(), hashlib.sha256).hexdigest()
    )
