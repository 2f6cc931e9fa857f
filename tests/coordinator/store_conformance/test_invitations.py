"""People and their invitations: who gets in, once, and who is shut out."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, text

from certs.authority import PERSON_LIFETIME, Authority
from certs.enrolment import key_digest, make_csr, new_key, public_key_of_csr
from certs.spiffe import SpiffeId
from coordinator.rpc.users import Joined, join_user
from coordinator.store import certificates, people, users
from coordinator.store.database import Database
from coordinator.store.people import REPLY_LOST_S
from coordinator.store.upgrade import alembic_config
from coordinator.store.users import User
from protos.errors import FeddpError
from tests.coordinator.store_conformance.samples import NODE, PUBLIC

NOW = datetime.now(UTC)
NOW_S = NOW.timestamp()
VALID_S = 1000.0


class Office:
    """Who lets people in at one coordinator."""

    def __init__(self, database: Database, authority: Authority) -> None:
        self.database = database
        self.authority = authority

    def identity(self, name: str) -> SpiffeId:
        return SpiffeId(self.authority.trust_domain, "user", name)

    def invite(
        self,
        name: str,
        secret: str,
        *roles: str,
        after_s: float = 0.0,
        project: str = "default",
    ) -> None:
        self.database.write_now(
            lambda c: users.invite(
                c,
                User(name, frozenset(roles or ("engineer",)), project),
                secret,
                identity=self.identity(name),
                invited_by="operator",
                now_s=NOW_S + after_s,
                expires_at_s=NOW_S + after_s + VALID_S,
            )
        )

    def redeem(
        self, secret: str, csr: bytes = b"", after_s: float = 0.0, database: Database | None = None
    ) -> Joined:
        csr = csr or make_csr(new_key())
        key, now = public_key_of_csr(csr), NOW + timedelta(seconds=after_s)
        return (database or self.database).write_now(
            lambda c: join_user(c, self.authority, secret, csr, key, now)
        )

    def joins(self, name: str, *roles: str) -> Joined:
        self.invite(name, f"of {name}", *roles)
        return self.redeem(f"of {name}")

    def revoke(self, name: str, database: Database | None = None) -> users.Standing:
        identity = self.identity(name)
        return (database or self.database).write_now(lambda c: users.revoke(c, identity, NOW_S))

    def standing(self, name: str, after_s: float = 0.0) -> users.Standing:
        domain, now_s = self.authority.trust_domain, NOW_S + after_s
        return self.database.read_now(lambda c: users.standings(c, domain, now_s))[name]

    def certificates_of(self, name: str) -> list[bool]:
        """Of each, whether it was revoked."""
        identity = self.identity(name)
        found = self.database.read_now(certificates.records).values()
        return [one.revoked for one in found if one.spiffe_id == identity]


@pytest.fixture
def office(database: Database, tmp_path: Path) -> Office:
    return Office(database, Authority.create(tmp_path / "ca", "test.example"))


def reason(act: Callable[[], object]) -> str:
    """The reason that `act` is refused with; empty if it is not."""
    try:
        act()
    except FeddpError as error:
        return error.reason
    return ""


def at_once(url: str, acts: list[Callable[[Database], object]]) -> Counter[str]:
    """The reasons of acts that begin together, each with connections of its own."""
    begin = threading.Barrier(len(acts))

    def run(act: Callable[[Database], object]) -> str:
        own = Database(url)
        try:
            begin.wait(30)
            return reason(lambda: act(own))
        finally:
            own.close()

    with ThreadPoolExecutor(len(acts)) as pool:
        return Counter(pool.map(run, acts))


def test_a_hundred_redemptions_at_once_give_exactly_one_certificate(office: Office) -> None:
    """Whoever wins is in, with the roles of the invitation; the others are told that it is used."""
    office.invite("ana", "secret", "engineer", "privacy-officer")
    csrs = [make_csr(new_key()) for _ in range(100)]
    with ThreadPoolExecutor(16) as pool:
        found = Counter(pool.map(lambda csr: reason(lambda: office.redeem("secret", csr)), csrs))
    assert found == {"": 1, "TOKEN_USED": 99}
    assert office.certificates_of("ana") == [False]
    ana = office.database.read_now(users.all_users)["ana"]
    assert ana == User("ana", frozenset({"engineer", "privacy-officer"}), "default")


def test_processes_that_redeem_at_once_give_exactly_one_certificate(
    office: Office, url: str
) -> None:
    """Also where each has connections of its own, and no lease keeps them apart."""
    office.invite("ana", "secret")
    acts = [lambda own: office.redeem("secret", database=own)] * 8
    assert at_once(url, acts) == {"": 1, "TOKEN_USED": 7}
    assert office.certificates_of("ana") == [False]


def test_the_same_key_gets_the_same_certificate_again_for_fifteen_minutes(office: Office) -> None:
    """A lost reply locks nobody out; after that the token is used up, also for that key."""
    office.invite("ana", "secret")
    csr = make_csr(new_key())
    first = office.redeem("secret", csr)
    assert office.redeem("secret", csr, after_s=REPLY_LOST_S) == first
    assert reason(lambda: office.redeem("secret", csr, after_s=REPLY_LOST_S + 1)) == "TOKEN_USED"
    assert reason(lambda: office.redeem("secret")) == "TOKEN_USED"
    assert office.certificates_of("ana") == [False]


@pytest.mark.parametrize(
    ("secret", "after_s", "told"),
    [
        ("x", 0.0, "TOKEN_INVALID"),
        ("secret", VALID_S, "TOKEN_EXPIRED"),
        ("node", 0.0, "TOKEN_FOR_NODE"),
    ],
)
def test_tokens_that_let_nobody_in_are_told_apart(
    office: Office, secret: str, after_s: float, told: str
) -> None:
    """Unknown, expired, a node's: each with its reason, and nobody has become anybody."""
    office.invite("ana", "secret")
    office.database.write_now(
        lambda c: people.invite(
            c, NODE, "hpc", "node", spiffe_id="x", now_s=NOW_S, expires_at_s=NOW_S + VALID_S
        )
    )
    assert reason(lambda: office.redeem(secret, after_s=after_s)) == told
    assert office.certificates_of("ana") == []
    assert "ana" not in office.database.read_now(users.all_users)


