"""Hospitals and coordinators of released versions, their code run as it was, beside this one's."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from feddp.client import Client
from feddp.demo.ports import choose_ports
from feddp.joining import join
from feddp.profile import Profile
from feddp.signing import make_key
from protos.content import digest_of
from tests.integration.federation import (
    Federation,
    cli_json,
    job_file,
    of_tree,
    wait_for,
    write_data,
)

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
PARTS = {"certs", "coordinator", "feddp", "node_agent", "privacy", "protos"}
HOSPITALS = ("alpha", "beta", "gamma")
RELEASES = [
    tuple(line.split())
    for line in (HERE / "releases.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@dataclass(frozen=True, slots=True)
class Release:
    """The code of a release in a folder of its own."""

    version: str
    tree: Path

    def feddp(self, *arguments: str) -> str:
        """What a command of that release prints."""
        return self._run("-m", "feddp", *arguments)

    def tasks(self) -> list[str]:
        """What its steward would allow: each installed task with the hash of its content."""
        code = (
            "import json; from node_agent.tasks.registry import installed; "
            "print(json.dumps([f'{one.name}@{one.content_hash}' for one in installed().values()]))"
        )
        return list(json.loads(self._run("-c", code)))

    def code(self) -> str:
        """Where its processes find the code."""
        return self._run("-c", "import coordinator; print(coordinator.__file__)").strip()

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **of_tree(self.tree),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def archived(version: str, digest: str) -> tarfile.TarFile:
    """The code of a release, as `releases.txt` vouches for it; without it the test fails."""
    path = HERE / f"{version}.tar.xz"
    made = "`git archive` as releases.txt says makes it anew, in a clone with the whole history"
    if not path.is_file():
        pytest.fail(f"{path} is missing, and with it what release {version} ran: {made}")
    data = path.read_bytes()
    if digest_of(data) != digest:
        pytest.fail(
            f"{path} is not the archive of release {version} that releases.txt names: {made}"
        )
    return tarfile.open(fileobj=io.BytesIO(data))


@pytest.fixture(scope="module", params=RELEASES, ids=[one[0] for one in RELEASES])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release, out of its archive: a clone may be without history."""
    version, _, digest = request.param
    tree = tmp_path_factory.mktemp(f"release-{version}")
    with archived(version, digest) as files:
        files.extractall(tree, filter="data")
    found = Release(version, tree)
    assert Path(found.code()).is_relative_to(tree), "another release's code would be run"
    return found


