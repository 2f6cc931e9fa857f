"""People are let in and out again: over real gRPC and TLS, and by the commands."""

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from certs.credentials import channel_credentials
from certs.enrolment import make_csr, new_key
from certs.keyfiles import key_in
from certs.tokens import JoinToken
from feddp.client import Client
from feddp.joining import join
from feddp.profile import Profile
from feddp.renewing import renew, standing
from node_agent.joining.enrol import join as join_node
from protos.errors import FeddpError, NotAllowed, Unauthenticated
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc, jobs_pb2, jobs_pb2_grpc
from protos.status import from_rpc
from tests.integration.federation import Federation, cli_json, null_job, run_cli, wait_for
from tests.integration.raw_node import RawNode, reason_of

CUT_S_MAX = 5.0


def root(federation: Federation) -> str:
    return str(federation.installation.folder)


def invited(federation: Federation, name: str, *roles: str) -> str:
    with federation.client() as client:
        return client.invite_user(name, roles or ("engineer",)).token


def person(federation: Federation, name: str, *roles: str) -> Path:
    """Somebody who has joined; their profile."""
    folder = federation.folder / f"profile-of-{name}"
    join(invited(federation, name, *roles), folder)
    return folder


def refusal(*arguments: str) -> tuple[int, str]:
    """(exit code, reason) of a command that is refused."""
    code, out, err = run_cli(*arguments, "--json")
    assert out == ""
    return code, json.loads(err)["error"]["reason"]


# In