def test_a_persons_token_lets_no_node_in(office: Office) -> None:
    """It says whom it is for, and stays good for them."""
    office.invite("ana", "secret")
    redeem = reason(
        lambda: office.database.write_now(lambda c: people.redeem(c, "secret", "key", NOW_S))
    )
    assert redeem == "TOKEN_FOR_PERSON"
    assert reason(lambda: office.redeem("secret")) == ""


@pytest.mark.parametrize("common_name", [True, False])
def test_a_request_for_another_name_is_refused_and_uses_nothing_up(
    office: Office, common_name: bool
) -> None:
    """By subject or by alternative name; the right request gets in afterwards."""
    office.invite("ana", "secret")
    assert (
        reason(lambda: office.redeem("secret", asking_for("operator", common_name))) == "CSR_NAMES"
    )
    assert office.certificates_of("ana") == office.certificates_of("operator") == []
    assert office.redeem("secret", asking_for("ana", common_name)).identity.name == "ana"


def asking_for(name: str, common_name: bool) -> bytes:
    """A request that names somebody."""
    subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if common_name else []
    uri = x509.UniformResourceIdentifier(f"spiffe://test.example/user/{name}")
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if not common_name:
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    key: ec.EllipticCurvePrivateKey = new_key()
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_name_that_has_joined_is_not_invited_again(office: Office) -> None:
    """Two people under one name would share an identity, and an operator could take another's."""
    office.joins("ana")
    assert reason(lambda: office.invite("ana", "t", "operator")) == "USER_EXISTS"
    assert office.standing("ana").roles == {"engineer"}


