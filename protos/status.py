"""How an error of `protos.errors` travels: gRPC status plus `google.rpc.ErrorInfo`."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from protos import errors

DOMAIN = "feddp"
DETAILS_KEY = "grpc-status-details-bin"

_BY_CODE: dict[str, type[errors.FeddpError]] = {
    kind.code: kind
    for kind in (
        errors.Malformed,
        errors.Unauthenticated,
        errors.NotAllowed,
        errors.NotFound,
        errors.Conflict,
        errors.WrongPhase,
        errors.TooLate,
        errors.BudgetRefused,
        errors.Unavailable,
        errors.Internal,
    )
}


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    box = any_pb2.Any()
    box.Pack(message)
    return box


def details(error: errors.FeddpError) -> bytes:
    """Serialized google.rpc.Status for the trailing metadata key `DETAILS_KEY`."""
    status = status_pb2.Status(code=grpc.StatusCode[error.code].value[0], message=error.message)
    status.details.append(_packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return bytes(status.SerializeToString())


def from_rpc(call: Any) -> errors.FeddpError:
    """The error that the peer raised, or one that says that the peer was not reached.

    `call` is a `grpc.RpcError` of the synchronous or the asyncio API.
    """
    code: grpc.StatusCode = call.code()
    text: str = call.details() or code.name
    metadata: Iterable[tuple[str, bytes]] = call.trailing_metadata() or ()
    for key, value in metadata:
        if key == DETAILS_KEY:
            return _from_details(value, code, text)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return errors.Unavailable("UNREACHABLE", text)
    kind = _BY_CODE.get(code.name, errors.RemoteError)
    return kind(code.name, text)


def _from_details(value: bytes, code: grpc.StatusCode, text: str) -> errors.FeddpError:
    status = status_pb2.Status.FromString(value)
    reason, retry_after_s = code.name, None
    for box in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if box.Unpack(info):
            reason = info.reason
        elif box.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    kind = _BY_CODE.get(code.name, errors.RemoteError)
    if kind is errors.BudgetRefused and retry_after_s is not None:
        kind = errors.Limited
    return kind(reason, status.message or text, retry_after_s=retry_after_s)
