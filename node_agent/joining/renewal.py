"""A new key and certificate before the present one ends; at every moment the folder holds a pair
that works.

1. `next.key` is written beside the present key, whole and synced, before anybody is asked, so that
   a request whose answer was lost is repeated with the same key.
2. The coordinator answers with a certificate for that key. It is checked as an enrolment's is.
3. The roots that come with it are written, if they are others. Then it is renamed over `node.crt`.
   This is the switch: `load_identity` takes the key that the certificate is for, whichever of the
   two files it is in.
4. `next.key` is renamed over `node.key` (`identity.settle`, again at each start).
5. The agent connects with the new certificate and moves its session there. Only then does the
   coordinator refuse the old one, which the folder no longer needs.

A certificate that has ended is replaced in the same steps, but asked for on the enrolment port,
where a signature by its key over the coordinator's nonce takes the place of the handshake.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from certs.credentials import channel_credentials
from certs.enrolment import load_certificate_key, make_csr, new_key
from certs.issued import check_bundle, check_issued
from certs.keyfiles import is_encrypted, key_in, stored_pem
from certs.proofs import prove_recovery
from node_agent.connection.backoff import Backoff, is_shut_out
from node_agent.connection.clock import SET_CLOCK
from node_agent.joining.identity import (
    BUNDLE,
    CHAIN,
    KEY,
    NEXT_KEY,
    Identity,
    load_identity,
    settle,
)
from protos.content import write_durable
from protos.errors import FeddpError, Malformed, NotFound
from protos.feddp.v1 import enrollment_pb2, enrollment_pb2_grpc
from protos.feddp.v1 import renewal_pb2 as pb
from protos.feddp.v1 import renewal_pb2_grpc as pb_grpc
from protos.status import from_rpc

log = structlog.get_logger(__name__)

LOOK_S: Final = 60.0
"""Longest sleep: a machine that was suspended, or whose clock was set, sees soon that it is due."""

CALL_TIMEOUT_S: Final = 30.0
TRY_AGAIN_S_MAX: Final = 900.0
TRIES_MIN: Final = 20
"""At least so many fit between the first try and the certificate's end, however short its life."""

AT_MOST_IN_WINDOW: Final = 4
"""Renewals that succeed in the last third of a life; 14 hours apart, of 168. If the clocks differ
by days each new certificate may look due at once, and must not be asked for again at once."""


ENDED: Final = "it has ended by this machine's clock"