@pytest.mark.parametrize(("version", "commit", "digest"), RELEASES)
def test_an_archive_is_the_released_commit(version: str, commit: str, digest: str) -> None:
    """File by file where this clone has the commit, and by its digest everywhere."""
    with archived(version, digest) as files:
        held = {}
        for one in files:
            if one.isfile():
                content = files.extractfile(one)
                assert content is not None
                held[one.name] = _blob_id(content.read())
    listed = subprocess.run(
        ["git", "ls-tree", "-r", commit],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert {name.partition("/")[0] for name in held} == PARTS
    if listed.returncode == 0:
        entries = (line.partition("\t") for line in listed.stdout.splitlines())
        released = {name: about.split()[2] for about, _, name in entries}
        assert held == {
            name: blob for name, blob in released.items() if name.partition("/")[0] in PARTS
        }


def test_a_release_whose_archive_is_gone_or_changed_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never passed over: then nothing would be shown of the release."""
    (version, _, digest) = RELEASES[0]
    monkeypatch.setattr(sys.modules[__name__], "HERE", tmp_path)
    with pytest.raises(pytest.fail.Exception, match="is missing, and with it what release"):
        archived(version, digest)
    (tmp_path / f"{version}.tar.xz").write_bytes(b"another")
    with pytest.raises(pytest.fail.Exception, match="is not the archive of release"):
        archived(version, digest)


def _blob_id(content: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


@dataclass(frozen=True, slots=True)
class Upgraded:
    """One federation that was upgraded while it lived, with what its ledger held at each stage.

    Attributes:
        jobs: (status, nodes that trained) of one job a stage: all of the release; this coordinator
            with the release's agents; one agent of this version among them, which has another
            version of the task and is left out; all of this version.
        ledgers: `feddp budget ledger --json` after each.
    """

    federation: Federation
    jobs: list[tuple[str, set[str]]]
    ledgers: list[dict[str, Any]]


@pytest.fixture(scope="module")
def upgraded(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    """The coordinator first, then one hospital, then the others."""
    federation = Federation(tmp_path_factory.mktemp("federation"))
    _install(federation, release)
    found = Upgraded(federation, [], [])
    federation.start("coordinator")
    try:
        for name in HOSPITALS:
            _join(federation, release, name)
            federation.start(name)
        _stage(found, release)
        _restart(federation, "coordinator")
        _stage(found, release)
        _restart(federation, HOSPITALS[0])
        _stage(found, release, participants=len(HOSPITALS) - 1)
        for name in HOSPITALS[1:]:
            _restart(federation, name)
        _stage(found, None)
        yield found
    finally:
        federation.stop()


def _install(federation: Federation, release: Release) -> None:
    """Make the installation anew, by the release itself."""
    folder = federation.installation.folder
    settings = yaml.safe_load(federation.installation.config.read_text())
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    ports = choose_ports(None)
    options = dict(zip(("--port", "--enrollment-port", "--health-port"), ports, strict=True))
    named = [word for name, port in options.items() for word in (name, str(port))]
    release.feddp("coordinator", "init", "--dir", str(folder), "--host", "127.0.0.1", *named)
    federation.configure(**settings["federation"], min_participants=len(HOSPITALS) - 1)
    # This version's engineer signs; what does not know that passes it over.
    federation.engineer["public_key"] = make_key(federation.installation.profile)
    federation.trees["coordinator"] = release.tree


def _join(federation: Federation, release: Release, name: str) -> None:
    """A hospital of the release."""
    folder = federation.agent(name)
    with federation.client() as client:
        token = client.create_token(name, "edge", 3600).token
    release.feddp("agent", "join", token, "--dir", str(folder))
    write_data(folder, rows=60)
    federation.set_policy(name)
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    policy["allow"][0]["tasks"] = release.tasks()
    del policy["who_may_ask"]
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    federation.trees[name] = release.tree


def _restart(federation: Federation, name: str) -> None:
    """Stop a process of the release and start this version's in the same folder."""
    federation.terminate(name)
    del federation.trees[name]
    if name != "coordinator":
        policy = yaml.safe_load((federation.agent(name) / "policy.yaml").read_text())
        federation.set_policy(name)
        allowed = yaml.safe_load((federation.agent(name) / "policy.yaml").read_text())
        # The steward allows the new version's tasks and says who may ask, and nothing else.
        policy["who_may_ask"] = allowed["who_may_ask"]
        policy["allow"][0]["tasks"] = allowed["allow"][0]["tasks"]
        (federation.agent(name) / "policy.yaml").write_text(yaml.safe_dump(policy))
    federation.start(name)


def _stage(upgraded: Upgraded, release: Release | None, participants: int = 3) -> None:
    """A job by an engineer who has the release; None: by one who has this version."""
    federation = upgraded.federation
    federation.wait_for_nodes(*HOSPITALS)
    spec = job_file(
        federation={"rounds": 2, "min_participants": participants},
        privacy={"target_epsilon": None, "noise_multiplier": 20.0},
    )
    folder = federation.installation.folder
    if release is None:
        job_id = federation.submit(spec)
    else:
        file = federation.folder / "job.yaml"
        file.write_bytes(spec)
        job_id = json.loads(
            release.feddp("job", "submit", str(file), "--dir", str(folder), "--json")
        )["job_id"]
    status = federation.wait_for_end(job_id).status
    ledger: dict[str, Any] = {}

    def all_signed() -> bool:
        ledger.update(_ledger(federation, release))
        return all(entry["node_signature"] for entry in ledger["entries"])

    wait_for("every entry is signed", all_signed)
    trained = {
        entry["node"]
        for entry in ledger["entries"]
        if entry["job_id"] == job_id and entry["kind"] == "post"
    }
    upgraded.jobs.append((status, trained))
    upgraded.ledgers.append(ledger)


def _ledger(federation: Federation, release: Release | None) -> dict[str, Any]:
    """What the version of the running coordinator reads in its database."""
    words = ("budget", "ledger", "--dir", str(federation.installation.folder))
    if release is not None and "coordinator" in federation.trees:
        return dict(json.loads(release.feddp(*words, "--json")))
    return dict(cli_json(*words))


def test_a_release_works_with_this_coordinator_and_beside_this_agent(upgraded: Upgraded) -> None:
    """A job completes at each stage of an upgrade, with all hospitals that have its task."""
    everybody, others = set(HOSPITALS), set(HOSPITALS[1:])
    assert upgraded.jobs == [
        ("completed", who) for who in (everybody, everybody, others, everybody)
    ]
    posts = [
        sum(entry["kind"] == "post" for entry in ledger["entries"]) for ledger in upgraded.ledgers
    ]
    assert posts == [6, 12, 16, 22]


def test_an_upgrade_keeps_every_entry_and_the_chains_verify(upgraded: Upgraded) -> None:
    """What a release booked stays, byte for byte, the beginning of each account's chain."""
    for before, after in zip(upgraded.ledgers, upgraded.ledgers[1:], strict=False):
        assert _by_account(before).keys() == _by_account(after).keys()
        for account, entries in _by_account(before).items():
            assert _by_account(after)[account][: len(entries)] == entries
    found = cli_json("budget", "verify", "--dir", str(upgraded.federation.installation.folder))
    assert found["verified"]


def test_the_releases_operator_lets_others_in_after_the_upgrade(upgraded: Upgraded) -> None:
    """Nobody else could be in before; the profile that the release wrote invites, and revokes."""
    federation = upgraded.federation
    with federation.client() as client:
        (operator,) = client.users()
        assert (operator.name, operator.status) == ("operator", "joined")
        assert operator.certificate_expires_at > 0
        join(client.invite_user("ana", ["engineer"]).token, federation.folder / "ana")
        with Client(Profile.load(federation.folder / "ana")) as ana:
            assert len(ana.jobs()) == len(upgraded.jobs)
        assert client.revoke_user("ana").status == "revoked"


def _by_account(ledger: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in ledger["entries"]:
        found.setdefault(entry["account"], []).append(entry)
    return found


def test_a_hospitals_own_ledger_and_identity_survive_the_upgrade(upgraded: Upgraded) -> None:
    """After it the agent has spent what the coordinator booked over all stages, under one name."""
    federation = upgraded.federation
    final = upgraded.ledgers[-1]
    for name in HOSPITALS:
        (account,) = cli_json("agent", "status", "--dir", str(federation.agent(name)))["accounts"]
        (central,) = [one for one in final["accounts"] if one["node"] == name]
        assert account["posted_units"] == central["posted_units"] > 0
        assert not account.get("disputed")
