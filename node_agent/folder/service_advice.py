"""What would keep a service or the data steward from their files; told when it is installed."""

import contextlib
import grp
import pwd
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from node_agent.data.datasets import load_data_sets
from node_agent.folder import access_list
from node_agent.folder.config import Folder, load_config
from node_agent.folder.ownership import groups_of, may
from node_agent.folder.program import program_places
from node_agent.folder.service import UNIT_FOLDER, Service
from protos.errors import FeddpError


def advice(service: Service, steward: str) -> list[str]:
    """What would keep the service or the steward from working, as far as it can be seen; a sentence
    each."""
    found = [*_ways_in(service, steward)]
    found += _ways_to_the_program(service)
    if _is_temporary(service.folder):
        found.append(
            f"{service.folder} lies below a folder for temporary files, and the service has one of "
            "its own: it will not find its files; move DIR, to /var/lib for instance"
        )
    found += _way_of_alerts(service)
    try:
        uid = pwd.getpwnam(service.user).pw_uid
    except KeyError:
        return found
    groups = groups_of(uid)
    for path, what in (*_of_agent(service.folder), *_of_data_sets(service.folder)):
        try:
            closed = not may(path.stat(), uid, groups, stat.S_IROTH)
        except OSError:  # not there, which is said elsewhere
            continue
        if closed:
            found.append(
                f"{path}, {what}, cannot be read by {service.user}: `chgrp {service.group} {path}` "
                f"and `chmod g+r {path}`, its folders too"
            )
    return found


def _way_of_alerts(service: Service) -> Iterator[str]:
    """The file of alerts is elsewhere than where the unit lets the agent write, or others read; the
    doctor, which no unit holds, would find nothing wrong."""
    try:
        file = load_config(Folder(service.folder)).alerts.file
    except FeddpError:
        return
    if file is None or Path(file.path).is_relative_to(service.folder):
        return
    place = Path(file.path).parent
    if _is_temporary(place):
        yield (
            f"alerts.file.path, {file.path}, lies below a folder for temporary files, and the "
            "service has one of its own: nobody else would see it; name a path below /run"
        )
        return
    said = ""
    for one in (UNIT_FOLDER / f"{service.name}.d").glob("*.conf"):
        with contextlib.suppress(OSError):
            said += one.read_text(errors="replace")
    if "RuntimeDirectory=" in said or str(place) in said:
        return
    line = f"ReadWritePaths={place}"
    if place.parent == Path("/run"):
        line = f"RuntimeDirectory={place.name}"
    yield (
        f"the service may write in {service.folder} alone, and alerts.file.path is {file.path}: "
        f"`systemctl edit {service.name}`, with `[Service]` and `{line}`"
    )


def _of_data_sets(folder: Path) -> Iterator[tuple[Path, str]]:
    """What records are read with, and what it is."""
    try:
        data_sets = load_data_sets(folder)
    except FeddpError:
        return
    for spec in data_sets:
        password = spec.database.password_file if spec.database is not None else None
        listed = (
            (spec.source, "the source"),
            (spec.opt_out, "the opt-out list"),
            (password, "the database's password"),
        )
        for path, what in listed:
            if path is not None:
                yield path, f"{what} of data set {spec.name}"


def _of_agent(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that agent.yaml names, and what they are: without them the agent does not start, or
    tells nobody."""
    try:
        config = load_config(Folder(folder))
    except FeddpError:
        return
    mail = config.alerts.mail
    listed = (
        (config.proxy.credentials_file, "the proxy's credentials"),
        (mail.password_file if mail is not None else "", "the mail's password"),
        (config.tracing.ca_file, "the trace collector's authority"),
    )
    for name, what in listed:
        if name:
            yield folder / name, what


def _is_temporary(path: Path) -> bool:
    return any(path.is_relative_to(one) for one in ("/tmp", "/var/tmp"))  # noqa: S108


def _ways_to_the_program(service: Service) -> Iterator[str]:
    """What keeps the agent's user from `feddp` or from the Python that it starts; the first thing
    for each reason."""
    places = program_places(service.command)
    for path in places:
        if _is_temporary(path):
            yield (
                f"{path} lies below a folder for temporary files, and the service has one of its "
                f"own: it cannot start {service.command}; {_INSTALL}"
            )
            break
    try:
        uid = pwd.getpwnam(service.user).pw_uid
    except KeyError:
        return
    groups = groups_of(uid)
    for path in places:
        for one in [*reversed(path.parents), path]:
            try:
                may_pass = may(one.stat(), uid, groups, stat.S_IXOTH)
            except FileNotFoundError:
                yield f"{one} is not there, so that {service.command} cannot start; {_INSTALL}"
                return
            except OSError:
                return  # closed to this process too: only root can look further
            if not may_pass:
                what = "entered" if one.is_dir() else "run"
                yield (
                    f"{one} may not be {what} by {service.user}, so that the service cannot start "
                    f"{service.command}; {_INSTALL}"
                )
                return


_INSTALL: Final = (
    "install feddp where everybody may read it, as a virtual environment in /opt/feddp, and run "
    "this again with that feddp"
)


def _ways_in(service: Service, steward: str) -> Iterator[str]:
    """What keeps the agent's user or the steward out of the folder."""
    try:
        grp.getgrnam(service.group)
    except KeyError:
        yield f"there is no group {service.group}: make it, or name another with --group"
    for name in (service.user, steward):
        try:
            uid = pwd.getpwnam(name).pw_uid
        except KeyError:
            yield f"there is no user {name}: make it, or name another"
            continue
        groups = groups_of(uid)
        for one in service.folder.parents if uid != 0 else ():
            if not may(one.stat(), uid, groups, stat.S_IXOTH):
                yield f"{one} may not be entered by {name}: `chmod o+x {one}`, or move DIR"
        inside = uid == 0 or name == service.user or _in_group(service.group, groups)
        if not inside and not access_list.is_offered(service.folder):
            yield (
                f"the file system of {service.folder} has no access lists, and {name} cannot get "
                f"at policy.yaml: `gpasswd --add {name} {service.group}`, and {name} logs in anew; "
                f"{name} then reads what {service.group} may read, records too"
            )


def _in_group(name: str, groups: Collection[int]) -> bool:
    try:
        return grp.getgrnam(name).gr_gid in groups
    except KeyError:
        return False