def test_a_new_invitation_voids_the_one_before(office: Office) -> None:
    """Of two for one name only the newest works, with its roles."""
    office.invite("ana", "secret", "operator")
    office.invite("ana", "t", "engineer")
    assert reason(lambda: office.redeem("secret")) == "TOKEN_INVALID"
    assert office.redeem("t").user.roles == {"engineer"}


def test_a_person_goes_from_invited_to_joined_to_revoked_and_back(office: Office) -> None:
    """Whose certificate was revoked gets a new one with a new invitation, and new roles if it
    says so."""
    office.invite("ana", "secret")
    assert office.standing("ana").status == "invited"
    assert office.standing("ana").invitation_ends_at_s == pytest.approx(NOW_S + VALID_S)
    office.redeem("secret")
    joined = office.standing("ana")
    assert (joined.status, joined.invitation_ends_at_s) == ("joined", 0.0)
    assert joined.certificate_ends_at_s == int(NOW_S + PERSON_LIFETIME.total_seconds())
    for _ in range(2):  # the second time is the retry of a reply that got lost
        assert office.revoke("ana").status == "revoked"
    assert office.certificates_of("ana") == [True]
    office.invite("ana", "t", "privacy-officer")
    assert office.standing("ana").status == "invited"
    office.redeem("t")
    again = office.standing("ana")
    assert (again.status, again.roles) == ("joined", {"privacy-officer"})
    assert sorted(office.certificates_of("ana")) == [False, True]


def test_whose_certificate_has_ended_is_invited_again(office: Office) -> None:
    """Nobody can connect with it; until the invitation is redeemed the roles are as they were."""
    office.joins("ana")
    after_s = PERSON_LIFETIME.total_seconds() + 1
    assert office.standing("ana", after_s).status == "joined"
    office.invite("ana", "t", "operator", after_s=after_s)
    assert office.standing("ana", after_s).status == "invited"
    assert office.database.read_now(users.all_users)["ana"].roles == {"engineer"}
    office.redeem("t", after_s=after_s)
    assert office.standing("ana", after_s).is_operator(NOW_S + after_s)


def test_roles_and_project_are_those_of_an_open_invitation_and_else_what_the_person_has(
    office: Office,
) -> None:
    """One that was withdrawn gives nothing: whoever had joined before is shown as they were, and
    who never had as they were invited."""

    def shown(name: str, after_s: float = 0.0) -> tuple[str, list[str], str]:
        found = office.standing(name, after_s)
        return found.status, sorted(found.roles), found.project

    office.joins("boss", "operator")
    office.invite("ana", "s1", "engineer", project="stroke")
    assert shown("ana") == ("invited", ["engineer"], "stroke")
    office.revoke("ana")
    assert shown("ana") == ("revoked", ["engineer"], "stroke")
    office.invite("ana", "s2", "engineer", project="stroke")
    office.redeem("s2")
    office.revoke("ana")
    office.invite("ana", "s3", "privacy-officer", project="heart")
    assert shown("ana") == ("invited", ["privacy-officer"], "heart")
    office.revoke("ana")
    assert shown("ana") == ("revoked", ["engineer"], "stroke")


def test_an_operator_who_was_invited_as_less_and_given_a_certificate_is_one(office: Office) -> None:
    """They are what they are until the invitation is redeemed: on the coordinator's machine they
    were given another certificate meanwhile. Nobody is then told that they can be revoked."""
    office.joins("boss", "operator")
    after_s = PERSON_LIFETIME.total_seconds() + 1
    office.invite("boss", "t", "engineer", after_s=after_s)
    key, now = new_key().public_key(), NOW + timedelta(seconds=after_s)
    issued = office.authority.issue(
        key, office.identity("boss"), now=now, lifetime=timedelta(days=1)
    )
    office.database.write_now(lambda c: certificates.add(c, issued, key_digest(key)))
    found = office.standing("boss", after_s)
    assert (found.status, found.roles) == ("joined", {"operator"})
    assert found.is_operator(NOW_S + after_s)


