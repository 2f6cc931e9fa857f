"""The way to the coordinator through an HTTP proxy: what decides it, and that it works."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.authority import Authority
from node_agent.connection.proxy import ProxyConfig, route_to
from node_agent.folder.config import Folder, load_config
from node_agent.joining.enrol import join
from protos.errors import Malformed
from tests.node_agent.agent_federation import (
    TRUST_DOMAIN,
    FakeCoordinator,
    FakeWorker,
    RunningAgent,
    make_agent,
    real_order,
)
from tests.node_agent.joining.test_enrol import FakeEnrolment
from tests.node_agent.proxies import ConnectProxy

ADDRESS = "feddp.example:443"
SECRET = "us er:p@ss:w%rd/?#"
ENCODED = "us%20er:p%40ss%3Aw%25rd%2F%3F%23"


def route(config: Mapping[str, str] | None = None, root: Path = Path(), **environment: str) -> Any:
    """The route to `ADDRESS`."""
    return route_to(ADDRESS, ProxyConfig.model_validate(config or {}), root, environment)


def test_without_settings_the_way_is_direct_and_grpc_looks_for_no_proxy_of_its_own() -> None:
    """What gRPC would read from the environment cannot differ from what is said."""
    assert route().said() == "directly"
    assert route().options() == (("grpc.enable_http_proxy", 0),)


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "grpc_proxy", "http_proxy"])
def test_the_environments_proxy_is_used_and_said(name: str) -> None:
    """With the variable's name, and without its password."""
    found = route(**{name: f"http://{ENCODED}@proxy.example:3128"})
    assert found.said() == f"through the proxy proxy.example:3128 ({name}, with credentials)"
    assert found.credentials == SECRET
    assert "p@ss" not in repr(found)


def test_agent_yaml_comes_before_the_environment() -> None:
    """A service's environment is seldom what a person sees."""
    found = route({"url": "http://own.example:3128"}, https_proxy="http://other.example:3128")
    assert (found.proxy, found.source) == ("own.example:3128", "agent.yaml")
    assert route({"url": "direct"}, https_proxy="http://other.example:3128").proxy == ""


@pytest.mark.parametrize(
    ("exceptions", "is_direct"),
    [
        ("feddp.example", True),
        (".example", True),
        (".feddp.example", True),
        ("other.org, *.example", True),
        ("*", True),
        ("FEDDP.EXAMPLE", True),
        ("feddp.example.org", False),
        ("other.example", False),
        (" , ", False),
    ],
)
def test_no_proxy_is_honoured_and_said(exceptions: str, is_direct: bool) -> None:
    """For a proxy of either source, as gRPC does it."""
    for config, more in (({}, {"https_proxy": "http://p:1"}), ({"url": "http://p:1"}, {})):
        found = route(config, no_proxy=exceptions, **more)
        assert (found.proxy == "") == is_direct
        assert ("no_proxy says so" in found.said()) == is_direct


def test_no_proxy_takes_networks() -> None:
    """As addresses are dialled in some hospitals."""
    inside = route_to(
        "10.1.2.3:443", ProxyConfig(), Path(), {"https_proxy": "p:1", "no_proxy": "10.0.0.0/8"}
    )
    assert inside.proxy == ""


@pytest.mark.parametrize(
    "url", ["https://proxy:3128", "socks5://proxy:1080", "http://", "http://p:x"]
)
def test_a_proxy_that_cannot_be_spoken_to_is_refused_and_not_passed_by(url: str) -> None:
    """gRPC would go out directly without a word; nothing of the URL's password is shown."""
    with pytest.raises(Malformed) as refused:
        route(https_proxy=url.replace("://", "://user:secret@"))
    assert refused.value.reason == "PROXY_INVALID"
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    "config",
    [
        {"url": "http://user:secret@proxy:3128"},
        {"url": "https://proxy:3128"},
        {"url": "http://proxy"},
        {"credentials_file": "f"},
        {"url": "direct", "credentials_env": "X"},
        {"url": "http://proxy:1", "credentials_env": "X", "credentials_file": "f"},
    ],
)
def test_agent_yaml_takes_no_credentials_and_nothing_that_has_no_effect(
    tmp_path: Path, config: dict[str, str]
) -> None:
    """The message names the key, and not what stands there."""
    folder = Folder(tmp_path)
    base = {"coordinator": ADDRESS, "trust_domain": "t", "node": "n", "node_class": "edge"}
    folder.agent_yaml.write_text(yaml.safe_dump({**base, "proxy": config}))
    with pytest.raises(Malformed, match="key proxy") as refused:
        load_config(folder)
    assert "secret" not in refused.value.message


