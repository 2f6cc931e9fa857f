"""An engineer's own key, and what is signed with it when a job is submitted or resumed."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from certs.enrolment import load_ledger_key, new_ledger_key, public_bytes_of, save_private_key
from certs.keyfiles import write_new
from certs.mandates import (
    Mandate,
    Mechanism,
    Signed,
    config_digest,
    is_genuine,
    new_job_id,
    parse,
    sign,
)
from feddp.jobfile import JobFacts
from privacy.filters import EPSILON_MAX
from protos.content import digest_of, write_durable
from protos.errors import FeddpError, Malformed, NotAllowed
from protos.feddp.v1 import jobs_pb2
from protos.feddp.v1.mandates_pb2 import SignedMandate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE: Final = "orders.key"
PUBLIC_FILE: Final = "orders.pub"
"""In a profile's folder. The second goes to the hospitals, by another way than the coordinator."""

RESUMED_FILE: Final = "resumed.json"
"""In a profile's folder, beside the key: job -> how often it was signed to go on. A coordinator
that was restored from a backup may not know it, and nodes take no number for a second text."""

VALID_S: Final = 7 * 86_400
EPSILON_SLACK: Final = 1.25
"""Of a job that fixes its noise: what the dearest account would book for it by its quote, and a
quarter for tries that come to nothing and are charged all the same."""


