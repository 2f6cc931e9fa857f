"""Who gets a name: tokens, approvals, proofs of an older key, the steward's word."""

import json
import os
import stat
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.credentials import channel_credentials
from certs.enrolment import (
    load_ledger_key,
    make_csr,
    new_key,
    new_ledger_key,
    prove_ledger_key,
    public_bytes_of,
    spoken,
)
from certs.tokens import JoinToken
from node_agent.joining.enrol import join
from node_agent.joining.identity import load_identity
from protos.errors import NotAllowed, WrongPhase
from protos.feddp.v1 import enrollment_pb2 as pb
from protos.feddp.v1 import enrollment_pb2_grpc
from protos.status import from_rpc
from tests.integration.federation import Federation, cli_json, run_cli, wait_for
from tests.integration.raw_node import RawNode, reason_of


def root(federation: Federation) -> str:
    return str(federation.installation.folder)


def waiting_key(federation: Federation, name: str) -> str:
    with federation.client() as client:
        return client.node(name).waiting_key


class Joining(threading.Thread):
    """`join` in a thread of its own, while a person decides."""

    def __init__(self, token: str, folder: Path, **how: bool) -> None:
        super().__init__()
        self._token, self._folder, self._how = token, folder, how
        self.patience = True
        self.said: list[str] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            join(self._token, self._folder, pending=self._pending, **self._how)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def _pending(self, error: Exception) -> bool:
        self.said.append(str(error))
        return self.patience

    def ended(self) -> Exception | None:
        self.join(30)
        assert not self.is_alive()
        return self.error


