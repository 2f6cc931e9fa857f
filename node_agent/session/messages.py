"""What the agent machine says of an attempt, as it is written on the wire."""

from collections.abc import Callable

from node_agent.session import commands as c
from protos.feddp.v1 import federation_pb2 as pb


def message_of(
    command: c.SendHeartbeat | c.SendAccepted | c.SendRefused | c.SendNoUpdate,
    traceparent: Callable[[str], str] = lambda _attempt_id: "",
) -> pb.AgentMessage:
    """The message that a command sends.

    Args:
        traceparent: of an attempt's span here; empty for none.
    """
    match command:
        case c.SendHeartbeat():
            return pb.AgentMessage(heartbeat=pb.Heartbeat())
        case c.SendAccepted(attempt_id, signature):
            accepted = pb.OrderAccepted(
                attempt_id=attempt_id,
                reserve_signature=signature,
                traceparent=traceparent(attempt_id),
            )
            return pb.AgentMessage(order_accepted=accepted)
        case c.SendRefused(attempt_id, reason, message, signature, steps_possible):
            refused = pb.OrderRefused(
                attempt_id=attempt_id,
                reason=reason,
                message=message,
                void_signature=signature,
                steps_possible=steps_possible,
                traceparent=traceparent(attempt_id),
            )
            return pb.AgentMessage(order_refused=refused)
        case c.SendNoUpdate(attempt_id, signature, accepted, failure_class):
            empty = pb.NoUpdate(
                attempt_id=attempt_id,
                post_signature=signature,
                reserve_signature=accepted,
                failure_class=failure_class,
                traceparent=traceparent(attempt_id),
            )
            return pb.AgentMessage(no_update=empty)
