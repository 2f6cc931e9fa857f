"""One connection to a coordinator: how it is kept alive, and what its calls raise and wait for."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import grpc

from certs.credentials import channel_credentials
from feddp.profile import Profile
from protos.errors import RemoteError, Unavailable
from protos.status import from_rpc

_PAUSE_S_MIN = 0.2
_PAUSE_S_MAX = 5.0
_TRIES_MAX = 6

_RETRIED = {
    "methodConfig": [
        {
            "name": [
                {"service": f"feddp.v1.{name}"}
                for name in ("Jobs", "Models", "Budgets", "Nodes", "Users", "Operations")
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.3s",
                "maxBackoff": "3s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        {
            "name": [
                {"service": "feddp.v1.Nodes", "method": "CreateToken"},
                {"service": "feddp.v1.Users", "method": "InviteUser"},
            ]
        },
    ]
}
"""Every call of these services may be sent again, but those that make a token. So nobody notices
that one of several coordinators takes over from another."""

_OPTIONS = (
    ("grpc.service_config", json.dumps(_RETRIED)),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 300),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Also how long a handshake may take: one of several coordinators that hangs takes connections
    # and answers nothing, and the next try may get to another. It is 20 s else, as long as a call.
    ("grpc.min_reconnect_backoff_ms", 6_000),
)

T = TypeVar("T")


def pauses_s() -> Iterator[float]:
    """Seconds to wait before each further try, for ever."""
    pause_s = _PAUSE_S_MIN
    while True:
        yield pause_s
        pause_s = min(_PAUSE_S_MAX, pause_s * 2)


class Connection:
    """One person's channel; close it.

    Attributes:
        channel: for the stubs; what they raise is put into words by `errors` and `again`.
    """

    def __init__(self, profile: Profile) -> None:
        """Connect lazily.

        Raises:
            Malformed: CREDENTIALS_INVALID.
        """
        self._profile = profile
        credentials = channel_credentials(profile.bundle, profile.key, profile.chain)
        self.channel = grpc.secure_channel(profile.address, credentials, options=_OPTIONS)

    def close(self) -> None:
        """End it; what runs at the coordinator goes on."""
        self.channel.close()

    @contextmanager
    def errors(self, stream_ends: tuple[grpc.StatusCode, ...] = ()) -> Iterator[None]:
        """Turn a status of gRPC into an error of ours that names the address.

        `stream_ends` are statuses with which a stream that can be opened again just ends.
        """
        try:
            yield
        except grpc.RpcError as call:
            code = call.code()
            error = from_rpc(call)
            if code in stream_ends:
                return
            if error.reason == "UNREACHABLE":
                raise self.unreached() from None
            if error.reason == "UNIMPLEMENTED":
                raise RemoteError(
                    error.reason,
                    f"the coordinator at {self._profile.address} is older than this program, and "
                    "does not know this request; use the program of its version, or have the "
                    "coordinator upgraded",
                ) from None
            raise error from None

    def unreached(self) -> Unavailable:
        """What is said where nobody answers."""
        return Unavailable(
            "UNREACHABLE",
            f"the coordinator at {self._profile.address} cannot be reached, or its certificate or "
            f"ours ({self._profile.folder}) is not accepted; check that it runs, and that this "
            "profile is its own and has its present address (profile.yaml in that folder). Where "
            "there are several coordinators, another may be taking over: try again in some seconds",
        )

    def again(self, call: Callable[[], T]) -> T:
        """Run a call that may be sent again; wait for a peer that was reached and went away."""
        for pause_s in islice(pauses_s(), _TRIES_MAX - 1):
            try:
                with self.errors():
                    return call()
            except Unavailable:
                time.sleep(pause_s)
        with self.errors():
            return call()
