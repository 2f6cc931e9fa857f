"""A person joins: their key is made here, the profile is whole or absent, nothing is written over.
The enrolment port is a real one with real TLS."""

import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from command_line import Run
from fake_coordinator import TRUST_DOMAIN

from certs import profile_folder
from certs.authority import NODE_LIFETIME, PERSON_LIFETIME, Authority
from certs.credentials import channel_credentials, enrolment_server_credentials
from certs.enrolment import key_digest, new_key, private_pem, public_key_of_csr
from certs.keyfiles import key_in
from certs.spiffe import SpiffeId
from certs.tokens import JoinToken, new_secret
from feddp.joining import join
from feddp.profile import Profile
from feddp.renewing import standing
from protos.errors import Conflict, FeddpError, Malformed, NotFound, Unauthenticated, Unavailable
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc
from protos.status import DETAILS_KEY, details

NAME = "ana"


class FakeEnrolment(enrollment_pb2_grpc.EnrollmentServicer):
    """Certifies whoever asks, unless told otherwise.

    Attributes:
        signs: the authority that certifies; not always the one that the token names.
        keys: digests of the keys that asked.
        changes: fields of the answer that are told wrongly.
    """

    def __init__(self, authority: Authority) -> None:
        self.authority = self.signs = authority
        self.kind: Any = "user"
        self.name = NAME
        self.refusal: FeddpError | None = None
        self.lose_answers = 0
        self.swap_key = False
        self.life = PERSON_LIFETIME
        self.changes: dict[str, Any] = {}
        self.keys: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(self, self._server)
        key = new_key()
        own = authority.issue(
            key.public_key(),
            SpiffeId(TRUST_DOMAIN, "coordinator"),
            now=datetime.now(UTC),
            lifetime=NODE_LIFETIME,
            ip_addresses=["127.0.0.1"],
        )
        credentials = enrolment_server_credentials(own.chain_pem, private_pem(key))
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.stop(None).wait()

    def token(self, port: int = 0, kind: Any = "user") -> str:
        """A token for this coordinator."""
        address = f"127.0.0.1:{port or self.port}"
        return JoinToken(address, new_secret(), self.authority.root_der, kind).encode()

    def JoinUser(self, request: Any, context: Any) -> Any:  # noqa: N802
        key = public_key_of_csr(request.csr)
        self.keys.append(key_digest(key))
        if self.refusal is not None:
            context.set_trailing_metadata(((DETAILS_KEY, details(self.refusal)),))
            context.abort(grpc.StatusCode[self.refusal.code], self.refusal.message)
        if self.lose_answers:
            self.lose_answers -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer got lost")
        identity = SpiffeId(TRUST_DOMAIN, self.kind, self.name)
        signed = new_key().public_key() if self.swap_key else key
        long_ago = datetime.now(UTC) - (PERSON_LIFETIME - self.life)
        issued = self.signs.issue(signed, identity, now=long_ago, lifetime=PERSON_LIFETIME)
        fields = {
            "certificate_chain": issued.chain_pem,
            "trust_bundle": self.authority.trust_bundle,
            "spiffe_id": str(identity),
            "user": self.name,
            "roles": ["engineer"],
            "coordinator_address": "127.0.0.1:8443",
        }
        return pb.JoinUserResponse(**{**fields, **self.changes})


@pytest.fixture
def enrolment(authority: Authority) -> Iterator[FakeEnrolment]:
    """A coordinator's enrolment port on this machine."""
    server = FakeEnrolment(authority)
    yield server
    server.stop()


