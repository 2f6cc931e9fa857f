"""What the gate does with calls that fail."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from coordinator.observing.metrics import Metrics
from coordinator.rpc.gate import Gate
from protos.errors import Malformed

PATH = "/feddp.v1.Federation/SubmitUpdate"


class OpenGate(Gate):
    """Admits everybody."""

    def admit(self, context: Any, method: str) -> None:
        return None


class Request:
    """As it came; a weak reference tells whether anybody still has it."""


@pytest.mark.parametrize("make", [lambda: Malformed("WRONG", "no"), lambda: ValueError("a bug")])
def test_a_request_that_was_refused_is_not_kept(make: Callable[[], Exception]) -> None:
    """Not until garbage is looked for, either: that may be after hundreds of large ones."""
    seen: list[weakref.ref[Request]] = []
    kept: list[bool] = []

    def parsed(_raw: bytes) -> Request:
        request = Request()
        seen.append(weakref.ref(request))
        return request

    async def refuse(request: Request, context: Any) -> bytes:
        try:
            vars(request)["what is not there"]
        except KeyError:
            raise make() from None
        return b""

    async def run() -> None:
        server = grpc.aio.server(interceptors=[OpenGate(None, Metrics())])
        handler = grpc.unary_unary_rpc_method_handler(refuse, request_deserializer=parsed)
        service, method = PATH[1:].split("/")
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary(PATH)
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    with pytest.raises(grpc.RpcError):
                        await call(b"data")
                await asyncio.sleep(0.1)
                kept.extend(one() is not None for one in seen)
            finally:
                gc.enable()
        await server.stop(None)

    asyncio.run(run())
    assert kept == [False, False, False]