def test_credentials_come_from_a_file_or_a_variable(tmp_path: Path) -> None:
    """The file is not everybody's, and holds one line."""
    file = tmp_path / "proxy.credentials"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o640)
    by_file = {"url": "http://proxy:1", "credentials_file": file.name}
    assert route(by_file, tmp_path).credentials == SECRET
    by_name = {"url": "http://proxy:1", "credentials_env": "PROXY_LOGIN"}
    assert route(by_name, PROXY_LOGIN=SECRET).credentials == SECRET
    for broken in (lambda: file.chmod(0o644), lambda: file.write_text("one\ntwo:x\n"), file.unlink):
        broken()
        with pytest.raises(Malformed) as refused:
            route(by_file, tmp_path)
        assert "p@ss" not in refused.value.message
        if file.exists():
            file.chmod(0o640)
    with pytest.raises(Malformed, match="PROXY_LOGIN"):
        route(by_name)


@asynccontextmanager
async def agent(
    tmp_path: Path, proxy: ConnectProxy, **config: str
) -> AsyncIterator[FakeCoordinator]:
    """A running agent whose agent.yaml names the proxy."""
    authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
    coordinator = FakeCoordinator(authority)
    await coordinator.start()
    folder = make_agent(tmp_path / "agent", authority, coordinator.port)
    settings = yaml.safe_load(folder.agent_yaml.read_text())
    settings["proxy"] = {"url": proxy.url(), **config}
    folder.agent_yaml.write_text(yaml.safe_dump(settings))
    try:
        async with RunningAgent(folder, FakeWorker()):
            yield coordinator
    finally:
        await coordinator.stop()


def test_a_round_goes_through_a_proxy_with_credentials(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Session, model and update go through it, mTLS inside; no password is in a log."""
    login = tmp_path / "login"
    login.write_text(SECRET)
    login.chmod(0o600)

    async def work() -> FakeCoordinator:
        async with agent(tmp_path, proxy, credentials_file=str(login)) as coordinator:
            coordinator.orders = [real_order()]
            await coordinator.heard("hello")
            await coordinator.until_submitted()
        return coordinator

    with ConnectProxy(SECRET) as proxy:
        coordinator = asyncio.run(work())
        assert set(proxy.asked) == {f"127.0.0.1:{coordinator.port}"}
        assert "Proxy-Authorization: Basic" in proxy.heard[0]
    assert coordinator.downloads > 0
    assert coordinator.uploads
    told = "".join(capfd.readouterr())
    assert f"through the proxy 127.0.0.1:{proxy.port} (agent.yaml, with credentials)" in told
    for secret in ("p@ss", "p%40ss", "dXMgZXI6"):
        assert secret not in told


def test_a_proxy_that_goes_away_is_found_again(tmp_path: Path) -> None:
    """The session is opened anew through it."""

    async def work() -> None:
        async with agent(tmp_path, proxy) as coordinator:
            await coordinator.heard("hello")
            proxy.cut()
            await coordinator.heard("hello")
            assert coordinator.sessions == 2

    with ConnectProxy() as proxy:
        asyncio.run(work())


def test_joining_goes_through_the_proxy_and_writes_it_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--proxy` says is in agent.yaml, so that the service has it too."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    login = tmp_path / "login"
    login.write_text(SECRET)
    login.chmod(0o600)
    authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
    enrolment = FakeEnrolment(authority)
    try:
        with ConnectProxy(SECRET) as proxy:
            config = ProxyConfig(url=proxy.url(), credentials_file=str(login))
            made = join(enrolment.token(), tmp_path / "a", proxy=config)
            assert proxy.asked == [f"127.0.0.1:{enrolment.port}"]
    finally:
        enrolment.stop()
    written = load_config(Folder(made.path)).proxy
    assert (written.url, written.credentials_file) == (config.url, str(login))
    assert "p@ss" not in (made.path / "agent.yaml").read_text()


def test_joining_again_keeps_what_it_had_written_down(tmp_path: Path) -> None:
    """A node whose certificate ended goes on through the same proxy, with the same limits."""
    authority = Authority.create(tmp_path / "ca", TRUST_DOMAIN)
    folder = make_agent(tmp_path / "a", authority, 1, timedelta(hours=169))
    settings = yaml.safe_load(folder.agent_yaml.read_text())
    enrolment = FakeEnrolment(authority)
    try:
        with ConnectProxy() as proxy:
            kept = {"proxy": {"url": proxy.url()}, "worker": {"threads": 3}}
            folder.agent_yaml.write_text(yaml.safe_dump({**settings, **kept}))
            join(enrolment.token(), folder.root)
            assert proxy.asked == [f"127.0.0.1:{enrolment.port}"]
    finally:
        enrolment.stop()
    written = yaml.safe_load(folder.agent_yaml.read_text())
    assert {name: written[name] for name in kept} == kept
    assert written["coordinator"] == "127.0.0.1:8443"