def test_a_join_makes_a_profile_that_a_client_can_use(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """The four files of an operator's profile and no other, each for its owner only."""
    folder = tmp_path / "new" / "profile"
    made = join(enrolment.token(), folder)
    assert (made.name, made.roles, made.identity) == (
        NAME,
        ("engineer",),
        f"spiffe://{TRUST_DOMAIN}/user/{NAME}",
    )
    loaded = Profile.load(folder)
    assert (loaded.name, loaded.address) == (NAME, "127.0.0.1:8443")
    assert loaded.bundle == enrolment.authority.trust_bundle
    assert standing(loaded).identity == made.identity
    channel_credentials(loaded.bundle, loaded.key, loaded.chain)
    assert {path.name for path in folder.iterdir()} == {
        "profile.yaml",
        "key.pem",
        "chain.pem",
        "bundle.pem",
    }
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    digest = key_digest(key_in(loaded.key).public_key())
    assert enrolment.keys == [digest], "the key was made here, and only its public half was sent"


def test_a_profile_is_never_written_over(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """Refused before anybody is asked, so that the token stays good, and every byte stays."""
    folder = tmp_path / "profile"
    join(enrolment.token(), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Conflict) as caught:
        join(enrolment.token(), folder)
    assert caught.value.reason == "PROFILE_EXISTS"
    assert len(enrolment.keys) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("left", ["profile.yaml", "key.pem", "chain.pem", "bundle.pem"])
def test_what_is_left_of_a_profile_is_not_written_over(
    enrolment: FakeEnrolment, tmp_path: Path, left: str
) -> None:
    """A folder with one of its files is somebody's, whatever became of the others."""
    (tmp_path / left).write_text("mine")
    with pytest.raises(Conflict) as caught:
        join(enrolment.token(), tmp_path)
    assert caught.value.reason == "PROFILE_EXISTS"
    assert (tmp_path / left).read_text() == "mine"
    assert not (tmp_path / "next.pem").exists()
    assert enrolment.keys == []


def test_a_profile_whose_renewal_was_cut_short_is_not_written_over(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """It has the key of a renewal beside its own."""
    folder = tmp_path / "profile"
    join(enrolment.token(), folder)
    profile_folder.waiting_key(folder)
    with pytest.raises(Conflict) as caught:
        join(enrolment.token(), folder)
    assert caught.value.reason == "PROFILE_EXISTS"


def test_other_files_of_the_folder_stay(enrolment: FakeEnrolment, tmp_path: Path) -> None:
    """An engineer may have made their signing key first."""
    (tmp_path / "orders.key").write_text("mine")
    join(enrolment.token(), tmp_path)
    assert (tmp_path / "orders.key").read_text() == "mine"


def test_a_lost_answer_is_asked_for_again_with_the_same_key(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """The coordinator may have given the token to that key, so that it must not change."""
    token, folder = enrolment.token(), tmp_path / "profile"
    enrolment.lose_answers = 2
    for _ in range(2):
        with pytest.raises(Unavailable, match="with the same token and folder"):
            join(token, folder)
        assert stat.S_IMODE((folder / "next.pem").stat().st_mode) == 0o600
        with pytest.raises(NotFound):
            Profile.load(folder)
    join(token, folder)
    assert len(enrolment.keys) == 3
    assert len(set(enrolment.keys)) == 1
    Profile.load(folder)


@pytest.mark.parametrize("reason", ["TOKEN_USED", "TOKEN_EXPIRED", "TOKEN_INVALID"])
def test_a_join_that_was_refused_leaves_nothing(
    enrolment: FakeEnrolment, tmp_path: Path, reason: str
) -> None:
    """Not even the folders that it made."""
    enrolment.refusal = Unauthenticated(reason, "said")
    with pytest.raises(Unauthenticated) as caught:
        join(enrolment.token(), tmp_path / "new" / "profile")
    assert caught.value.reason == reason
    assert not (tmp_path / "new").exists()


def test_a_refusal_after_a_lost_answer_keeps_the_key(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """It may be the one that has the certificate."""
    enrolment.lose_answers = 1
    for _ in range(2):
        with pytest.raises(FeddpError):
            join(enrolment.token(), tmp_path)
        enrolment.refusal = Unauthenticated("TOKEN_USED", "said")
    assert (tmp_path / "next.pem").exists()


def test_a_coordinator_that_is_away_is_named_and_nothing_is_left(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """Exit code 5 at the command line; the token stays good."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
            join(enrolment.token(port), tmp_path / "profile", connect_timeout_s=0.5)
    assert not (tmp_path / "profile").exists()


def test_a_coordinator_of_another_root_is_never_asked(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """The token's secret goes to nobody else."""
    other = Authority.create(tmp_path / "other", TRUST_DOMAIN)
    address = f"127.0.0.1:{enrolment.port}"
    token = JoinToken(address, new_secret(), other.root_der, "user").encode()
    with pytest.raises(Unavailable):
        join(token, tmp_path / "profile", connect_timeout_s=1.0)
    assert enrolment.keys == []


def _swap(server: FakeEnrolment) -> None:
    server.swap_key = True


def _node(server: FakeEnrolment) -> None:
    server.kind = "node"


def _other_name(server: FakeEnrolment) -> None:
    server.changes["user"] = "operator"


def _other_identity(server: FakeEnrolment) -> None:
    server.changes["spiffe_id"] = f"spiffe://{TRUST_DOMAIN}/user/operator"


def _no_bundle(server: FakeEnrolment) -> None:
    server.changes["trust_bundle"] = b""


def _ended(server: FakeEnrolment) -> None:
    server.life = timedelta(0)


@pytest.mark.parametrize("lie", [_swap, _node, _other_name, _other_identity, _no_bundle, _ended])
def test_an_answer_that_does_not_hold_makes_no_profile(
    enrolment: FakeEnrolment, tmp_path: Path, lie: Callable[[FakeEnrolment], None]
) -> None:
    """Another key, a node, another name, no root, a certificate that is over."""
    lie(enrolment)
    with pytest.raises(Malformed) as caught:
        join(enrolment.token(), tmp_path)
    assert caught.value.reason == "JOIN_ANSWER_INVALID"
    assert {path.name for path in tmp_path.iterdir()} <= {"ca", "next.pem"}


def test_a_certificate_of_another_authority_makes_no_profile(
    enrolment: FakeEnrolment, tmp_path: Path
) -> None:
    """It must chain to a root that the token pins."""
    enrolment.signs = Authority.create(tmp_path / "other", TRUST_DOMAIN)
    with pytest.raises(Malformed) as caught:
        join(enrolment.token(), tmp_path / "profile")
    assert caught.value.reason == "JOIN_ANSWER_INVALID"


class Crash(BaseException):
    """The process ends."""


def test_a_join_that_is_cut_short_anywhere_goes_on_with_the_same_token(
    enrolment: FakeEnrolment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each file that it writes or renames: there is a profile that works, or none, and the same
    command ends well with the same key."""
    steps = 0
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal steps
        if steps == stop_at:
            raise Crash
        steps += 1
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    for stop_at in range(20):
        folder, token, steps = tmp_path / f"profile-{stop_at}", enrolment.token(), 0
        enrolment.keys.clear()
        try:
            join(token, folder)
            break
        except Crash:
            with pytest.raises(NotFound):
                Profile.load(folder)
        began, stop_at = stop_at, -1
        join(token, folder)
        Profile.load(folder)
        if began:  # at 0 the key itself was not written yet
            assert len(set(enrolment.keys)) == 1
        shutil.rmtree(folder)
    assert stop_at == 5, "key, description, bundle, chain, and the switch to the key"


def test_the_command_shows_the_root_and_what_is_next(
    enrolment: FakeEnrolment, run: Run, tmp_path: Path
) -> None:
    """The fingerprint before anything is trusted, on stderr; then the commands of the role."""
    token = enrolment.token()
    fingerprint = JoinToken.parse(token, "user").fingerprint
    ran = run("profile", "join", token, "--profile", "mine")
    assert ran.code == 0
    assert fingerprint in ran.err
    assert "joined as ana (engineer; project default)" in ran.out
    assert f"export FEDDP_PROFILE={tmp_path / 'mine'}" in ran.out
    assert "feddp job key new" in ran.out
    again = run("profile", "join", token, "--profile", "mine", "--json")
    assert (again.code, again.error["reason"]) == (2, "PROFILE_EXISTS")


def test_the_command_compares_a_fingerprint_that_is_known(
    enrolment: FakeEnrolment, run: Run, tmp_path: Path
) -> None:
    """Another root than that one is not spoken to; the right one needs no question."""
    token = enrolment.token()
    right = JoinToken.parse(token, "user").fingerprint
    words = ("profile", "join", token, "--profile", "mine", "--fingerprint")
    ran = run(*words, right[:-1] + ("0" if right[-1] != "0" else "1"), "--json")
    assert (ran.code, ran.error["reason"]) == (3, "ROOT_MISMATCH")
    assert enrolment.keys == []
    assert not (tmp_path / "mine").exists()
    assert run(*words, right).code == 0


def test_the_command_answers_programs(enrolment: FakeEnrolment, run: Run) -> None:
    """One JSON value, and nothing on stderr."""
    token = enrolment.token()
    ran = run("profile", "join", token, "--profile", "mine", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["root_fingerprint"] == JoinToken.parse(token, "user").fingerprint
    assert (ran.json["name"], ran.json["roles"]) == (NAME, ["engineer"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda token: token[:-9], "TOKEN_INVALID"),
        (lambda token: "nonsense", "TOKEN_INVALID"),
        (lambda token: "feddp1." + token[8:], "TOKEN_FOR_NODE"),
    ],
)
def test_a_token_that_is_no_invitation_is_usage(
    enrolment: FakeEnrolment, run: Run, change: Callable[[str], str], reason: str, tmp_path: Path
) -> None:
    """Exit code 2, nobody is asked, and no folder is made."""
    ran = run("profile", "join", change(enrolment.token()), "--profile", "mine", "--json")
    assert (ran.code, ran.error["reason"]) == (2, reason)
    assert enrolment.keys == []
    assert not (tmp_path / "mine").exists()


def test_an_invitation_joins_no_agent(enrolment: FakeEnrolment, run: Run, tmp_path: Path) -> None:
    """It says what it is for, before anybody is asked."""
    ran = run("agent", "join", enrolment.token(), "--dir", "a", "--json")
    assert (ran.code, ran.error["reason"]) == (2, "TOKEN_FOR_PERSON")
    assert "feddp profile join" in ran.error["message"]
    assert not (tmp_path / "a").exists()


def test_an_older_coordinator_is_named(
    enrolment: FakeEnrolment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not know the call says so to nobody else's blame."""

    def unknown(self: Any, request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    monkeypatch.setattr(FakeEnrolment, "JoinUser", unknown)
    server = FakeEnrolment(enrolment.authority)
    with pytest.raises(FeddpError) as caught:
        join(server.token(), tmp_path / "profile")
    server.stop()
    assert caught.value.reason == "COORDINATOR_TOO_OLD"
    assert not (tmp_path / "profile").exists()