def test_who_has_a_certificate_by_then_redeems_no_older_invitation(office: Office) -> None:
    """One that was given meanwhile on the coordinator's machine counts, and the token stays."""
    office.invite("ana", "secret")
    key = new_key().public_key()
    issued = office.authority.issue(
        key, office.identity("ana"), now=NOW, lifetime=timedelta(days=1)
    )
    office.database.write_now(lambda c: certificates.add(c, issued, key_digest(key)))
    assert reason(lambda: office.redeem("secret")) == "USER_EXISTS"


def test_a_revocation_withdraws_the_invitation_and_the_answer_to_it(office: Office) -> None:
    """Before it was redeemed, and after: the key that had the certificate is not told it again."""
    office.invite("ana", "secret")
    assert office.revoke("ana").status == "revoked"
    assert reason(lambda: office.redeem("secret")) == "TOKEN_WITHDRAWN"
    office.invite("ben", "t")
    csr = make_csr(new_key())
    office.redeem("t", csr)
    office.revoke("ben")
    assert reason(lambda: office.redeem("t", csr)) == "TOKEN_WITHDRAWN"


def test_a_revocation_changes_nobody_else(office: Office) -> None:
    """Other people's certificates, roles and invitations are as before; so is a node of that
    name."""
    office.joins("boss", "operator")
    office.joins(NODE)
    office.joins("ben", "engineer")
    office.invite("eve", "t")
    node = SpiffeId("test.example", "node", NODE)
    issued = office.authority.issue(
        new_key().public_key(), node, now=NOW, lifetime=timedelta(days=1)
    )
    office.database.write_now(lambda c: certificates.add(c, issued))
    others = [office.standing(name) for name in ("boss", "ben", "eve")]
    office.revoke(NODE)
    assert [office.standing(name) for name in ("boss", "ben", "eve")] == others
    assert office.database.read_now(lambda c: certificates.live(c, node))
    assert reason(lambda: office.redeem("t")) == ""


def test_the_last_operator_who_can_connect_is_not_revoked(office: Office) -> None:
    """One who is only invited, was revoked, or whose certificate has ended is no other."""
    office.joins("boss", "operator", "engineer")
    office.joins("gone", "operator")
    office.revoke("gone")
    office.invite("next", "secret", "operator")
    office.joins("ana")
    ended = office.authority.issue(
        new_key().public_key(),
        office.identity("old"),
        now=NOW - timedelta(days=9),
        lifetime=timedelta(days=1),
    )
    office.database.write_now(lambda c: certificates.add(c, ended))
    office.database.write_now(
        lambda c: users.add_user(c, User("old", frozenset({"operator"}), "default"))
    )
    assert reason(lambda: office.revoke("boss")) == "LAST_OPERATOR"
    assert office.certificates_of("boss") == [False]
    office.redeem("secret")
    assert reason(lambda: office.revoke("boss")) == ""
    assert reason(lambda: office.revoke("next")) == "LAST_OPERATOR"


def test_an_unknown_name_is_told_with_the_nearest(office: Office) -> None:
    """Nothing is revoked for a slip of the finger."""
    office.joins("ana")
    with pytest.raises(FeddpError, match=r"did you mean ana\?") as caught:
        office.revoke("anna")
    assert caught.value.reason == "USER_UNKNOWN"


def test_two_operators_who_revoke_each_other_at_once_leave_one(office: Office, url: str) -> None:
    """The second comes after the first, and is then the last."""
    for round_ in range(4):
        names = (f"one-{round_}", f"two-{round_}")
        for name in names:
            office.joins(name, "operator")
        acts = [lambda own, name=name: office.revoke(name, own) for name in names]
        assert at_once(url, acts) == {"": 1, "LAST_OPERATOR": 1}
        (left,) = [name for name in names if office.certificates_of(name) == [False]]
        identity = office.identity(left)
        office.database.write_now(lambda c, one=identity: certificates.revoke(c, one))


