"""Posts alerts to the one URL that the configuration names, over verified TLS, and nowhere else.

No redirect is followed, no proxy of the environment is asked, and of the answer only its status is
used: whoever answers cannot send the coordinator anywhere.
"""

import asyncio
import contextlib
import http.client
import ssl
import threading
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from coordinator.alerts.body import SIGNATURE, signature

CALL_TIMEOUT_S: Final = 10.0
"""For connecting, and for each byte of the answer."""

REACH_TIMEOUT_S: Final = 3.0
"""For `reach`, which others wait for."""

WHOLE_TIMEOUT_S: Final = 30.0
"""After it nobody waits any more."""


class NotTaken(Exception):
    """The receiver did not take it; the text says why and holds no part of the URL's path."""


class Webhook:
    """One receiver.

    Args:
        url: https://HOST[:PORT]/PATH.
        ca_file: whom to trust instead of the machine's authorities, PEM.
        secret_file: signs each body; read at each post, so that it can be changed.
    """

    def __init__(self, url: str, ca_file: Path | None, secret_file: Path | None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._ca_file, self._secret_file = ca_file, secret_file
        self._is_posting = False

    async def post(self, data: bytes) -> None:
        """Post a body, in a thread of its own.

        Raises:
            NotTaken: it was not answered with 2xx in time.
        """
        if self._is_posting:
            raise NotTaken("the receiver still holds the connection of the try before")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()

        def settle(why: str) -> None:
            self._is_posting = False
            if not done.done():
                done.set_result(why)

        def work() -> None:
            why = "the post ended in a way that this program does not know"
            try:
                why = self._post(data)
            finally:  # else no later one would be tried
                tell(why)

        def tell(why: str) -> None:
            with contextlib.suppress(RuntimeError):  # the coordinator has ended meanwhile
                loop.call_soon_threadsafe(settle, why)

        # A daemon: a receiver that answers nothing must not keep the coordinator from ending.
        self._is_posting = True
        threading.Thread(target=work, name="webhook", daemon=True).start()
        try:
            async with asyncio.timeout(WHOLE_TIMEOUT_S):
                why = await done
        except TimeoutError:
            raise NotTaken(f"no answer within {WHOLE_TIMEOUT_S:.0f} s") from None
        if why:
            raise NotTaken(why)

    def reach(self) -> str:
        """Why nothing could be posted now, as far as can be seen without a post: files, address and
        certificate; empty for nothing."""
        try:
            if self._secret_file is not None and not self._secret_file.read_bytes().strip():
                return "monitoring.alert_webhook_secret is an empty file"
        except OSError as error:
            return f"monitoring.alert_webhook_secret cannot be read ({error.strerror})"
        try:
            trusted = self._trusted()
        except OSError:
            return "monitoring.alert_webhook_ca cannot be read, or holds no certificate in PEM"
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=REACH_TIMEOUT_S, context=trusted
        )
        try:
            connection.connect()
        except (OSError, ValueError, http.client.HTTPException) as error:
            return _why(error)
        finally:
            connection.close()
        return ""

    def _trusted(self) -> ssl.SSLContext:
        trusted = ssl.create_default_context(cafile=self._ca_file)
        trusted.minimum_version = ssl.TLSVersion.TLSv1_2
        return trusted

    def _post(self, data: bytes) -> str:
        """Why it was not taken; empty if it was."""
        try:
            headers = {"Content-Type": "application/json", "User-Agent": "feddp"}
            if self._secret_file is not None:
                secret = self._secret_file.read_bytes().strip()
                if not secret:
                    return "monitoring.alert_webhook_secret is an empty file"
                headers[SIGNATURE] = signature(secret, data, time.time())
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CALL_TIMEOUT_S, context=self._trusted()
            )
            try:
                connection.request("POST", self._target, body=data, headers=headers)
                status = connection.getresponse().status
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            return _why(error)
        if 200 <= status < 300:
            return ""
        if 300 <= status < 400:
            return f"it answered {status}; redirects are not followed, write down the final URL"
        return f"it answered {status}"


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    said = getattr(error, "strerror", None)
    return f"{type(error).__name__}{f': {said}' if said else ''}"