@dataclass(frozen=True, slots=True)
class Caps:
    """How far a signature goes.

    Attributes:
        nodes: empty for every node that publishes the data set now.
        epsilon_max: None for the job's target, or else what accounts would book by its quote, and a
            quarter more.
        rounds_max: None for the rounds that the job file or its quote says.
    """

    nodes: tuple[str, ...] = ()
    valid_s: int = VALID_S
    epsilon_max: float | None = None
    rounds_max: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What is about to be submitted.

    Attributes:
        spec: the job file's bytes.
        initial_model: digest of the uploaded model.
        publishers: nodes that publish the data set.
    """

    spec: bytes
    facts: JobFacts
    task_hash: str
    initial_model: str
    publishers: Sequence[str]


def make_key(folder: Path) -> str:
    """Make the key of a profile, 0600, and write its public half beside it; hexadecimal.

    Raises:
        Conflict: FILE_EXISTS.
    """
    key = new_ledger_key()
    save_private_key(folder / KEY_FILE, key)
    text = public_bytes_of(key).hex()
    write_new(folder / PUBLIC_FILE, f"{text}\n".encode(), 0o644)
    return text


def load_key(folder: Path) -> "Ed25519PrivateKey | None":
    """The key of a profile; None if it has none.

    Raises:
        Malformed: KEY_INVALID.
    """
    path = folder / KEY_FILE
    return load_ledger_key(path) if path.exists() else None


def public_key(folder: Path) -> str:
    """The public half of a profile's key, hexadecimal.

    Raises:
        NotFound: KEY_MISSING.
        Malformed: KEY_INVALID.
    """
    return public_bytes_of(load_ledger_key(folder / KEY_FILE)).hex()


def mandate_for(
    key: "Ed25519PrivateKey",
    work: Work,
    caps: Caps,
    quote: Callable[[], jobs_pb2.QuoteJobResponse],
) -> SignedMandate:
    """Sign a new job.

    Args:
        quote: asks the coordinator; only where the job file leaves the rounds or the epsilon open.

    Raises:
        Malformed: EPSILON_MAX_INVALID, EPSILON_MAX_MISSING, JOB_INVALID.
        NotAllowed: NODE_UNKNOWN.
        FeddpError: as `quote`.
    """
    facts, now_s = work.facts, int(time.time())
    if caps.epsilon_max is not None and not 0.0 < caps.epsilon_max < math.inf:
        raise Malformed(
            "EPSILON_MAX_INVALID",
            f"--epsilon-max is a number above 0, and {caps.epsilon_max:g} is none that a job could "
            "be signed for; nothing is sent",
        )
    unknown = sorted(set(caps.nodes) - set(work.publishers))
    if unknown:
        raise NotAllowed(
            "NODE_UNKNOWN", f"{unknown[0]} publishes no data set {facts.data_set}; nothing is sent"
        )
    mechanism = _mechanism(facts)
    rounds_max, epsilon_max = caps.rounds_max or facts.rounds, 0.0
    asked: jobs_pb2.QuoteJobResponse | None = None
    if rounds_max is None:
        asked = quote()
        rounds_max = max(1, asked.rounds_planned)
    if mechanism == "dp":
        given = caps.epsilon_max
        if given is None:
            given = facts.privacy("target_epsilon")
        epsilon_max = given if given is not None else _quoted(asked or quote())
    mandate = Mandate(
        job_id=new_job_id(),
        resumption=0,
        public_key=public_bytes_of(key).hex(),
        project=facts.project,
        data_set=facts.data_set,
        task=facts.task,
        task_hash=work.task_hash,
        task_config_digest=_config_digest(facts.task_config),
        spec_digest=digest_of(work.spec),
        initial_model=work.initial_model,
        nodes=tuple(sorted(set(caps.nodes or work.publishers))),
        mechanism=mechanism,
        epsilon_max=float(epsilon_max),
        rounds_max=rounds_max,
        noise_multiplier=facts.privacy("noise_multiplier"),
        max_grad_norm=facts.privacy("max_grad_norm"),
        proximal_mu=facts.federation("proximal_mu"),
        delta=facts.privacy("delta"),
        signed_at_s=now_s,
        expires_at_s=now_s + caps.valid_s,
    )
    return _on_the_wire(sign(key, mandate))


def mandate_to_resume(
    key: "Ed25519PrivateKey", before: SignedMandate, job_id: str, folder: Path
) -> SignedMandate:
    """Sign the same job once more, for going on; for as long as before, as a hospital may take no
    longer one.

    Only what this key has signed before is signed again, whatever a coordinator shows.

    Args:
        folder: the profile's, where it is kept that the job was signed so often.

    Raises:
        NotAllowed: MANDATE_OTHER_ENGINEER.
        Malformed: MANDATE_INVALID.
    """
    signed = Signed(before.body, before.signature)
    mandate, now_s = parse(signed.body), int(time.time())
    mine = mandate.public_key == public_bytes_of(key).hex() and is_genuine(mandate, signed)
    if not mine or mandate.job_id != job_id:
        raise NotAllowed(
            "MANDATE_OTHER_ENGINEER",
            f"job {job_id} was not signed with this key; whoever signed it can resume it",
        )
    again = replace(
        mandate,
        resumption=_next_resumption(folder, job_id, mandate.resumption),
        signed_at_s=now_s,
        expires_at_s=now_s + mandate.expires_at_s - mandate.signed_at_s,
    )
    return _on_the_wire(sign(key, again))


def _next_resumption(folder: Path, job_id: str, known: int) -> int:
    """One more than was ever signed from this folder, or than the coordinator knows; on the disk
    before it is signed, where that can be written."""
    path, kept = folder / RESUMED_FILE, dict[str, Any]()
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        kept = found if isinstance(found, dict) else {}
    last = kept.get(job_id)
    number = max(known, last if type(last) is int else 0) + 1
    with contextlib.suppress(FeddpError, OSError):
        write_durable(path, json.dumps({**kept, job_id: number}, sort_keys=True).encode())
    return number


def _on_the_wire(signed: Signed) -> SignedMandate:
    return SignedMandate(body=signed.body, signature=signed.signature)


def _mechanism(facts: JobFacts) -> Mechanism:
    from node_agent.tasks.registry import NULL

    if facts.task == NULL:
        return "no_data"
    return "none" if facts.without_noise else "dp"


def _quoted(answer: jobs_pb2.QuoteJobResponse) -> float:
    # Nodes count what was signed by their accounts' filters. An older coordinator tells only what
    # the job comes to by itself, which is less in an rdp account.
    told = (max(one.epsilon_job, one.epsilon_job_booked) for one in answer.nodes)
    figures = [epsilon for epsilon in told if epsilon > 0]
    if any(epsilon > EPSILON_MAX for epsilon in figures):
        raise Malformed(
            "EPSILON_MAX_MISSING",
            f"the coordinator quotes the job at more than epsilon {EPSILON_MAX:g}, which no "
            "account allows: say with --epsilon-max how much it may spend at one node in all",
        )
    if not figures:
        raise Malformed(
            "EPSILON_MAX_MISSING",
            "the job file fixes the noise, and no node can be quoted now: say with --epsilon-max "
            "how much the job may spend at one node in all",
        )
    return min(max(figures) * EPSILON_SLACK, EPSILON_MAX)


def _config_digest(task_config: Mapping[str, Any]) -> str:
    try:
        return config_digest(dict(task_config))
    except (TypeError, ValueError):
        raise Malformed(
            "JOB_INVALID", "task_config holds a value that is no text, number, list or mapping"
        ) from None
