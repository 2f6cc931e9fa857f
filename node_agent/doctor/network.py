"""The way to the coordinator's port: its name, TCP, and the proxy between."""

import email.utils
import errno
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Final

from node_agent.connection.proxy import OPTION, PROXY_VARIABLES, Route, split_address
from node_agent.doctor.report import Check, skipped

LOOKUP_S_MAX: Final = 10.0
CONNECT_S_MAX: Final = 5.0
ANSWER_S_MAX: Final = 10.0
HEAD_BYTES_MAX: Final = 16_384
SHOWN_MAX: Final = 4
PLACE_CHARS_MAX: Final = 200
NAMES: Final = ("name", "tcp", "proxy")

REQUEST: Final = "`feddp agent doctor --firewall-request` prints the rules to ask for"


class Blocked(Exception):
    """The way is not open; `check` says where it ends."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.found)
        self.check = check


@dataclass(frozen=True, slots=True)
class ProxyAnswer:
    """How a proxy answered CONNECT.

    Attributes:
        date_s: by its Date header, seconds since the epoch; None without one.
        page: where it leads to in place of a tunnel; empty where it does not.
        has_page: it sent one in the place of a tunnel.
    """

    status: int
    schemes: tuple[str, ...]
    date_s: float | None
    page: str = ""
    has_page: bool = False

    @property
    def is_way(self) -> bool:
        """Whether it has opened the way."""
        return self.status == 200 and not self.has_page


def check_network(route: Route) -> tuple[list[Check], bool, float | None]:
    """(the checks `NAMES`, whether the way is open, the proxy's clock if it told)."""
    checks: list[Check] = []
    target = route.proxy or route.address
    try:
        checks.append(_looked_up(target, is_proxy=bool(route.proxy)))
        with _connected(target, is_proxy=bool(route.proxy)) as connection:
            checks.append(Check("tcp", "ok", f"{target} takes connections"))
            if not route.proxy:
                checks.append(Check("proxy", "skipped", f"not used: reached {route.said()}"))
                return checks, True, None
            answer = _asked(connection, route)
    except Blocked as blocked:
        checks.append(blocked.check)
        later = NAMES[NAMES.index(blocked.check.name) + 1 :]
        return [*checks, *skipped("the way ends before", *later)], False, None
    checks.append(_proxy_check(route, answer))
    return checks, answer.is_way, answer.date_s


def connect(route: Route) -> socket.socket:
    """A connection to the coordinator's port, through the proxy if there is one.

    Raises:
        Blocked: there is no way.
    """
    connection = _connected(route.proxy or route.address, is_proxy=bool(route.proxy))
    if route.proxy:
        try:
            answer = _asked(connection, route)
            if not answer.is_way:
                raise Blocked(_proxy_check(route, answer))
        except Blocked:
            connection.close()
            raise
    return connection


def _looked_up(target: str, *, is_proxy: bool) -> Check:
    host, port = split_address(target)
    if is_proxy:
        return looked_up(host, port, "the proxy's name", _spelling(is_proxy))
    return looked_up(host, port, "the coordinator's name", _spelling(is_proxy))


def looked_up(host: str, port: int, whose: str, spelling: str) -> Check:
    """That a name is known here.

    Args:
        whose: such as "the coordinator's name".
        spelling: what to do where there is no such name.

    Raises:
        Blocked: it is not.
    """
    if _is_address(host):
        return Check("name", "ok", f"{host} is an address; no name to look up")
    with_thread = ThreadPoolExecutor(1, "lookup")
    looking = with_thread.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    # A resolver that does not answer is given up, its thread ends with the process.
    with_thread.shutdown(wait=False)
    try:
        found = looking.result(LOOKUP_S_MAX)
    except FutureTimeout:
        fault, do = f"no answer within {LOOKUP_S_MAX:.0f} s", _DNS_SERVER
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            fault, do = "the DNS server does not answer", _DNS_SERVER
        else:
            fault, do = "no such name", spelling
    except (OSError, UnicodeError):
        fault, do = "it cannot be looked up", spelling
    else:
        addresses = sorted({str(one[4][0]) for one in found})
        more = f" and {len(addresses) - SHOWN_MAX} more" if len(addresses) > SHOWN_MAX else ""
        return Check("name", "ok", f"{host} is {', '.join(addresses[:SHOWN_MAX])}{more}")
    raise Blocked(Check("name", "failed", f"{whose} {host}: {fault}", do))


_DNS_SERVER: Final = (
    "check this machine's DNS servers (/etc/resolv.conf) and that the firewall lets UDP and TCP 53 "
    "through to them"
)


def _spelling(is_proxy: bool) -> str:
    if is_proxy:
        return "check the proxy's name in agent.yaml, or in the variable that names it"
    return (
        "check `coordinator` in agent.yaml; a hospital whose DNS knows no outside names needs a "
        "proxy, which then looks the name up: `proxy: {url: http://HOST:PORT}` in agent.yaml"
    )


def _connected(target: str, *, is_proxy: bool) -> socket.socket:
    host, port = split_address(target)
    try:
        connection = socket.create_connection((host, port), timeout=CONNECT_S_MAX)
    except TimeoutError:
        found = f"{target} does not answer within {CONNECT_S_MAX:.0f} s: a firewall drops it"
    except ConnectionRefusedError:
        found = f"{target} refuses: nothing listens there, or a firewall rejects it"
    except OSError as error:
        no_route = error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        found = f"{target} cannot be reached: {'no route' if no_route else error.strerror}"
    else:
        connection.settimeout(ANSWER_S_MAX)
        return connection
    do = (
        "check the proxy's host and port, in agent.yaml or in the variable that names it"
        if is_proxy
        else f"ask the coordinator's operator whether it runs; else {REQUEST}. If this network "
        "goes out by a proxy: `proxy: {url: http://HOST:PORT}` in agent.yaml"
    )
    raise Blocked(Check("tcp", "failed", found, do))


def _asked(connection: socket.socket, route: Route) -> ProxyAnswer:
    """Say CONNECT and read the head of the answer."""
    lines = [f"CONNECT {route.address} HTTP/1.1", f"Host: {route.address}"]
    if authorization := route.authorization():
        lines.append(f"Proxy-Authorization: {authorization}")
    head = b""
    try:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        # A byte at a time: what follows the head belongs to TLS.
        while not head.endswith(b"\r\n\r\n") and len(head) < HEAD_BYTES_MAX:
            byte = connection.recv(1)
            if not byte:
                break
            head += byte
            if len(head) == 5 and head != b"HTTP/":
                break
    except OSError:
        head = head if head.startswith(b"HTTP/") else b""
    answer = _read_head(head.decode("latin-1"))
    if answer is None:
        raise Blocked(
            Check(
                "proxy",
                "failed",
                f"{route.proxy} does not answer CONNECT as an HTTP proxy does",
                f"check that {route.proxy}, from {route.source}, is the proxy's HTTP port",
            )
        )
    return answer


def _read_head(head: str) -> ProxyAnswer | None:
    first, *lines = head.split("\r\n")
    words = first.split(" ")
    if not first.startswith("HTTP/") or len(words) < 2 or not words[1].isdigit():
        return None
    fields = [
        (name.lower(), value.strip()) for name, _, value in (one.partition(":") for one in lines)
    ]
    schemes = tuple(v.split(" ")[0] for name, v in fields if name == "proxy-authenticate" and v)
    date = next((value for name, value in fields if name == "date"), "")
    try:
        date_s = email.utils.parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        date_s = None
    place = next((value for name, value in fields if name == "location"), "")
    # A proxy that opened the way sends neither (RFC 9110, 9.3.6); a login page does.
    has_page = any(
        name == "transfer-encoding" or (name == "content-length" and value.strip("0"))
        for name, value in fields
    ) or any(name == "content-type" and "html" in value.lower() for name, value in fields)
    return ProxyAnswer(int(words[1]), schemes, date_s, place[:PLACE_CHARS_MAX], has_page)


def _proxy_check(route: Route, answer: ProxyAnswer) -> Check:
    asked = f"{route.proxy} answers {answer.status} to CONNECT {route.address}"
    match answer.status:
        case 200 if answer.is_way:
            do = "" if route.source == "agent.yaml" else _OF_SHELL.format(route.source)
            return Check("proxy", "ok", f"{asked}: reached {route.said()}", do)
        case 407 if answer.schemes and "basic" not in map(str.lower, answer.schemes):
            found = f"it wants credentials by {', '.join(answer.schemes)}; the agent knows Basic"
            do = "ask for an exception or an account with Basic, or use a local relay such as cntlm"
        case 407 if route.credentials:
            found = f"it does not take the credentials from {route.credentials_from}"
            encoded = " (percent-encoded)" if route.credentials_from in PROXY_VARIABLES else ""
            do = f"check user and password{encoded}, and that the account is not locked"
            if any(one != one.strip() for one in route.credentials.split(":", 1)):
                do = f"take the blanks around user or password away there, or {do}"
        case 407:
            found = "it wants credentials, and there are none"
            do = "write USER:PASSWORD into a file that only the agent reads, and its name " + (
                "after --proxy-credentials-file"
                if route.source == OPTION
                else "as `credentials_file` under `proxy` in agent.yaml"
            )
        case 200 | 511 | 301 | 302 | 303 | 307 | 308:
            where = f" and leads to {ascii(answer.page)[1:-1]}" if answer.page else ""
            found = f"that is no proxy's answer: a login page (captive portal) stands there{where}"
            do = (
                "log in to this network by its page, or ask those who run it to let this machine "
                f"out without one; and check that {route.proxy}, from {route.source}, is the proxy"
            )
        case 502 | 503 | 504:
            found = "it cannot reach the coordinator"
            do = (
                "check `coordinator` in agent.yaml; then ask those who run the proxy to let it out "
                f"to {route.address}"
            )
        case _:
            found = "it refuses"
            do = f"ask those who run the proxy to allow CONNECT to {route.address}; {REQUEST}"
    return Check("proxy", "failed", f"{asked}: {found}", do)


_OF_SHELL: Final = (
    "{} is this shell's; a service has an environment of its own: write the proxy into agent.yaml"
)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
