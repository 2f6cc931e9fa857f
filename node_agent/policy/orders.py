"""A work order as the agent understands it, checked for form; whether it is allowed comes later."""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Final

from certs.mandates import Signed
from privacy.ledger import Kind, Statement
from privacy.releases import Release
from protos.content import is_digest
from protos.errors import Malformed
from protos.feddp.v1 import federation_pb2 as pb
from protos.updates import UPDATE_DTYPES, UpdateDtype

TASK_CONFIG_BYTES_MAX: Final = 1 << 20
ORDER_BYTES_MAX: Final = 2 << 20

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt at one round. Two orders are equal exactly when they ask for the same work.

    Attributes:
        wire: the WorkOrder's bytes without `deadline_s`, which differs each time it is sent,
            `base_model`, which its digest names, and `traceparent`, which asks for nothing.
        account: without the node's name.
        release: what is to leave this node.
        priority: among orders that wait here, a higher one is worked at first.
        deadline_s: seconds from receipt until the round closes without us; 0 for unknown. It
            differs each time the order is sent, and two orders are equal without it.
        update_dtype: the form in which its values leave.
    """

    wire: bytes
    attempt_id: str
    job_id: str
    project: str
    round: int
    data_set: str
    account: str
    task: str
    task_hash: str
    unit: str
    declared_n: int
    release: Release
    max_grad_norm: float
    proximal_mu: float
    base_model_digest: str
    base_model_bytes: int
    target_epsilon: float
    delta: float
    update_dtype: UpdateDtype
    priority: int = 0
    deadline_s: int = field(default=0, compare=False)

    @classmethod
    def from_wire(cls, message: pb.WorkOrder) -> "Order":
        """Check and take over a message.

        Raises:
            Malformed: ORDER_INVALID, RELEASE_INVALID or STATEMENT_INVALID.
        """
        kept = pb.WorkOrder()
        kept.CopyFrom(message)
        kept.ClearField("deadline_s")
        kept.ClearField("base_model")
        kept.ClearField("traceparent")
        wire = kept.SerializeToString(deterministic=True)
        if len(wire) > ORDER_BYTES_MAX:
            raise _invalid(f"it has more than {ORDER_BYTES_MAX} bytes")
        for name in ("attempt_id", "job_id"):
            if not _ID.fullmatch(getattr(message, name)):
                raise _invalid(f"{name} is not 1 to 128 letters, digits, '.', '_' or '-'")
        for name in ("data_set", "account", "task", "project"):
            if not 1 <= len(getattr(message, name)) <= 128:
                raise _invalid(f"{name} is not 1 to 128 characters")
        for name in ("task_hash", "base_model_digest"):
            if not is_digest(getattr(message, name)):
                raise _invalid(f"{name} is not a BLAKE3 digest")
        for name in ("max_grad_norm", "proximal_mu", "target_epsilon", "delta"):
            value = getattr(message, name)
            if not (math.isfinite(value) and value >= 0):
                raise _invalid(f"{name} is not a finite number of 0 or more")
        if message.round < 1:
            raise _invalid("rounds count from 1")
        order = cls(
            wire=wire,
            attempt_id=message.attempt_id,
            job_id=message.job_id,
            project=message.project,
            round=message.round,
            data_set=message.data_set,
            account=message.account,
            task=message.task,
            task_hash=message.task_hash,
            unit=message.release.unit,
            declared_n=message.release.declared_n,
            release=_release(message.release),
            max_grad_norm=message.max_grad_norm,
            proximal_mu=message.proximal_mu,
            base_model_digest=message.base_model_digest,
            base_model_bytes=message.base_model_bytes,
            target_epsilon=message.target_epsilon,
            delta=message.delta,
            priority=message.priority,
            deadline_s=message.deadline_s,
            update_dtype=_update_dtype(message.update_dtype),
        )
        order.task_config()
        order.statement("node", "reserve")
        return order

    def task_config(self) -> dict[str, Any]:
        """The task's configuration, parsed.

        Raises:
            Malformed: ORDER_INVALID.
        """
        text = pb.WorkOrder.FromString(self.wire).task_config_json
        if len(text) > TASK_CONFIG_BYTES_MAX:
            raise _invalid(f"task_config has more than {TASK_CONFIG_BYTES_MAX} bytes")
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise _invalid("task_config is not JSON") from None
        if not isinstance(value, dict):
            raise _invalid("task_config is not a JSON object")
        return value

    def signed(self) -> Signed | None:
        """What an engineer signed of the job, as it came; None if nobody did."""
        message = pb.WorkOrder.FromString(self.wire)
        if not message.HasField("mandate"):
            return None
        return Signed(message.mandate.body, message.mandate.signature)

    def statement(self, node: str, kind: Kind) -> Statement:
        """What `node` books and signs for this order."""
        return Statement(
            kind=kind,
            attempt_id=self.attempt_id,
            project=self.project,
            node=node,
            account=f"{node}/{self.account}",
            dataset=self.data_set,
            job_id=self.job_id,
            round=self.round,
            unit=self.unit,
            declared_n=self.declared_n,
            mechanism=self.release.mechanism,
            noise_multiplier=self.release.noise_multiplier,
            sample_rate=self.release.sample_rate,
            steps=self.release.steps,
        )


def _release(message: pb.Release) -> Release:
    noise = message.noise_multiplier if message.HasField("noise_multiplier") else None
    # Release checks the mechanism's name itself.
    return Release(message.mechanism, noise, message.sample_rate, message.steps)  # type: ignore[arg-type]


def _update_dtype(name: str) -> UpdateDtype:
    """The form that an order names; a coordinator of before there was a choice names none."""
    for known in UPDATE_DTYPES:
        if (name or "float32") == known:
            return known
    raise _invalid(f"update_dtype is none of {', '.join(UPDATE_DTYPES)}")


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _invalid(what: str) -> Malformed:
    return Malformed(
        "ORDER_INVALID", f"The work order is malformed: {what}. Upgrade the older of the two sides."
    )
