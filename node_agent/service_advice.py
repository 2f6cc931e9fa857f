"""What would keep a service or the data steward from their files; told when it is installed."""

import grp
import pwd
import stat
from collections.abc import Collection, Iterator

from node_agent import access_list
from node_agent.datasets import load_data_sets
from node_agent.service import Service
from node_agent.whose import groups_of, may
from protos.errors import FeddpError


def advice(service: Service, steward: str) -> list[str]:
    """What would keep the service or the steward from working, as far as it can be seen; a sentence
    each."""
    found = [*_ways_in(service, steward)]
    if any(service.folder.is_relative_to(one) for one in ("/tmp", "/var/tmp")):  # noqa: S108
        found.append(
            f"{service.folder} lies below a folder for temporary files, and the service has one of "
            "its own: it will not find its files; move DIR, to /var/lib for instance"
        )
    try:
        uid = pwd.getpwnam(service.user).pw_uid
        data_sets = load_data_sets(service.folder)
    except (KeyError, OSError, FeddpError):
        return found
    groups = groups_of(uid)
    for spec in data_sets:
        for path in (spec.source, spec.opt_out):
            if (
                path is not None
                and path.exists()
                and not may(path.stat(), uid, groups, stat.S_IROTH)
            ):
                found.append(
                    f"{path} of data set {spec.name} cannot be read by {service.user}: `chgrp "
                    f"{service.group} {path}` and `chmod g+r {path}`, its folders too"
                )
    return found


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