def test_a_machine_is_ready_after_one_command_with_its_token(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Join, run, connected; the root's fingerprint is told on both sides, and is the same."""
    token = cli_json("node", "token", "alpha", "--dir", root(coordinator))
    folder = coordinator.agent("alpha")
    code, _, err = run_cli("agent", "join", token["token"], "--dir", str(folder))
    assert code == 0, err
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    assert token["root_fingerprint"] == coordinator.installation.root_fingerprint
    assert token["root_fingerprint"] in err, "told before anything is trusted"
    parsed = JoinToken.parse(token["token"])
    assert yaml.safe_load((folder / "agent.yaml").read_text())["enrollment"] == parsed.address


def test_encrypted_keys_open_with_the_passphrase_only(
    coordinator: Federation, tmp_path: Path
) -> None:
    """PKCS#8 under a passphrase that is long enough; the agent runs with it and not without, and
    its next key is encrypted too."""
    secret = tmp_path / "passphrase"
    secret.write_text("a passphrase of some length\n")
    token = cli_json("node", "token", "alpha", "--dir", root(coordinator))["token"]
    arguments = ("agent", "join", token, "--dir", str(coordinator.agent("alpha")), "--encrypt-keys")
    for wrong, reason in (
        ({}, "PASSPHRASE_MISSING"),
        ({"FEDDP_KEY_PASSPHRASE": "short"}, "PASSPHRASE_SHORT"),
    ):
        code, _, err = run_cli(*arguments, "--json", **wrong)
        assert (code, reason in err) == (2, True)
        assert not coordinator.agent("alpha").exists()
    given = {"FEDDP_KEY_PASSPHRASE_FILE": str(secret)}
    code, _, err = run_cli(*arguments, **given)
    assert code == 0, err
    identity = coordinator.agent("alpha") / "identity"
    for name in ("node.key", "ledger.key"):
        assert (identity / name).read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert stat.S_IMODE((identity / name).stat().st_mode) == 0o600
        with pytest.raises(TypeError):
            serialization.load_pem_private_key((identity / name).read_bytes(), None)
    status = ("agent", "status", "--dir", str(coordinator.agent("alpha")), "--json")
    wrong = {"FEDDP_KEY_PASSPHRASE": "another passphrase"}
    for kept, said in (({}, "the keys are encrypted"), (wrong, "in FEDDP_KEY_PASSPHRASE does not")):
        code, out, _ = run_cli(*status, **kept)
        assert (code, said in json.loads(out)["keys_lost"]) == (1, True)
    runs = ("agent", "run", "--dir", str(coordinator.agent("alpha")))
    assert "the keys are encrypted" in run_cli(*runs)[2]
    os.environ.update(given)
    try:
        coordinator.start("alpha")
        coordinator.wait_for_nodes("alpha")
    finally:
        del os.environ["FEDDP_KEY_PASSPHRASE_FILE"]


def test_a_machine_waits_for_the_operator_who_compares_its_key(
    coordinator: Federation, tmp_path: Path
) -> None:
    """Both see the same key; another key given is refused; approved, the waiting join ends well."""
    made = cli_json("node", "token", "alpha", "--approval", "--dir", root(coordinator))
    joining = Joining(made["token"], coordinator.agent("alpha"))
    wait_for("it waits", lambda: bool(waiting_key(coordinator, "alpha")))
    key = spoken(waiting_key(coordinator, "alpha"))
    wait_for("it says so", lambda: bool(joining.said))
    assert key in joining.said[0]
    _, out, _ = run_cli("node", "list", "--dir", root(coordinator))
    assert "invited, WAITS TO JOIN" in out
    assert key in run_cli("node", "show", "alpha", "--dir", root(coordinator))[1]
    approve = ("node", "approve", "alpha", "--dir", root(coordinator), "--json", "--key")
    wrong = run_cli(*approve, key.replace(key[0], "0" if key[0] != "0" else "1"))
    assert json.loads(wrong[2])["error"]["reason"] == "KEY_MISMATCH"
    assert json.loads(run_cli(*approve, "ab12")[2])["error"]["reason"] == "KEY_INVALID"
    assert joining.is_alive()
    assert run_cli(*approve, key)[0] == 0
    assert joining.ended() is None
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    again = run_cli(*approve, key)
    assert json.loads(again[2])["error"]["reason"] == "JOIN_UNKNOWN"


def test_a_join_that_was_given_up_goes_on_where_it_was(coordinator: Federation) -> None:
    """Also after both sides have restarted: the token is this machine's, and no other's."""
    with coordinator.client() as client:
        token = client.create_token("alpha", approval=True).token
    with pytest.raises(WrongPhase) as caught:
        join(token, coordinator.agent("alpha"))
    assert caught.value.reason == "JOIN_PENDING"
    key = waiting_key(coordinator, "alpha")
    coordinator.kill("coordinator")
    coordinator.start("coordinator")
    with reason_of() as reasons:
        join(token, coordinator.folder / "stranger")
    assert reasons == ["TOKEN_USED"]
    with coordinator.client() as client:
        client.approve("alpha")
    join(token, coordinator.agent("alpha"))
    leaf = x509.load_pem_x509_certificates(
        load_identity(coordinator.agent("alpha") / "identity").chain
    )
    spki = (
        leaf[0]
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    assert digest.finalize().hex() == key


def test_a_rejected_machine_is_refused_for_good(coordinator: Federation) -> None:
    """The waiting join ends with it, and its token is used up."""
    with coordinator.client() as client:
        token = client.create_token("alpha", approval=True).token
    joining = Joining(token, coordinator.agent("alpha"))
    wait_for("it waits", lambda: bool(waiting_key(coordinator, "alpha")))
    assert run_cli("node", "reject", "alpha", "--dir", root(coordinator))[0] == 0
    error = joining.ended()
    assert isinstance(error, NotAllowed)
    assert error.reason == "JOIN_REJECTED"
    with reason_of() as reasons:
        join(token, coordinator.agent("alpha"))
    assert reasons == ["JOIN_REJECTED"]


def test_the_reply_of_a_join_that_waited_for_days_may_be_lost(coordinator: Federation) -> None:
    """The quarter of an hour for that counts from the certificate, and not from the first question;
    nobody needs another token."""
    with coordinator.client() as client:
        token = JoinToken.parse(client.create_token("alpha", approval=True).token)
        csr, ledger_key = make_csr(new_key()), new_ledger_key()
        assert redeem(token, csr, ledger_key) == "JOIN_PENDING"
        with coordinator.database() as database:
            database.execute("UPDATE tokens SET redeemed_at = redeemed_at - 86400")
        assert redeem(token, csr, ledger_key) == "JOIN_PENDING"
        client.approve("alpha")
    for _ in range(2):
        assert redeem(token, csr, ledger_key) == ""
    assert redeem(token, make_csr(new_key()), ledger_key) == "TOKEN_USED"
    with coordinator.database() as database:
        many = "SELECT count(*) FROM certificates WHERE spiffe_id LIKE '%/node/%'"
        assert database.execute(many).fetchone() == (1,)


def test_a_revocation_voids_what_was_approved_before(coordinator: Federation) -> None:
    """A machine that was let in and has not asked since gets nothing any more: neither one that
    joins for the first time, nor one that the steward has confirmed."""
    coordinator.add_node("beta")
    with coordinator.client() as client:
        tokens = {
            "alpha": client.create_token("alpha", approval=True).token,
            "beta": client.create_token("beta", rejoin=True).token,
        }
        identity = coordinator.agent("beta") / "identity"
        for name in ("node.key", "node.crt"):
            (identity / name).unlink()
        for node, token in tokens.items():
            with reason_of() as reasons:
                join(token, coordinator.agent(node))
            assert reasons == ["JOIN_PENDING"]
            client.approve(node, key=client.node(node).waiting_key, steward="Dr. Meier")
            client.revoke(node)
            with reason_of() as reasons:
                join(token, coordinator.agent(node))
            assert reasons == ["TOKEN_INVALID"]
        assert client.node("beta").status == "revoked"
    said = run_cli("node", "revoke", "alpha", "--dir", root(coordinator))[1]
    assert "has not joined, and needs a new one" in said
    assert "--rejoin" in run_cli("node", "revoke", "beta", "--dir", root(coordinator))[1]


def test_every_join_waits_where_the_operator_wants_it(tmp_path: Path) -> None:
    """`security.approve_joins`, whatever the token says."""
    federation = Federation(tmp_path)
    settings = yaml.safe_load(federation.installation.config.read_text())
    settings["security"] = {"approve_joins": True}
    federation.installation.config.write_text(yaml.safe_dump(settings))
    try:
        federation.start("coordinator")
        with federation.client() as client:
            token = client.create_token("alpha").token
        with reason_of() as reasons:
            join(token, federation.agent("alpha"))
        assert reasons == ["JOIN_PENDING"]
    finally:
        federation.stop()


def test_a_known_name_needs_its_old_key_or_the_stewards_word(coordinator: Federation) -> None:
    """Its own folder joins again at once; one with its ledger key alone waits for a person who has
    heard the steward, and then the old certificate is revoked; a stranger gets nothing."""
    coordinator.add_node("alpha")
    folder = coordinator.agent("alpha")
    first = load_identity(folder / "identity")
    refused = run_cli("node", "token", "alpha", "--dir", root(coordinator), "--json")
    assert json.loads(refused[2])["error"]["reason"] == "NODE_EXISTS"

    def token() -> str:
        with coordinator.client() as client:
            return client.create_token("alpha", rejoin=True).token

    # A stranger.
    with reason_of() as reasons:
        join(token(), coordinator.folder / "stranger")
    assert reasons == ["LEDGER_KEY_CHANGED"]
    # Its own folder, with a new key each time.
    code, _, err = run_cli("agent", "join", token(), "--dir", str(folder), "--json")
    assert (code, json.loads(err)["error"]["reason"]) == (2, "ALREADY_JOINED")
    join(token(), folder, again=True)
    second = load_identity(folder / "identity")
    assert second.key != first.key
    assert second.ledger_public_key == first.ledger_public_key
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    with reason_of() as reasons:
        join(token(), folder, again=True)
    assert reasons == ["AGENT_RUNNING"]
    coordinator.kill("alpha")
    node = RawNode(coordinator.address, second)
    wait_for("the agent's session is over", lambda: opened(node), 20)
    # A folder that was rebuilt around its ledger key.
    for name in ("node.key", "node.crt"):
        (folder / "identity" / name).unlink()
    joining = Joining(token(), folder)
    wait_for("it waits", lambda: bool(waiting_key(coordinator, "alpha")))
    with coordinator.client() as client:
        assert client.node("alpha").waiting_for_steward
        key = spoken(waiting_key(coordinator, "alpha"))
        for partly in ({}, {"key": key}, {"steward": "Dr. Meier"}):
            with reason_of() as reasons:
                client.approve("alpha", **partly)
            assert reasons == ["CONFIRMATION_REQUIRED"]
        client.approve("alpha", key=key, steward="Dr. Meier, by phone")
    assert joining.ended() is None
    assert node.cut() == "CERTIFICATE_REVOKED"
    with coordinator.database() as database:
        (said,) = database.execute(
            "SELECT approved_by FROM tokens WHERE approval = 'confirmed'"
        ).fetchone()
    assert said == "operator; steward Dr. Meier, by phone"
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")


def test_a_folder_that_keeps_a_ledger_joins_under_its_own_name_only(
    coordinator: Federation,
) -> None:
    """A token for another one is refused, is not used up, and leaves nothing: after `leave`, and
    with the old certificate; the coordinator looks at the ledger key of whoever says no name."""
    coordinator.add_node("alpha")
    folder = coordinator.agent("alpha")
    with coordinator.client() as client:
        token = client.create_token("other").token

    def refused(*options: str) -> str:
        before = kept_files(folder)
        code, _, err = run_cli("agent", "join", token, "--dir", str(folder), "--json", *options)
        error = json.loads(err)["error"]
        assert (code, error["reason"]) == (2, "TOKEN_FOR_ANOTHER_NODE")
        assert kept_files(folder) == before
        return str(error["message"])

    assert "ask the coordinator's operator for a token for alpha" in refused("--again")
    cli_json("agent", "leave", "--dir", str(folder), "--yes")
    for name in ("policy.yaml", "datasets.yaml"):  # a join would write them
        (folder / name).unlink()
    assert "restore" not in refused()
    with coordinator.client() as client:
        assert (client.node("other").status, client.node("other").waiting_key) == ("invited", "")
    # An older agent, or one that keeps the key and lost the rest, names nobody.
    key = load_ledger_key(folder / "identity/ledger.key")
    parsed = JoinToken.parse(token)
    assert redeem(parsed, make_csr(new_key()), key) == "LEDGER_KEY_OF_ANOTHER"
    # The token is as good as before, for a machine of its own.
    join(token, coordinator.folder / "machine of its own")


def test_names_that_share_a_ledger_key_since_before_go_on(coordinator: Federation) -> None:
    """Both join again, each in its own folder."""
    coordinator.add_node("alpha")
    coordinator.add_node("beta")
    with coordinator.database() as database:
        (shared,) = database.execute(
            "SELECT ledger_public_key FROM nodes WHERE name = 'alpha'"
        ).fetchone()
        database.execute("UPDATE nodes SET ledger_public_key = ? WHERE name = 'beta'", (shared,))
        database.commit()
    ledger_key = (coordinator.agent("alpha") / "identity/ledger.key").read_bytes()
    (coordinator.agent("beta") / "identity/ledger.key").write_bytes(ledger_key)
    for name in ("alpha", "beta"):
        with coordinator.client() as client:
            token = client.create_token(name, rejoin=True).token
        assert join(token, coordinator.agent(name), again=True).node == name


def kept_files(folder: Path) -> dict[str, bytes]:
    """But for SQLite's own, and the key that a renewal of this identity goes on with."""
    found = {str(one.relative_to(folder)): one for one in folder.rglob("*") if one.is_file()}
    passing = ("state.db-wal", "state.db-shm", "agent.lock", "identity/next.key")
    return {name: one.read_bytes() for name, one in found.items() if name not in passing}


def opened(node: RawNode) -> bool:
    try:
        node.open()
    except grpc.RpcError:
        return False
    return True


@pytest.mark.parametrize("names", [["beta"], ["alpha", "beta"], ["alpha,URI:spiffe://x/node/beta"]])
def test_a_join_that_asks_for_other_names_gets_nothing(
    coordinator: Federation, names: list[str]
) -> None:
    """Another name, two, or one that would inject another: its own reason, no certificate, and the
    token is not used up by it."""
    with coordinator.client() as client:
        token = JoinToken.parse(client.create_token("alpha").token)
    uris = [x509.UniformResourceIdentifier(f"spiffe://test.example/node/{one}") for one in names]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    csr = builder.sign(new_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    assert redeem(token, csr) == "CSR_NAMES"
    with coordinator.database() as database:
        found = "SELECT count(*) FROM certificates WHERE spiffe_id LIKE '%/node/%'"
        assert database.execute(found).fetchone() == (0,)
    assert redeem(token, make_csr(new_key())) == ""


def redeem(token: JoinToken, csr: bytes, ledger_key: Ed25519PrivateKey | None = None) -> str:
    """The reason of a refusal; empty for a certificate."""
    ledger_key = ledger_key or new_ledger_key()
    request = pb.JoinRequest(
        secret=token.secret,
        csr=csr,
        ledger_public_key=public_bytes_of(ledger_key),
        ledger_key_proof=prove_ledger_key(ledger_key, csr),
    )
    with grpc.secure_channel(token.address, channel_credentials(token.root_pem)) as channel:
        try:
            enrollment_pb2_grpc.EnrollmentStub(channel).Join(request, timeout=60)
        except grpc.RpcError as error:
            return from_rpc(error).reason
    return ""


def test_a_hundred_machines_with_one_token_get_one_certificate(coordinator: Federation) -> None:
    """They come at once, each with keys of its own."""
    with coordinator.client() as client:
        token = JoinToken.parse(client.create_token("alpha").token)
    csrs = [make_csr(new_key()) for _ in range(100)]
    with ThreadPoolExecutor(100) as pool:
        found = Counter(pool.map(lambda csr: redeem(token, csr), csrs))
    assert found == {"": 1, "TOKEN_USED": 99}
    with coordinator.database() as database:
        many = "SELECT count(*) FROM certificates WHERE spiffe_id LIKE '%/node/%'"
        assert database.execute(many).fetchone() == (1,)
