"""What an engineer signs of a job, so that no coordinator can invent work or change it.

A mandate says which job it is, at which nodes, until when, with which task, configuration and
model to begin with, and how much it may cost in all. The coordinator keeps and forwards the signed
bytes; a node checks them with a public key that its steward has pinned..
"""

import json
import math
import re
import secrets
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protos.content import digest_of, is_digest
from protos.errors import Malformed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DOMAIN: Final = b"feddp-mandate-v1\n"
BODY_BYTES_MAX: Final = 256 << 10
NODES_MAX: Final = 4096
FORMAT: Final = 1

Mechanism = Literal["dp", "none", "no_data"]
MECHANISMS: Final = ("dp", "none", "no_data")

_JOB_ID = re.compile(r"job-[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Mandate:
    """One job as its engineer means it.

    Attributes:
        job_id: chosen by the engineer, so that it can be signed.
        resumption: 0 at submission, one higher each time that the failed job is taken up again.
        public_key: raw Ed25519, hexadecimal, of who signs.
        task_hash: content hash of the task's code.
        task_config_digest: BLAKE3 of `task_config` as `canonical_json` writes it.
        spec_digest: BLAKE3 of the submitted bytes.
        initial_model: BLAKE3 of the model that round 1 begins with.
        nodes: who may be asked, ascending.
        mechanism: "none": the engineer asks for releases without noise; "no_data": nothing is read.
        epsilon_max: the most that the job may spend at one node in all, at the node's delta; 0
            where nothing is accounted for.
        rounds_max: the highest round.
        noise_multiplier, max_grad_norm, proximal_mu, delta: as the job file says; None where it
            leaves them to the coordinator, whose noise the nodes' own policies bound.
        signed_at_s, expires_at_s: seconds since the epoch; refused from `expires_at_s` on.
    """

    job_id: str
    resumption: int
    public_key: str
    project: str
    data_set: str
    task: str
    task_hash: str
    task_config_digest: str
    spec_digest: str
    initial_model: str
    nodes: tuple[str, ...]
    mechanism: Mechanism
    epsilon_max: float
    rounds_max: int
    noise_multiplier: float | None
    max_grad_norm: float | None
    proximal_mu: float | None
    delta: float | None
    signed_at_s: int
    expires_at_s: int

    def body(self) -> bytes:
        """The canonical bytes that are signed."""
        return canonical_json({**asdict(self), "format": FORMAT}).encode("ascii")


@dataclass(frozen=True, slots=True)
class Signed:
    """A mandate's bytes and the signature over them, neither looked at yet."""

    body: bytes
    signature: bytes


def new_job_id() -> str:
    """An id that no other job has."""
    return f"job-{secrets.token_hex(8)}"


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, ASCII, finite numbers only: what both sides take digests of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_digest(task_config: Any) -> str:
    """What `Mandate.task_config_digest` is for a configuration."""
    return digest_of(canonical_json(task_config).encode("ascii"))


def sign(key: "Ed25519PrivateKey", mandate: Mandate) -> Signed:
    """The engineer's signature."""
    body = mandate.body()
    return Signed(body, key.sign(DOMAIN + body))


def is_genuine(mandate: Mandate, signed: Signed) -> bool:
    """Whether the key that the mandate names has signed it. Whose key that is says nobody here."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(mandate.public_key))
        key.verify(signed.signature, DOMAIN + signed.body)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=64)
def parse(body: bytes) -> Mandate:
    """The mandate in these bytes, which must be exactly its canonical ones.

    Raises:
        Malformed: MANDATE_INVALID.
    """
    if len(body) > BODY_BYTES_MAX:
        raise _invalid(f"it has more than {BODY_BYTES_MAX} bytes")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise _invalid("it is not JSON") from None
    names = {one.name for one in fields(Mandate)}
    if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
        raise _invalid("it is of another format; upgrade the older of the two sides")
    if set(value) != names:
        odd = min(set(value) ^ names)
        raise _invalid(f"{odd[:40]!r} is missing or unknown")
    if not isinstance(value["nodes"], list):
        raise _invalid("nodes is not a list")
    mandate = Mandate(**{**value, "nodes": tuple(value["nodes"])})
    _check(mandate)
    try:
        same = mandate.body() == body
    except ValueError:
        same = False
    if not same:
        raise _invalid("its bytes are not the canonical ones")
    return mandate


def _check(mandate: Mandate) -> None:
    patterns = {
        "job_id": _JOB_ID,
        "public_key": _KEY,
        **dict.fromkeys(("project", "data_set", "task"), _NAME),
    }
    for name, pattern in patterns.items():
        text = getattr(mandate, name)
        if not isinstance(text, str) or not pattern.fullmatch(text):
            raise _invalid(f"{name} has not the form of one")
    for name in ("task_hash", "task_config_digest", "spec_digest", "initial_model"):
        text = getattr(mandate, name)
        if not isinstance(text, str) or not is_digest(text):
            raise _invalid(f"{name} is not a BLAKE3 digest")
    nodes = mandate.nodes
    named = all(isinstance(one, str) and _NAME.fullmatch(one) for one in nodes)
    if not (named and 1 <= len(nodes) <= NODES_MAX and list(nodes) == sorted(set(nodes))):
        raise _invalid(f"nodes are not 1 to {NODES_MAX} names, ascending and each once")
    if mandate.mechanism not in MECHANISMS:
        raise _invalid(f"mechanism is none of {', '.join(MECHANISMS)}")
    for name, least in (("resumption", 0), ("rounds_max", 1), ("signed_at_s", 0)):
        if not _is_count(getattr(mandate, name), least):
            raise _invalid(f"{name} is not a whole number of {least} or more")
    if not _is_count(mandate.expires_at_s, mandate.signed_at_s + 1):
        raise _invalid("it ends before it begins")
    for name in ("noise_multiplier", "max_grad_norm", "proximal_mu", "delta"):
        value = getattr(mandate, name)
        if value is not None and not _is_figure(value):
            raise _invalid(f"{name} is not a finite number of 0 or more")
    if not _is_figure(mandate.epsilon_max) or (mandate.mechanism == "dp") != (
        mandate.epsilon_max > 0
    ):
        raise _invalid("epsilon_max is above 0 where noise is added, and 0 where none is")


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 53


def _is_figure(value: object) -> bool:
    return type(value) is float and math.isfinite(value) and value >= 0


def _invalid(what: str) -> Malformed:
    return Malformed("MANDATE_INVALID", f"What was signed of the job is malformed: {what}.")
