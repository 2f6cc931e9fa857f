"""The one interceptor: every rpc passes identity, role and error mapping here."""

# grpc's classes are generic in their type stubs only: annotations must stay unevaluated.
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from sqlalchemy.exc import DBAPIError

from certs.peer import Peer
from coordinator.authz import WITHOUT_CERTIFICATE, Caller, allow
from coordinator.identities import Identities
from coordinator.observing.metrics import Metrics
from coordinator.store.engines import unserved
from protos import status, tracing
from protos.errors import FeddpError, Internal, NotAllowed, Unauthenticated

log = structlog.get_logger(__name__)

REPEAT_LOG_S = 60.0

LOOK_AGAIN_S = 2.0
"""How often the caller of a stream is looked up again while it lasts."""

WATCHES_ITSELF = frozenset({"Federation/Session"})
"""It ends its stream after what it has queued for the node."""

Context = grpc.aio.ServicerContext[Any, Any]

_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")
_peer: contextvars.ContextVar[Peer] = contextvars.ContextVar("peer")


def caller() -> Caller:
    """Who called the rpc that is being served."""
    return _caller.get()


def traceparent(context: Context) -> str:
    """Where the caller says that it stands in a trace; empty where it says nothing."""
    said = [value for name, value in context.invocation_metadata() or () if name == tracing.HEADER]
    return said[0] if len(said) == 1 and isinstance(said[0], str) else ""


def peer() -> Peer:
    """The certificate that called the rpc that is being served."""
    return _peer.get()


class Gate(grpc.aio.ServerInterceptor):
    """Admits callers and maps errors.

    Args:
        identities: None on the enrolment port, where callers have no certificate.
        superseded: told of each superseded certificate that is shown.
        lost: told of each certificate that is not registered, PEM, and whose it is. Behind a
            gateway that ends TLS nobody here sees such a certificate.
    """

    def __init__(
        self,
        identities: Identities | None,
        metrics: Metrics,
        superseded: Callable[[Peer], None] = lambda _: None,
        lost: Callable[[bytes, Peer], None] = lambda *_: None,
    ) -> None:
        self._lost = lost
        self._identities = identities
        self._superseded = superseded
        self._metrics = metrics
        self._said_at_s: dict[str, float] = {}
        self._served: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of the method that is called."""
        path: str = handler_call_details.method
        served = self._served.get(path)
        if served is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            # There are as many paths as methods: a path that is not served has no handler.
            method = path.rpartition(".")[2]
            lasts = handler.request_streaming or handler.response_streaming
            served = self._served[path] = _wrapped(handler, _Call(self, path, method, lasts))
        return served

    def admit(self, context: Context, method: str) -> None:
        """Let the caller in, or raise."""
        if self._identities is None:
            if method not in WITHOUT_CERTIFICATE:
                raise NotAllowed("ROLE_REQUIRED", f"{method} is not served on the enrolment port")
            return
        seen = self._identities.peer(
            context.auth_context(),  # type: ignore[arg-type]
            context.invocation_metadata(),
        )
        try:
            who = self._identities.caller(seen)
        except Unauthenticated as error:
            if error.reason == "CERTIFICATE_SUPERSEDED":
                self._say_superseded(self._identities, seen)
                self._superseded(seen)
            elif error.reason == "CERTIFICATE_UNKNOWN" and seen.spiffe_id.kind == "node":
                self._lost(context.auth_context()["x509_pem_cert"][0], seen)  # type: ignore[index]
            raise
        allow(method, who)
        _peer.set(seen)
        _caller.set(who)

    @contextlib.asynccontextmanager
    async def watching(self, method: str, lasts: bool) -> AsyncIterator[None]:
        """Look the caller up again while a stream lasts, which outlives its certificate.

        Raises:
            FeddpError: the caller may not speak any more; what it was served is cancelled.
        """
        if self._identities is None or not lasts or method in WATCHES_ITSELF:
            yield
            return
        watch = asyncio.create_task(self._until_refused(self._identities, peer()))
        serving = asyncio.current_task()

        def cut(done: asyncio.Task[FeddpError]) -> None:
            if serving is not None and not done.cancelled():
                serving.cancel()

        watch.add_done_callback(cut)
        try:
            yield
        except asyncio.CancelledError:
            if watch.done() and not watch.cancelled() and serving is not None:
                serving.uncancel()
                raise watch.result() from None
            raise
        finally:
            watch.cancel()

    async def _until_refused(self, identities: Identities, seen: Peer) -> FeddpError:
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                identities.caller(seen)
            except FeddpError as error:
                return error

    def _say_superseded(self, identities: Identities, seen: Peer) -> None:
        """A node's own agent shows its old certificate no more: this may be a thief, or a copy."""
        now_s, said_at_s = time.monotonic(), self._said_at_s.get(seen.fingerprint, -math.inf)
        if now_s - said_at_s < REPEAT_LOG_S:
            return
        self._said_at_s[seen.fingerprint] = now_s
        log.warning(
            "superseded_certificate_shown",
            identity=str(seen.spiffe_id),
            generation=identities.generation(seen),
            fingerprint=seen.fingerprint,
            do="it was refused; unless the node renewed just now, ask the hospital whether a copy "
            "or a restored backup of its folder runs, or its old key was stolen",
        )

    def count(self, path: str, code: str, seconds: float) -> None:
        """Count a finished rpc."""
        self._metrics.request(path, code, seconds)


