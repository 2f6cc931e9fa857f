"""A fake coordinator with real mutual TLS, a profile for it, and a way to run the command."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Ran, Run, Verify
from fake_coordinator import TRUST_DOMAIN, Coordinator, State, serve
from federation_ledger import Federation, two_attempts_each

from certs.authority import NODE_LIFETIME, Authority
from certs.credentials import server_credentials
from certs.enrolment import new_key, private_pem
from certs.spiffe import SpiffeId
from feddp.cli.app import main
from feddp.client import Client
from feddp.profile import Profile

PERSON_LIFETIME = timedelta(days=365)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `feddp WORDS` in this process; both streams are pipes."""
    monkeypatch.delenv("FEDDP_DIR", raising=False)
    monkeypatch.delenv("FEDDP_PROFILE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.umask", lambda _: 0)  # it would hold for every later test

    def command(*words: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        streams = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return Ran(code, streams.out, streams.err)

    return command


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The certificate authority of the fake coordinator."""
    return Authority.create(tmp_path / "ca", TRUST_DOMAIN)


@pytest.fixture
def write_profile(tmp_path: Path) -> Callable[[Authority, int, str], Path]:
    """A function that writes a profile folder for a coordinator on that port."""

    def write(authority: Authority, port: int, name: str = "operator") -> Path:
        key = new_key()
        issued = authority.issue(
            key.public_key(),
            SpiffeId(TRUST_DOMAIN, "user", name),
            now=datetime.now(UTC),
            lifetime=PERSON_LIFETIME,
        )
        folder = tmp_path / name
        folder.mkdir(parents=True)
        described = {"address": f"127.0.0.1:{port}", "name": name}
        (folder / "profile.yaml").write_text(yaml.safe_dump(described))
        (folder / "key.pem").write_bytes(private_pem(key))
        (folder / "chain.pem").write_bytes(issued.chain_pem)
        (folder / "bundle.pem").write_bytes(authority.trust_bundle)
        return folder

    return write


@pytest.fixture
def coordinator(
    authority: Authority, write_profile: Callable[[Authority, int], Path]
) -> Iterator[Coordinator]:
    """A fake coordinator that requires a client certificate of `authority`."""
    key = new_key()
    issued = authority.issue(
        key.public_key(),
        SpiffeId(TRUST_DOMAIN, "coordinator"),
        now=datetime.now(UTC),
        lifetime=NODE_LIFETIME,
        ip_addresses=["127.0.0.1"],
    )
    state = State()
    port, stop = serve(
        state, server_credentials(issued.chain_pem, private_pem(key), authority.trust_bundle)
    )
    yield Coordinator(state, write_profile(authority, port), port, stop)
    stop()


@pytest.fixture
def client(coordinator: Coordinator) -> Iterator[Client]:
    """A client of the fake coordinator."""
    with Client(Profile.load(coordinator.profile)) as found:
        yield found


@pytest.fixture
def federation() -> Federation:
    """See `two_attempts_each`."""
    return two_attempts_each()


@pytest.fixture
def verify(run: Run, tmp_path: Path) -> Verify:
    """`budget verify` of an export beside nodes' files; (exit code, stdout and stderr)."""

    def verified(export: Any, *files: Any) -> tuple[int, str]:
        (tmp_path / "ledger.json").write_text(json.dumps(export))
        words: list[str] = []
        for number, file in enumerate(files):
            (tmp_path / f"{number}.json").write_text(json.dumps(file))
            words += ["--heads", f"{number}.json"]
        ran = run("budget", "verify", "ledger.json", *words)
        return ran.code, ran.out + ran.err

    return verified
