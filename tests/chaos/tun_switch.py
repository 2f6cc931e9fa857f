"""A switch between network namespaces, in user space: delay, loss, and links that fail one way.

Each namespace has one TUN device; what its kernel sends comes out of a file descriptor here, and
is written to the descriptor of the namespace that has the destination's address, later or never.
Only namespaces that were made here are connected: none has a way to any other network.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

NETWORK: Final = "10.213.7"
"""Of the namespaces made here; no other machine or namespace has it in its routes."""

TUNSETIFF: Final = 0x400454CA
IFF_TUN_NO_PI: Final = 0x0001 | 0x1000
CLONE_NEWNET: Final = 0x40000000
PACKET_BYTES_MAX: Final = 1 << 16
UNSHARE: Final = ("unshare", "--net")


def why_not() -> str:
    """Why namespaces cannot be connected here; empty if they can."""
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun, so packets cannot be carried between namespaces"
    script = "ip link set lo up && ip tuntap add dev probe mode tun"
    try:
        tried = subprocess.run(
            [*UNSHARE, "sh", "-c", script], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "the command `unshare` is not installed, so there are no network namespaces"
    if tried.returncode:
        return f"network namespaces or TUN devices are not allowed here: {tried.stderr.strip()}"
    return ""


@dataclass(slots=True)
class Line:
    """One direction between two namespaces."""

    delay_s: float = 0.0
    loss: float = 0.0
    cut: bool = False


@dataclass(slots=True)
class Switch:
    """Carries IPv4 packets between descriptors until it is closed; loss follows a seed."""

    random: random.Random
    lines: dict[tuple[int, int], Line] = field(default_factory=dict)
    carried: int = 0
    dropped: int = 0
    _ports: dict[int, int] = field(default_factory=dict)
    _waiting: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _count: int = 0
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def connect(self, host: int, descriptor: int) -> None:
        """Plug a namespace in. Hosts are the last bytes of addresses."""
        for other in self._ports:
            self.lines[host, other] = Line()
            self.lines[other, host] = Line()
        self._ports[host] = descriptor

    def set_all(self, delay_s: float, loss: float) -> None:
        """Make every line slow and lossy."""
        for line in self.lines.values():
            line.delay_s, line.loss = delay_s, loss

    def start(self) -> None:
        """Carry from now on."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Carry nothing more and close the descriptors."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        for descriptor in self._ports.values():
            os.close(descriptor)

    def _run(self) -> None:
        hosts = {descriptor: host for host, descriptor in self._ports.items()}
        while not self._ending.is_set():
            wait_s = self._waiting[0][0] - time.monotonic() if self._waiting else 0.05
            ready, _, _ = select.select(list(hosts), [], [], min(0.05, max(0.0, wait_s)))
            for descriptor in ready:
                self._take(hosts[descriptor], os.read(descriptor, PACKET_BYTES_MAX))
            self._deliver()

    def _take(self, source: int, packet: bytes) -> None:
        if packet[0] >> 4 != 4 or packet[16:19] != bytes(map(int, NETWORK.split("."))):
            return
        line = self.lines.get((source, packet[19]))
        if line is None:
            return
        if line.cut or self.random.random() < line.loss:
            self.dropped += 1
            return
        self._count += 1
        due_s = time.monotonic() + line.delay_s
        heapq.heappush(self._waiting, (due_s, self._count, packet[19], packet))

    def _deliver(self) -> None:
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(self._waiting)
            try:
                os.write(self._ports[target], packet)
                self.carried += 1
            except OSError:
                self.dropped += 1  # its device is down; TCP sends again


def _tun(name: str) -> int:
    """A new TUN device in the namespace of this thread."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    return descriptor


def _tun_of(pid: int, name: str) -> int:
    """A new TUN device in the namespace of a process, made by a thread that goes there."""
    found: list[int] = []

    def work() -> None:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            found.append(_tun(name))
        finally:
            os.close(namespace)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found, f"no device in the namespace of process {pid}"
    return found[0]


def inside(pid: int) -> list[str]:
    """The command that runs another in a process's namespace."""
    return ["nsenter", "--target", str(pid), "--net", "--"]


def address(host: int) -> str:
    """A host's address."""
    return f"{NETWORK}.{host}"


def _set_up(host: int, within: list[str]) -> None:
    for words in (
        ["link", "set", "lo", "up"],
        ["address", "add", f"{address(host)}/24", "dev", "feddp0"],
        ["link", "set", "feddp0", "up", "mtu", "1400"],
    ):
        subprocess.run([*within, "ip", *words], check=True)


@contextmanager
def namespaces(hosts: list[int], seed: int) -> Iterator[tuple[Switch, dict[int, list[str]]]]:
    """This process's own namespace as host 1, and one more for each of `hosts`, connected.

    Yields:
        The switch, and for each host the command that runs another there. The caller must be in
        a namespace that was made for it.
    """
    assert _alone(), "this namespace has other devices: it was not made for this"
    switch, holders = Switch(random.Random(seed)), list[subprocess.Popen[bytes]]()
    try:
        switch.connect(1, _tun("feddp0"))
        _set_up(1, [])
        commands = {}
        for host in hosts:
            # It reads until its end of the pipe closes, so that it cannot outlive this process.
            holder = subprocess.Popen([*UNSHARE, "cat"], stdin=subprocess.PIPE)
            holders.append(holder)
            own, made = Path("/proc/self/ns/net"), Path(f"/proc/{holder.pid}/ns/net")
            while made.readlink() == own.readlink():
                time.sleep(0.01)
            switch.connect(host, _tun_of(holder.pid, "feddp0"))
            commands[host] = inside(holder.pid)
            _set_up(host, commands[host])
        switch.start()
        yield switch, commands
    finally:
        switch.close()
        for holder in holders:
            holder.communicate()


def _alone() -> bool:
    names = {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()}
    return {name for name in names if name and "|" not in name} <= {"lo"}