def test_an_engineer_is_let_in_and_works_by_the_commands(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Invited on the operator's side, joined on theirs; the same root's fingerprint is told on
    both, and what they may not do is refused in words."""
    made = cli_json("user", "invite", "ana", "--role", "engineer", "--dir", root(coordinator))
    assert made["root_fingerprint"] == coordinator.installation.root_fingerprint
    mine = str(tmp_path / "ana")
    code, out, err = run_cli("profile", "join", made["token"], "--profile", mine)
    assert code == 0, err
    assert made["root_fingerprint"] in err
    assert "feddp job key new" in out
    assert (tmp_path / "ana/key.pem").stat().st_mode & 0o077 == 0
    assert run_cli("job", "list", "--profile", mine)[0] == 0
    for words in (["user", "list"], ["user", "invite", "eve", "--role", "operator"]):
        assert refusal(*words, "--profile", mine) == (3, "ROLE_REQUIRED")
    listed = cli_json("user", "list", "--dir", root(coordinator))["users"]
    assert [(one["name"], one["status"]) for one in listed] == [
        ("ana", "joined"),
        ("operator", "joined"),
    ]
    assert (listed[0]["roles"], listed[0]["invited_by"]) == (["engineer"], "operator")
    shown = cli_json("profile", "show", "--profile", mine)
    assert listed[0]["certificate_expires_at"] == shown["certificate_expires_at"]


def test_an_operator_who_was_invited_invites_others(coordinator: Federation) -> None:
    """They are as good as the one that came with the installation."""
    boss = person(coordinator, "boss", "operator", "privacy-officer")
    made = cli_json("user", "invite", "ana", "--role", "engineer", "--profile", str(boss))
    join(made["token"], coordinator.folder / "ana")
    with Client(Profile.load(boss)) as client:
        ana = next(user for user in client.users() if user.name == "ana")
        assert (ana.status, ana.invited_by) == ("joined", "boss")
        assert client.nodes() == []


def test_when_somebody_called_last_is_shown(coordinator: Federation) -> None:
    """Within seconds, and it is still known after a restart."""
    mine = person(coordinator, "ana")

    def last_used_at() -> float:
        with coordinator.client() as client:
            return next(user.last_used_at for user in client.users() if user.name == "ana")

    assert last_used_at() == 0.0
    began_s = time.time()
    with Client(Profile.load(mine)) as client:
        client.jobs()
    wait_for("it is known", lambda: last_used_at() > 0, 10)
    assert began_s <= last_used_at() <= time.time()
    coordinator.kill("coordinator")
    coordinator.start("coordinator")
    assert last_used_at() >= began_s


@pytest.mark.parametrize(
    ("words", "reason", "said"),
    [
        (["ana", "--role", "enginer"], "ROLE_INVALID", "did you mean engineer?"),
        (["ana", "--role", "node"], "ROLE_INVALID", "privacy-officer"),
        (["Ana!", "--role", "engineer"], "NAME_INVALID", "a-z, 0-9 and -"),
        (["operator", "--role", "engineer"], "USER_EXISTS", "feddp user revoke operator"),
        (["ana", "--role", "engineer", "--valid", "8d"], "TTL_INVALID", "7 days"),
        (["ana", "--role", "engineer", "--valid", "1s"], "TTL_INVALID", "60"),
        (["ana"], "USAGE", "--role"),
    ],
)
def test_an_invitation_that_cannot_be_is_refused_in_words(
    coordinator: Federation, words: list[str], reason: str, said: str
) -> None:
    """Exit code 2, what is wrong, and what to do."""
    code, _, err = run_cli("user", "invite", *words, "--dir", root(coordinator), "--json")
    error = json.loads(err)["error"]
    assert (code, error["reason"]) == (2, reason)
    assert said in error["message"]


def test_tokens_that_let_nobody_in_are_told_apart(coordinator: Federation, tmp_path: Path) -> None:
    """Used, expired, cut off, a node's, another coordinator's: exit code, reason, no profile."""
    used = invited(coordinator, "ana")
    join(used, tmp_path / "ana")
    expired = invited(coordinator, "ben")
    with coordinator.database() as database:
        database.execute("UPDATE invitations SET expires_at = 1 WHERE name = 'ben'")
    with coordinator.client() as client:
        node = client.create_token("alpha").token
    parsed = JoinToken.parse(invited(coordinator, "eve"), "user")
    unknown = JoinToken(parsed.address, "x" * 43, parsed.root_der, "user").encode()
    for token, told in (
        (used, (3, "TOKEN_USED")),
        (expired, (3, "TOKEN_EXPIRED")),
        (unknown, (3, "TOKEN_INVALID")),
        (parsed.encode()[:-1], (2, "TOKEN_INVALID")),
        (node, (2, "TOKEN_FOR_NODE")),
    ):
        mine = tmp_path / "stranger"
        assert refusal("profile", "join", token, "--profile", str(mine)) == told
        assert not mine.exists()


def test_the_coordinator_tells_tokens_apart_whatever_a_client_says(coordinator: Federation) -> None:
    """A node's secret in a person's token, and the reverse: refused with its own reason, and each
    is still good where it belongs."""
    with coordinator.client() as client:
        node = JoinToken.parse(client.create_token("alpha").token)
    user = JoinToken.parse(invited(coordinator, "ana"), "user")
    as_user = JoinToken(node.address, node.secret, node.root_der, "user").encode()
    as_node = JoinToken(user.address, user.secret, user.root_der).encode()
    with reason_of() as reasons:
        join(as_user, coordinator.folder / "stranger")
    assert reasons == ["TOKEN_FOR_NODE"]
    with reason_of() as reasons:
        join_node(as_node, coordinator.folder / "stranger")
    assert reasons == ["TOKEN_FOR_PERSON"]
    assert not (coordinator.folder / "stranger").exists()
    join_node(node.encode(), coordinator.agent("alpha"))
    join(user.encode(), coordinator.folder / "ana")


def redeem(token: JoinToken, csr: bytes) -> str:
    """The reason that a redemption ends with; empty if it is let in."""
    with grpc.secure_channel(token.address, channel_credentials(token.root_pem)) as channel:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        try:
            stub.JoinUser(pb.JoinUserRequest(secret=token.secret, csr=csr), timeout=30)
        except grpc.RpcError as error:
            return from_rpc(error).reason
    return ""


def test_a_hundred_who_redeem_one_token_at_once_have_one_winner(coordinator: Federation) -> None:
    """Over as many connections; one certificate is registered."""
    token = JoinToken.parse(invited(coordinator, "ana"), "user")
    csrs = [make_csr(new_key()) for _ in range(100)]
    with ThreadPoolExecutor(100) as pool:
        found = Counter(pool.map(lambda csr: redeem(token, csr), csrs))
    assert found == {"": 1, "TOKEN_USED": 99}
    with coordinator.database() as database:
        many = "SELECT count(*) FROM certificates WHERE spiffe_id LIKE '%/user/ana'"
        assert database.execute(many).fetchone() == (1,)


def test_a_request_without_a_key_of_its_own_is_refused(coordinator: Federation) -> None:
    """And the token is still good."""
    token = JoinToken.parse(invited(coordinator, "ana"), "user")
    csr = make_csr(new_key())
    assert redeem(token, b"") == redeem(token, csr[:-1] + b"\0") == "CSR_INVALID"
    assert redeem(token, csr) == ""


def test_the_same_key_is_given_its_certificate_again(
    coordinator: Federation, tmp_path: Path
) -> None:
    """As after a lost reply, also when the coordinator was killed in between."""
    token = invited(coordinator, "ana")
    join(token, tmp_path / "first")
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "first/key.pem", tmp_path / "again/next.pem")
    coordinator.kill("coordinator")
    coordinator.start("coordinator")
    join(token, tmp_path / "again")
    first, again = (Profile.load(tmp_path / name) for name in ("first", "again"))
    assert (first.key, first.chain) == (again.key, again.chain)


def test_a_person_renews_as_the_operator_does(coordinator: Federation) -> None:
    """A new key and certificate; a copy of the profile of before is refused."""
    folder = person(coordinator, "ana")
    old = Profile.load(folder)
    cli_json("profile", "renew", "--profile", str(folder))
    new = Profile.load(folder)
    assert key_in(new.key).public_key() != key_in(old.key).public_key()
    with Client(new) as client:
        assert client.jobs() == []
    with pytest.raises(Unauthenticated) as caught, Client(old) as client:
        client.jobs()
    assert caught.value.reason == "CERTIFICATE_SUPERSEDED"
    assert standing(new).warning() == ""


def test_the_list_says_what_has_run_out(coordinator: Federation) -> None:
    """An invitation that nobody has used in time, and a certificate that has ended."""
    invited(coordinator, "ben")
    person(coordinator, "ana", "engineer", "privacy-officer")
    with coordinator.database() as database:
        database.execute("UPDATE invitations SET expires_at = 1 WHERE name = 'ben'")
        database.execute("UPDATE certificates SET not_after = 1 WHERE spiffe_id LIKE '%/ana'")
    out = run_cli("user", "list", "--dir", root(coordinator))[1].splitlines()
    assert [" ".join(line.split()) for line in out[1:3]] == [
        "ana engineer, privacy-officer default joined, CERTIFICATE ENDED 1970-01-01 00:00:01 UTC "
        "never operator",
        "ben engineer default invited, EXPIRED - never operator",
    ]


# Out


def test_a_revocation_cuts_a_live_watch_and_survives_a_restart(coordinator: Federation) -> None:
    """Within five seconds, on the connection that is open, for that person alone."""
    for name in ("alpha", "beta", "gamma"):
        RawNode.enrolled(coordinator, name).open()
    ana, ben = person(coordinator, "ana"), person(coordinator, "ben")
    job_id = coordinator.submit(null_job(1))
    request = jobs_pb2.WatchJobRequest(job_id=job_id)
    channels = {}
    for folder in (ana, ben):
        mine = Profile.load(folder)
        credentials = channel_credentials(mine.bundle, mine.key, mine.chain)
        channels[folder] = grpc.secure_channel(mine.address, credentials)
    watches = {
        folder: jobs_pb2_grpc.JobsStub(channel).WatchJob(request, timeout=60)
        for folder, channel in channels.items()
    }
    for watch in watches.values():
        next(watch)
    with coordinator.client() as client:
        began_s = time.monotonic()
        assert client.revoke_user("ana").status == "revoked"
    with reason_of() as reasons:
        jobs_pb2_grpc.JobsStub(channels[ana]).ListJobs(jobs_pb2.ListJobsRequest(), timeout=10)
    assert reasons == ["CERTIFICATE_REVOKED"], "at once, on the connection that was open"
    with reason_of() as reasons:
        for _ in watches[ana]:
            pass
    assert time.monotonic() - began_s < CUT_S_MAX
    assert reasons == ["CERTIFICATE_REVOKED"]
    with coordinator.client() as client:
        client.cancel(job_id)
    assert [one.job.status for one in watches[ben]][-1] == "cancelled", "nobody else is cut"
    for channel in channels.values():
        channel.close()
    coordinator.kill("coordinator")
    coordinator.start("coordinator")
    for act in (lambda client: client.jobs(), lambda client: list(client.watch(job_id))):
        with pytest.raises(Unauthenticated) as caught, Client(Profile.load(ana)) as client:
            act(client)
        assert caught.value.reason == "CERTIFICATE_REVOKED"
    with pytest.raises(Unauthenticated) as renewed:
        renew(Profile.load(ana))
    assert renewed.value.reason == "CERTIFICATE_REVOKED"
    with Client(Profile.load(ben)) as client:
        assert client.job(job_id).job_id == job_id


def test_who_was_revoked_and_is_invited_again_gets_a_new_certificate(
    coordinator: Federation, tmp_path: Path
) -> None:
    """With the roles of the new invitation; the former profile stays out."""
    former = person(coordinator, "ana", "engineer")
    code, out, err = run_cli("user", "revoke", "ana", "--yes", "--dir", root(coordinator))
    assert (code, out) == (0, "ana is revoked; only a new invitation lets them in again\n")
    assert "what ends for ana (engineer): the certificate until" in err
    join(invited(coordinator, "ana", "privacy-officer"), tmp_path / "again")
    with Client(Profile.load(tmp_path / "again")) as client:
        assert client.accounts() == []
        with pytest.raises(NotAllowed):
            client.submit(null_job(1))
    with pytest.raises(FeddpError) as caught, Client(Profile.load(former)) as client:
        client.jobs()
    assert caught.value.reason == "CERTIFICATE_REVOKED"


def test_a_revocation_voids_an_open_invitation(coordinator: Federation, tmp_path: Path) -> None:
    """Of somebody who never joined; they are listed as revoked."""
    token = invited(coordinator, "ana")
    shown = cli_json("user", "revoke", "ana", "--yes", "--dir", root(coordinator))
    assert (shown["done"], shown["status"]) == (True, "revoked")
    assert "the invitation until" in shown["ends"]
    where = ("--profile", str(tmp_path / "ana"))
    assert refusal("profile", "join", token, *where) == (3, "TOKEN_WITHDRAWN")


def test_the_last_operator_cannot_be_revoked(coordinator: Federation) -> None:
    """Not by themselves, nor by whoever is next before that one has joined."""
    revoke = ("user", "revoke", "operator", "--yes", "--dir", root(coordinator))
    assert refusal(*revoke) == (1, "LAST_OPERATOR")
    token = invited(coordinator, "boss", "operator")
    assert refusal(*revoke) == (1, "LAST_OPERATOR")
    join(token, coordinator.folder / "boss")
    assert run_cli(*revoke)[0] == 0
    assert refusal("node", "list", "--dir", root(coordinator)) == (3, "CERTIFICATE_REVOKED")
    mine = ("--profile", str(coordinator.folder / "boss"))
    assert run_cli("node", "list", *mine)[0] == 0
    assert refusal("user", "revoke", "boss", "--yes", *mine) == (1, "LAST_OPERATOR")
    assert refusal("user", "revoke", "nobody", "--yes", *mine) == (3, "USER_UNKNOWN")


def test_the_coordinators_machine_brings_its_operator_back(coordinator: Federation) -> None:
    """After a revocation, with a certificate of their own; the one that was revoked stays out."""
    boss = person(coordinator, "boss", "operator")
    former = Profile.load(coordinator.installation.profile)
    with Client(Profile.load(boss)) as client:
        assert client.revoke_user("operator").status == "revoked"
        assert run_cli("coordinator", "reissue", "--dir", root(coordinator))[0] == 0
        wait_for(
            "it is let in", lambda: run_cli("node", "list", "--dir", root(coordinator))[0] == 0, 20
        )
        assert {user.name: user.status for user in client.users()}["operator"] == "joined"
    with pytest.raises(Unauthenticated) as caught, Client(former) as client:
        client.nodes()
    assert caught.value.reason == "CERTIFICATE_REVOKED"


def test_nothing_is_revoked_without_a_word(coordinator: Federation) -> None:
    """Without a terminal and without --yes it is only shown, and says so by its exit code."""
    folder = person(coordinator, "ana")
    code, out, err = run_cli("user", "revoke", "ana", "--dir", root(coordinator))
    assert (code, out) == (1, "nothing was changed; with --yes it is done\n")
    assert "every connection open with it" in err
    code, out, _ = run_cli("user", "revoke", "ana", "--dir", root(coordinator), "--json")
    assert (code, json.loads(out)["done"], json.loads(out)["status"]) == (1, False, "joined")
    with Client(Profile.load(folder)) as client:
        assert client.jobs() == []


@pytest.mark.parametrize(("word", "code", "status"), [("n\n", 1, "joined"), ("y\n", 0, "revoked")])
def test_a_person_at_a_terminal_is_asked(
    coordinator: Federation, word: str, code: int, status: str
) -> None:
    """After what will end was shown."""
    person(coordinator, "ana")
    keyboard, terminal = pty.openpty()
    command = [sys.executable, "-m", "feddp", "user", "revoke", "ana", "--dir", root(coordinator)]
    with subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asked:
        os.write(keyboard, word.encode())
        _, err = asked.communicate(timeout=60)
    os.close(keyboard)
    os.close(terminal)
    assert asked.returncode == code, err
    assert err.index("what ends for ana") < err.index("Revoke?")
    with coordinator.client() as client:
        assert {user.name: user.status for user in client.users()}["ana"] == status