def test_a_token_that_is_redeemed_while_it_is_withdrawn_lets_nobody_in(
    office: Office, url: str
) -> None:
    """Whichever comes first, no certificate stands afterwards."""
    for number in range(8):
        name = f"ana-{number}"
        office.invite(name, f"s{number}")
        at_once(
            url,
            [
                lambda own, n=number: office.redeem(f"s{n}", database=own),
                lambda own, n=name: office.revoke(n, own),
            ],
        )
        assert office.certificates_of(name) in ([], [True])
        assert office.standing(name).status == "revoked"


def test_a_certificate_that_was_revoked_has_no_successor(office: Office) -> None:
    """A renewal that was let in before the revocation, and is served after it, is refused."""
    office.joins("ana")
    office.revoke("ana")
    identity = office.identity("ana")
    (fingerprint,) = [
        f
        for f, r in office.database.read_now(certificates.records).items()
        if r.spiffe_id == identity
    ]
    for act in (
        lambda c: certificates.answered_before(c, fingerprint, identity, "another key"),
        lambda c: certificates.put_in_use(c, fingerprint, identity),
    ):
        assert reason(lambda act=act: office.database.write_now(act)) == "CERTIFICATE_REVOKED"


def test_when_people_called_last_is_kept(office: Office) -> None:
    """Of those who are known; a name that is not changes nothing."""
    office.joins("ana")
    assert office.standing("ana").last_used_at_s == 0.0
    office.database.write_now(lambda c: users.keep_used(c, {"ana": 7.5, "nobody": 8.5}))
    office.database.write_now(lambda c: users.keep_used(c, {}))
    assert office.standing("ana").last_used_at_s == 7.5


def test_a_database_of_before_is_upgraded_with_its_people(office: Office) -> None:
    """The operator of an older installation goes on, with every role and nobody's invitation; and
    downgraded again, who has joined stays as they were."""
    key = new_key().public_key()
    issued = office.authority.issue(
        key, office.identity("operator"), now=NOW, lifetime=PERSON_LIFETIME
    )

    def older(connection: Connection) -> None:
        command.downgrade(alembic_config(connection), "0001")
        connection.execute(
            text("INSERT INTO users (name, roles, project) VALUES (:n, :r, 'default')"),
            {"n": "operator", "r": "engineer,operator,privacy-officer"},
        )
        connection.execute(
            text(
                "INSERT INTO certificates (fingerprint, spiffe_id, not_before, not_after, revoked)"
                " VALUES (:f, :s, 0, :e, :r)"
            ),
            {
                "f": issued.fingerprint,
                "s": str(issued.spiffe_id),
                "e": issued.not_after.timestamp(),
                "r": False,
            },
        )

    office.database.write_now(older)
    assert set(office.database.read_now(users.all_users)) == {"operator"}, "before the upgrade"
    office.database.migrate()
    before = office.standing("operator")
    assert (before.status, before.invited_by, before.last_used_at_s) == ("joined", "", 0.0)
    assert before.is_operator(NOW_S)
    office.joins("ana")
    office.invite("ben", "t")
    office.database.write_now(lambda c: command.downgrade(alembic_config(c), "0008"))
    assert set(office.database.read_now(users.all_users)) == {"operator", "ana"}
    office.database.migrate()
    assert office.standing("operator") == before
    assert office.standing("ana").status == "joined"


def test_the_ledger_key_of_a_node_is_not_touched_by_a_person_of_its_name(office: Office) -> None:
    """Names of nodes and of people are apart."""
    office.database.write_now(lambda c: people.redeem(c, "s", "key", 10.0))
    office.database.write_now(lambda c: people.enrol(c, "s", NODE, PUBLIC, b"chain"))
    office.joins(NODE)
    assert office.database.read_now(lambda c: people.node(c, NODE)).ledger_public_key == PUBLIC