class Renewal:
    """Renews the certificate of one agent whenever it is due.

    Args:
        folder: DIR/identity.
        identity: as it was read from there.
        channel: a connection with that certificate.
        adopt: takes a newer identity into use, and gives a connection with it.
        enrolment: "host:port" of the enrolment port; empty where it is not known.
        options: of the connection there, such as a proxy's.
        refused: takes why the coordinator gives no certificate in the place of one that has ended:
            no session can tell it then.
        now: aware.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        channel: grpc.aio.Channel,
        adopt: Callable[[Identity], grpc.aio.Channel],
        enrolment: str = "",
        options: Sequence[tuple[str, Any]] = (),
        refused: Callable[[FeddpError], None] = lambda _error: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.identity = identity
        self._folder = folder
        self._stub = pb_grpc.RenewalStub(channel)
        self._adopt = adopt
        self._enrolment = enrolment
        self._options = options
        self._refused = refused
        self._now = now
        self._sleep = sleep
        self._backoff = self._new_backoff()
        self._said_expired = False

    async def run(self) -> None:
        """Renew, for ever. A bug ends the agent; whatever else goes wrong is tried again."""
        try:
            await asyncio.to_thread(settle, self._folder)
        except OSError as error:
            self._failed(_not_written(self._folder, error))
        while True:
            await self._sleep(await self._step())

    async def _step(self) -> float:
        """Do what is due; seconds until the next look."""
        now = self._now()
        expired = now >= self.identity.expires_at
        if expired:
            self._say_expired()
            if not self._enrolment:
                return LOOK_S
        elif now < self.identity.renews_at:
            return min(LOOK_S, (self.identity.renews_at - now).total_seconds())
        try:
            await self.renew(recover=expired)
        except grpc.RpcError as error:
            found = from_rpc(error)
            if expired and not found.retryable:
                self._refused(found)
            return self._failed(found)
        except FeddpError as error:
            return self._failed(error)
        except OSError as error:
            return self._failed(_not_written(self._folder, error))
        self._backoff = self._new_backoff()
        return self._window_s() / AT_MOST_IN_WINDOW

    async def renew(self, *, recover: bool = False) -> None:
        """One renewal, from wherever an earlier one stopped.

        Args:
            recover: the present certificate has ended.

        Raises:
            grpc.RpcError: the coordinator did not answer, or refused.
            Malformed: RENEWAL_ANSWER_INVALID.
            OSError: the folder takes no more.
        """
        key = await asyncio.to_thread(self._begin)
        if key is not None:
            csr = make_csr(key)
            try:
                if recover:
                    chain, bundle = await self._recovered(csr)
                else:
                    request = pb.RenewRequest(csr=csr)
                    answer = await self._stub.Renew(request, timeout=CALL_TIMEOUT_S)
                    chain, bundle = answer.certificate_chain, answer.trust_bundle
            except grpc.RpcError as error:
                if from_rpc(error).reason == "CSR_KEY_USED":
                    await asyncio.to_thread((self._folder / NEXT_KEY).unlink)
                raise
            check_renewed(self.identity, key, chain, bundle, self._now())
            await asyncio.to_thread(switch, self._folder, chain, bundle)
        self.identity = await asyncio.to_thread(load_identity, self._folder)
        self._stub = pb_grpc.RenewalStub(self._adopt(self.identity))
        self._said_expired = False
        log.info(
            "certificate_renewed",
            node=self.identity.node,
            until=self.identity.expires_at.isoformat(),
            renews_at=self.identity.renews_at.isoformat(timespec="seconds"),
        )

    async def _recovered(self, csr: bytes) -> tuple[bytes, bytes]:
        """(chain, bundle) from the enrolment port, for a certificate that has ended."""
        trusted = channel_credentials(self.identity.bundle)
        async with grpc.aio.secure_channel(
            self._enrolment, trusted, options=self._options
        ) as channel:
            stub = enrollment_pb2_grpc.EnrollmentStub(channel)
            asked = enrollment_pb2.ChallengeRequest()
            nonce = (await stub.Challenge(asked, timeout=CALL_TIMEOUT_S)).nonce
            proof = prove_recovery(key_in(self.identity.key), nonce, csr)
            request = enrollment_pb2.RecoverRequest(
                certificate=self.identity.chain, nonce=nonce, csr=csr, proof=proof
            )
            answer = await stub.Recover(request, timeout=CALL_TIMEOUT_S)
        return answer.certificate_chain, answer.trust_bundle

    def _begin(self) -> ec.EllipticCurvePrivateKey | None:
        """The key to ask a certificate for; None if the folder has a newer one already."""
        settle(self._folder)
        if load_identity(self._folder).chain != self.identity.chain:
            return None
        return pending_key(self._folder)

    def _new_backoff(self) -> Backoff:
        return Backoff(max_s=min(TRY_AGAIN_S_MAX, self._window_s() / TRIES_MIN))

    def _window_s(self) -> float:
        """From the moment that the certificate is due to its end: a third of its life and more."""
        return (self.identity.expires_at - self.identity.renews_at).total_seconds()

    def _failed(self, error: FeddpError) -> float:
        """Seconds until the next try, after saying what went wrong."""
        delay_s = self._backoff.next_s()
        (log.warning if error.retryable else log.error)(
            "certificate_renewal_failed",
            node=self.identity.node,
            reason=error.reason,
            detail=error.message,
            until=self.identity.expires_at.isoformat(),
            delay_s=round(delay_s, 1),
            do=_advice(error, ended=self._now() >= self.identity.expires_at),
        )
        return delay_s

    def _say_expired(self) -> None:
        if not self._said_expired:
            self._said_expired = True
            log.error(
                "certificate_expired",
                node=self.identity.node,
                at=self.identity.expires_at.isoformat(),
                do=f"the agent asks {self._enrolment} for another; check this machine's clock"
                if self._enrolment
                else "check this machine's clock; if it is right, give agent.yaml the key "
                "`enrollment` with the coordinator's HOST:PORT of enrolment and start the agent "
                "again, or join again in this folder with a new token",
            )


def pending_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The key of a renewal that was not finished, or a new one, durable before it is used."""
    try:
        return load_certificate_key(folder / NEXT_KEY)
    except NotFound:
        pass
    except Malformed:
        log.warning("pending_key_unreadable", do="nothing: another one takes its place")
    key = new_key()
    write_durable(folder / NEXT_KEY, stored_pem(key, encrypted=is_encrypted(folder / KEY)))
    return key


