"""The systemd unit of an agent, and whether its user is apart from the steward."""

import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node_agent.folder.config import Folder
from node_agent.folder.handover import hand_over, owners
from node_agent.folder.ownership import groups_of, may
from node_agent.folder.program import program_places
from protos.content import write_durable
from protos.errors import Malformed, NotAllowed, NotFound

UNIT_FOLDER: Final = Path("/etc/systemd/system")

HOMES: Final = ("/home", "/root", "/run/user")

_UNIT: Final = """\
[Unit]
Description=feddp node agent ({folder})
Wants=network-online.target
After=network-online.target
# Whatever stopped it, it is tried again for ever: nobody has to come for a disk that was full.
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
Group={group}
ExecStart={command} agent run --dir {folder}
Restart=always
RestartSec=10
# The agent ends its workers, and posts nothing that it cannot write.
KillMode=mixed
TimeoutStopSec=60
UMask=0077

# It may write in its own folder and nowhere else.
ProtectSystem=strict
ReadWritePaths={folder}
ProtectHome={home}
PrivateTmp=yes
{devices}
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictSUIDSGID=yes
LockPersonality=yes
RestrictRealtime=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
# The last four are what a worker limits itself with before it sees records.
SystemCallFilter=@system-service seccomp landlock_create_ruleset landlock_add_rule \
    landlock_restrict_self
SystemCallErrorNumber=EPERM
# Outbound connections, the system's log, and the routes that a name look-up reads.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes

# A core file would be a copy of patients' records.
LimitCORE=0
# The hospital's other work comes first.
CPUWeight=50
IOWeight=50

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Service:
    """What a unit says.

    Attributes:
        command: absolute path of `feddp`.
        gpu: whether workers may open the machine's devices.
    """

    folder: Path
    user: str
    group: str
    command: Path
    gpu: bool = False

    @property
    def name(self) -> str:
        """Of the unit: one agent is `feddp-agent`, further ones carry their folder's name."""
        own = self.folder.name
        return "feddp-agent.service" if own in ("agent", "feddp") else f"feddp-agent-{own}.service"

    def unit(self) -> str:
        """The unit's text.

        Raises:
            Malformed: PATH_UNUSABLE, a path that systemd would read as something else.
        """
        for path in (self.folder, self.command):
            text = str(path)
            if not path.is_absolute() or any(not c.isprintable() or c in " %\\\"'$" for c in text):
                raise Malformed(
                    "PATH_UNUSABLE",
                    f"{text!r} cannot stand in a unit: use an absolute path without spaces, "
                    "quotes, percent or dollar signs",
                )
        if self.user == "root":
            raise Malformed("USER_IS_ROOT", "the agent does not run as root; name another --user")
        return _UNIT.format(
            folder=self.folder,
            user=self.user,
            group=self.group,
            command=self.command,
            # What lies under a home, the program itself included, is read but not written.
            home="read-only" if _under_home(self.folder, *program_places(self.command)) else "yes",
            devices="# GPU: the devices stay visible." if self.gpu else "PrivateDevices=yes",
        )


def require_fit(service: Service, steward: str) -> None:
    """There is an agent, and its user is not the steward.

    Raises:
        NotFound: NOT_JOINED.
        Malformed: STEWARD_IS_AGENT.
    """
    if not Folder(service.folder).agent_yaml.exists():
        raise NotFound(
            "NOT_JOINED",
            f"{service.folder} holds no agent; join first: `feddp agent join TOKEN --dir "
            f"{service.folder}`",
        )
    if service.user == steward:
        raise Malformed(
            "STEWARD_IS_AGENT",
            f"--user and --steward are both {steward}: the agent could then write what it is "
            "allowed; name two users",
        )


def install(service: Service, steward: str, unit_folder: Path = UNIT_FOLDER) -> Path:
    """Write the unit and hand the folder's files to their owners; the unit's path.

    Raises:
        NotAllowed: ROOT_NEEDED.
        NotFound: NOT_JOINED; USER_UNKNOWN, with the command that makes it.
        Malformed: PATH_UNUSABLE, USER_IS_ROOT, STEWARD_IS_AGENT.
        Conflict: LINK_IN_FOLDER.
    """
    text = service.unit()
    require_fit(service, steward)
    if os.geteuid() != 0:
        raise NotAllowed("ROOT_NEEDED", "only root may install a service; use sudo, or --dry-run")
    for name in (service.user, steward):
        _uid(name)
    gids = {"root": 0, service.group: _gid(service.group, service.user)}
    given = owners(service.folder, service.user, service.group, steward)
    hand_over(service.folder, given, _uid, gids.__getitem__)
    path = unit_folder / service.name
    write_durable(path, text.encode(), 0o644)
    return path


def weaknesses(folder: Folder, uid: int | None = None) -> list[str]:
    """Where the user that the agent runs as could change what the steward says; a sentence each.

    Args:
        uid: of the agent; where None the owner of its ledger, else of this process.
    """
    if uid is None:
        uid = folder.state_db.stat().st_uid if folder.state_db.exists() else os.geteuid()
    groups = set(os.getgroups()) | {os.getegid()} if uid == os.geteuid() else groups_of(uid)
    found = []
    for path in (folder.policy_yaml, folder.datasets_yaml):
        try:
            file, parent = path.stat(), path.parent.stat()
        except OSError:
            continue
        if file.st_uid == uid or may(file, uid, groups, stat.S_IWOTH):
            found.append(
                f"{path} can be changed by the user that the agent runs as; give it to the data "
                "steward: `feddp agent install-service --steward NAME` does"
            )
        elif may(parent, uid, groups, stat.S_IWOTH) and (
            not parent.st_mode & stat.S_ISVTX or parent.st_uid == uid
        ):
            found.append(
                f"{path} can be replaced by the user that the agent runs as, who may rename files "
                f"in {path.parent}; give the folder to root with the sticky bit (mode 3770)"
            )
    return found


def _under_home(*paths: Path) -> bool:
    return any(path.is_relative_to(home) for path in paths for home in HOMES)


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise NotFound(
            "USER_UNKNOWN",
            f"there is no user {name}; make it: `useradd --system --user-group --home-dir "
            f"/nonexistent --shell /usr/sbin/nologin {name}`",
        ) from None


def _gid(name: str, user: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise NotFound(
            "GROUP_UNKNOWN",
            f"there is no group {name}; make it: `groupadd --system {name}` and `usermod "
            f"--append --groups {name} {user}`",
        ) from None
