"""What the enrolment port tells whoever has no certificate that holds: the coordinator's time."""

import time
from typing import Final

import grpc

from certs.credentials import channel_credentials
from node_agent.connection.proxy import Route
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc as pb_grpc

ASK_S_MAX: Final = 10.0


def ahead_there(route: Route, bundle: bytes) -> float | None:
    """Seconds that the coordinator's clock is before this machine's, to half the way there and
    back; None where it does not tell, as an older one.

    Args:
        route: to the enrolment port.
        bundle: the roots that the coordinator must chain to, PEM.
    """
    trusted = channel_credentials(bundle)
    with grpc.secure_channel(route.address, trusted, route.options()) as channel:
        began_s = time.time()
        try:
            answer = pb_grpc.EnrollmentStub(channel).Challenge(
                pb.ChallengeRequest(), timeout=ASK_S_MAX
            )
        except grpc.RpcError:
            return None
        heard_s = time.time()
    return float(answer.server_time_s) - (began_s + heard_s) / 2 if answer.server_time_s else None