def check_renewed(
    identity: Identity,
    key: ec.EllipticCurvePrivateKey,
    chain: bytes,
    bundle: bytes,
    now: datetime,
) -> None:
    """Return if `chain` may take the place of `identity`'s, and `bundle` of its roots.

    Args:
        bundle: empty from a coordinator that does not say.

    Raises:
        Malformed: RENEWAL_ANSWER_INVALID.
    """
    try:
        roots = check_bundle(bundle or identity.bundle, identity.bundle)
        spiffe_id, leaf = check_issued(chain, roots, key.public_key())
    except Malformed as error:
        raise _answer_invalid(error.message) from None
    if spiffe_id != identity.spiffe_id:
        raise _answer_invalid(f"it is for {spiffe_id}")
    if leaf.not_valid_after_utc <= now:
        raise _answer_invalid(ENDED)


def switch(folder: Path, chain: bytes, bundle: bytes = b"") -> None:
    """Make a certificate for the pending key the node's own. Its roots come first: with them, and
    the old certificate, the node is let in as well."""
    if bundle and bundle != (folder / BUNDLE).read_bytes():
        write_durable(folder / BUNDLE, bundle, 0o644)
    write_durable(folder / CHAIN, chain, 0o644)
    settle(folder)


def _answer_invalid(what: str) -> Malformed:
    return Malformed(
        "RENEWAL_ANSWER_INVALID",
        f"the coordinator's new certificate cannot be used: {what}; the present one stays",
    )


def _not_written(folder: Path, error: OSError) -> FeddpError:
    return Malformed("IDENTITY_NOT_WRITTEN", f"{folder} cannot be written ({error.strerror})")


def _advice(error: FeddpError, *, ended: bool) -> str:
    """What to do about a renewal that failed.

    Args:
        ended: the present certificate, by this machine's clock.
    """
    end = "soon, as the certificate has ended" if ended else "before the certificate ends"
    if error.reason == "RENEWAL_ANSWER_INVALID" and ENDED in error.message:
        return (
            f"{SET_CLOCK}: `feddp agent doctor` compares it with the coordinator's. If it is "
            "right, send this line to the coordinator's operator"
        )
    if error.reason.startswith("PASSPHRASE"):
        return (
            "the passphrase that the keys were made with must be back where this line says; the "
            f"agent goes on trying, and the coordinator's operator can do nothing: {end}"
        )
    if error.reason in ("IDENTITY_INVALID", "KEY_INVALID", "NOT_JOINED"):
        return (
            "put the file back from a backup of this folder, or see docs/hospital-it.md, Lost "
            f"keys: {end}"
        )
    if error.reason == "UNIMPLEMENTED":
        return f"the coordinator is of an older version; ask its operator to upgrade it {end}"
    if error.reason == "IDENTITY_NOT_WRITTEN":
        return f"free room on that disk and let this user write there {end}"
    if error.reason in ("RECOVERY_DISABLED", "RECOVERY_TOO_LATE"):
        return "stop the agent and join again in this folder with a new token of the operator's"
    # gRPC's words for the other end's certificate.
    if "CERTIFICATE_VERIFY_FAILED" in error.message:
        return (
            "whoever answers shows no certificate of the authority that this node knows: `feddp "
            "agent doctor` says whether it is a TLS inspection; if the coordinator has another "
            "authority since (ask its operator), join again in this folder with a new token"
        )
    if error.retryable:
        return "the agent goes on trying; check that the coordinator runs and can be reached"
    if is_shut_out(error):
        return "the agent goes on trying; ask the coordinator's operator"
    return f"the agent goes on trying; send this line to the coordinator's operator {end}"