class _Call:
    """One method behind the gate."""

    def __init__(self, gate: Gate, path: str, method: str, lasts: bool) -> None:
        self._gate = gate
        self._path = path
        self._method = method
        self._lasts = lasts

    async def unary(
        self, behavior: Callable[[Any, Context], Awaitable[Any]], request: Any, context: Context
    ) -> Any:
        """Serve a method that answers once."""
        began_s, code = time.monotonic(), "OK"
        try:
            self._gate.admit(context, self._method)
            async with self._gate.watching(self._method, self._lasts):
                answering = behavior(request, context)
                del request  # see `_forget_frames`
                return await answering
        except FeddpError as error:
            code = error.code
            _forget_frames(error)
            await _abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            code = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001 - becomes an incident
            found = _told(self._method, error)
            code = found.code
            _forget_frames(error)
            await _abort(context, found)
        finally:
            self._gate.count(self._path, code, time.monotonic() - began_s)

    async def stream(
        self, behavior: Callable[[Any, Context], AsyncIterator[Any]], request: Any, context: Context
    ) -> AsyncIterator[Any]:
        """Serve a method that answers many times."""
        began_s, code = time.monotonic(), "OK"
        try:
            self._gate.admit(context, self._method)
            async with self._gate.watching(self._method, self._lasts):
                async for response in behavior(request, context):
                    yield response
        except FeddpError as error:
            code = error.code
            await _abort(context, error)
        except (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError):
            code = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001 - becomes an incident
            found = _told(self._method, error)
            code = found.code
            await _abort(context, found)
        finally:
            self._gate.count(self._path, code, time.monotonic() - began_s)


def _wrapped(
    handler: grpc.RpcMethodHandler[Any, Any], call: _Call
) -> grpc.RpcMethodHandler[Any, Any]:
    forms: dict[tuple[bool, bool], tuple[Any, Any, Any]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary, call.unary),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary, call.unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream, call.stream),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream, call.stream),
    }
    make, behavior, serve = forms[(handler.request_streaming, handler.response_streaming)]

    if handler.response_streaming:

        async def streaming(request: Any, context: Context) -> AsyncIterator[Any]:
            async for response in serve(behavior, request, context):
                yield response

        served: Any = streaming
    else:

        async def answering(request: Any, context: Context) -> Any:
            serving = serve(behavior, request, context)
            del request  # see `_forget_frames`
            return await serving

        served = answering
    wrapped: grpc.RpcMethodHandler[Any, Any] = make(
        served,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return wrapped


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what an error's frames hold, the request above all.

    gRPC keeps the exception of a call that was aborted with the call, and through its frames the
    exception keeps the call: each refused request would stay until garbage is looked for.
    """
    while error is not None:
        error.__traceback__ = None
        error.__cause__, error = None, error.__context__


async def _abort(context: Context, error: FeddpError) -> None:
    await context.abort(
        grpc.StatusCode[error.code],
        error.message,
        trailing_metadata=((status.DETAILS_KEY, status.details(error)),),
    )


def _told(method: str, error: Exception) -> FeddpError:
    """A database that is away or busy is no fault of ours; anything else is an incident."""
    if isinstance(error, DBAPIError) and (away := unserved(error)) is not None:
        log.warning("rpc_unserved", method=method, reason=away.reason)
        return away
    return _incident(method)


def _incident(method: str) -> Internal:
    incident = secrets.token_hex(4)
    log.exception("rpc_failed", method=method, incident=incident)
    return Internal(
        "INTERNAL",
        f"the coordinator failed at {method}; its log has the cause under incident {incident}",
    )
