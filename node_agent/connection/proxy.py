"""How the coordinator is reached: directly, or through an HTTP proxy by CONNECT.

gRPC itself speaks CONNECT and carries our mTLS inside it, so that the proxy sees a host name and a
port and nothing else. What this decides is whether, through which proxy, and with what credentials;
gRPC is always told, so that what it would read from the environment cannot differ from what we say.
"""

import base64
import ipaddress
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node_agent.yaml_files.shapes import shaped
from protos.errors import Malformed

PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "HTTPS_PROXY", "http_proxy")
EXCEPTION_VARIABLES: Final = ("no_grpc_proxy", "no_proxy", "NO_PROXY")
CREDENTIALS_BYTES_MAX: Final = 4096
PORT_DEFAULT: Final = 80
DIRECT: Final = "direct"

_URL: Final = r"(direct|(http://)?([^\s:/@\[\]]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}/?)?"


class ProxyConfig(BaseModel):
    """`proxy` in agent.yaml.

    Attributes:
        url: "http://HOST:PORT"; "direct" for none whatever the environment says; empty for what
            the environment says. Credentials do not belong here: the file is shown to people.
        credentials_file: holds "USER:PASSWORD" in one line; from DIR unless absolute.
        credentials_env: name of a variable that holds the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    url: Annotated[
        str,
        shaped(
            _URL,
            "http://HOST:PORT of the proxy, without a user and a password, or direct",
            "http://proxy.example:3128",
        ),
    ] = ""
    credentials_file: str = Field(default="", max_length=4096, examples=["proxy.credentials"])
    credentials_env: Annotated[
        str,
        shaped(
            r"([A-Za-z_][A-Za-z0-9_]*)?", "the name of a variable of the agent", "PROXY_CREDENTIALS"
        ),
    ] = ""

    @model_validator(mode="after")
    def _one_source(self) -> "ProxyConfig":
        given = [self.credentials_file, self.credentials_env]
        if all(given):
            raise ValueError("give credentials_file or credentials_env, not both")
        if any(given) and self.url in ("", DIRECT):
            raise ValueError("credentials_file and credentials_env go with the url of a proxy")
        return self


OPTION: Final = "--proxy"
"""A route's source, before agent.yaml is written."""


@dataclass(frozen=True, slots=True)
class Route:
    """A way to one address.

    Attributes:
        address: "host:port" of the coordinator.
        proxy: "host:port" of the proxy; empty for none.
        source: what decided it: "agent.yaml", `OPTION`, a variable's name, or "" for nothing.
        credentials: "user:password"; never shown.
        credentials_from: the file or variable that they are from.
    """

    address: str
    proxy: str = ""
    source: str = ""
    credentials: str = field(default="", repr=False)
    credentials_from: str = ""

    def said(self) -> str:
        """For people and logs."""
        if not self.proxy:
            return f"directly ({self.source} says so)" if self.source else "directly"
        with_ = "with credentials" if self.credentials else "without credentials"
        return f"through the proxy {self.proxy} ({self.source}, {with_})"

    def options(self) -> tuple[tuple[str, str | int], ...]:
        """gRPC channel options."""
        if not self.proxy:
            return (("grpc.enable_http_proxy", 0),)
        user, _, password = self.credentials.partition(":")
        before = f"{quote(user, safe='')}:{quote(password, safe='')}@" if self.credentials else ""
        return (("grpc.http_proxy", f"http://{before}{self.proxy}"),)

    def authorization(self) -> str:
        """The value of Proxy-Authorization; empty without credentials."""
        if not self.credentials:
            return ""
        return f"Basic {base64.b64encode(self.credentials.encode()).decode()}"


def route_to(
    address: str, config: ProxyConfig, root: Path, environment: Mapping[str, str]
) -> Route:
    """Decide how `address` is reached.

    `no_proxy` holds for a proxy of agent.yaml as well: gRPC applies it to either.

    Args:
        address: "host:port".
        root: the agent's folder.

    Raises:
        Malformed: PROXY_INVALID; the message never holds credentials.
    """
    if config.url == DIRECT:
        return Route(address, source="agent.yaml")
    name, url = ("agent.yaml", config.url) if config.url else _first(PROXY_VARIABLES, environment)
    if not url:
        return Route(address)
    exception, hosts = _first(EXCEPTION_VARIABLES, environment)
    host = split_address(address)[0]
    if any(_covers(one, host) for one in hosts.split(",")):
        return Route(address, source=exception)
    proxy, credentials = _parsed(name, url)
    where = name
    if config.url:
        credentials, where = _configured(config, root, environment)
    return Route(address, proxy, name, credentials, where if credentials else "")


def split_address(address: str) -> tuple[str, int]:
    """(host without brackets, port) of "host:port"."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _first(names: tuple[str, ...], environment: Mapping[str, str]) -> tuple[str, str]:
    return next(((name, environment[name]) for name in names if environment.get(name)), ("", ""))


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of no_proxy is about a host: a suffix of its name, an address or a network.

    At least what gRPC takes it for, so that it never skips a proxy that we say is used.
    """
    entry = entry.strip().lower()
    if entry == "*":
        return True
    bare = entry.removeprefix("*").removeprefix(".")
    if not bare:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except (ValueError, TypeError):
        return host.lower().endswith(bare)


def _parsed(name: str, url: str) -> tuple[str, str]:
    """("host:port", "user:password") of a proxy's URL."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or PORT_DEFAULT
        scheme = parts.scheme
    except ValueError:
        host, port, scheme = None, 0, "http"
    if scheme != "http":
        raise _invalid(
            f"{name} names a {scheme} proxy, and the agent speaks to its proxy over http (TLS to "
            "the coordinator runs inside): give http://HOST:PORT"
        )
    if not host:
        raise _invalid(f"{name} is not http://HOST:PORT")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}", f"{user}:{password}" if user else ""


def _configured(config: ProxyConfig, root: Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """ "user:password" from where agent.yaml says it is, and where that is; empty for none."""
    if config.credentials_env:
        where, text = config.credentials_env, environment.get(config.credentials_env, "")
    elif config.credentials_file:
        path = root / config.credentials_file
        where, text = str(path), _read(path)
    else:
        return "", ""
    line = text.strip("\r\n")
    if not line.partition(":")[0] or "\n" in line or ":" not in line:
        raise _invalid(f"{where} must hold USER:PASSWORD in one line, and does not")
    return line, where


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o007:
                raise _invalid(f"{path} may be read by everybody on this machine: chmod o= {path}")
            return file.read(CREDENTIALS_BYTES_MAX).decode("utf-8-sig")
    except OSError as error:
        raise _invalid(f"{path} cannot be read ({error.strerror}); write it there") from None
    except UnicodeDecodeError:
        raise _invalid(f"{path} must hold USER:PASSWORD as UTF-8, and does not") from None


def _invalid(what: str) -> Malformed:
    return Malformed("PROXY_INVALID", f"the proxy's settings cannot be used: {what}")
