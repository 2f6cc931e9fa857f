"""What the data steward can do right after `install-service`, and what another user is told.

With users made for it and taken away again, as root; each command runs as its user, in a process of
theirs with the groups that the system gives them.
"""

import codecs
import importlib
import os
import pkgutil
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import feddp.cli
import node_agent.doctor
from certs.authority import Authority
from certs.tokens import JoinToken, new_secret
from feddp.cli.app import app, main
from feddp.cli.failures import NOT_FOUND, USAGE
from node_agent.folder import access_list
from node_agent.folder.config import Folder
from node_agent.folder.handover import owners
from node_agent.folder.service import Service, install
from node_agent.folder.service_advice import advice
from node_agent.status import status
from tests.node_agent.agent_federation import TRUST_DOMAIN, make_agent

ROOT = os.geteuid() == 0 and all(map(shutil.which, ("useradd", "userdel")))

for _part in (feddp.cli, node_agent, node_agent.doctor):
    # Here, while this process may still read them.
    for _module in pkgutil.iter_modules(_part.__path__, f"{_part.__name__}."):
        importlib.import_module(_module.name)
codecs.lookup("utf-8-sig")

CASES: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "outbox": ("outbox",),
    "digest": ("digest",),
    "doctor": ("doctor", "--hold", "0"),
    "approve --list": ("approve", "--list"),
    "approve": ("approve", "job-1"),
    "logs": ("logs", "job-1"),
    "explain": ("policy", "explain", "job-1"),
    "ledger heads": ("ledger", "heads"),
    "ledger export": ("ledger", "export", "/never/made.db"),
    "backup": ("backup", "/never/made.tar"),
    "leave": ("leave",),
    "leave --yes": ("leave", "--yes"),
    "ledger import": ("ledger", "import", "/etc/passwd"),
    "run": ("run",),
}
"""Commands that read what is the agent's own."""


@dataclass(frozen=True, slots=True)
class Site:
    """An agent's folder with the users of its machine, none of whom is in another's group."""

    folder: Folder
    agent: str
    steward: str
    stranger: str

    def installed(self, steward: str) -> None:
        """As `install-service` leaves it."""
        units = self.folder.root.parent / "units"
        units.mkdir(exist_ok=True)
        install(self.service(), steward, units)

    def service(self) -> Service:
        return Service(self.folder.root, self.agent, self.agent, Path("/usr/bin/true"))

    def as_user(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of a user who has just logged in."""
        one = pwd.getpwnam(name)
        return subprocess.run(
            words,
            cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
            user=one.pw_uid,
            group=one.pw_gid,
            extra_groups=os.getgrouplist(name, one.pw_gid),
            umask=0o027,
        )

    def shell(self, name: str, script: str) -> bool:
        """Whether a line of shell ends well in the folder."""
        return self.as_user(name, "sh", "-c", f"cd {self.folder.root} && {script}").returncode == 0

    def feddp(self, name: str, *words: str) -> tuple[int, str]:
        """Exit code and both streams of a command of the agent on the folder."""
        one = pwd.getpwnam(name)
        with tempfile.TemporaryFile() as said:
            # A child of this process, as the user may not be let at this Python and this checkout.
            if (pid := os.fork()) == 0:
                code = 70
                try:
                    for stream in (1, 2):
                        os.dup2(said.fileno(), stream)
                    sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
                    os.chdir("/")
                    os.environ["XDG_STATE_HOME"] = "/nonexistent"
                    os.initgroups(name, one.pw_gid)
                    os.setgid(one.pw_gid)
                    os.setuid(one.pw_uid)
                    main(["agent", *words, "--dir", str(self.folder.root)])
                except SystemExit as left:
                    code = int(left.code or 0)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said.seek(0)
            return code, said.read().decode()


@pytest.fixture(scope="module")
def users() -> Iterator[tuple[str, str, str]]:
    """Three users with a group each."""
    if not ROOT:
        pytest.skip("only root makes users on a machine")
    made = []
    try:
        for role in ("agent", "steward", "nobody"):
            name = f"fdp{os.getpid() % 100000}{role[0]}"
            subprocess.run(
                ["useradd", "--system", "--user-group", "--home-dir", "/nonexistent", name],
                check=True,
            )
            made.append(name)
        yield made[0], made[1], made[2]
    finally:
        for name in made:
            subprocess.run(["userdel", name], check=True)


@pytest.fixture
def site(users: tuple[str, str, str]) -> Iterator[Site]:
    """An agent that has joined and whose files were handed to their owners."""
    root = Path(tempfile.mkdtemp(prefix="feddp-steward-"))
    root.chmod(0o755)
    if not access_list.is_offered(root):
        pytest.skip("the temporary folder is on a file system without access lists")
    folder = make_agent(root / "agent", Authority.create(root / "ca", TRUST_DOMAIN), 1)
    folder.spool.mkdir()
    folder.logs.mkdir()
    made = Site(folder, *users)
    made.installed(made.steward)
    yield made
    shutil.rmtree(root)


def test_the_steward_reads_and_edits_both_files_at_once_and_the_agent_reads_them(
    site: Site,
) -> None:
    """By appending, by replacing as `sed -i` and editors do; without the group, under a strict
    umask, and the agent takes what was written."""
    for name in ("policy.yaml", "datasets.yaml"):
        assert site.shell(site.steward, f"cat {name}")
        assert site.shell(site.steward, f"echo '# by append' >> {name}")
        assert site.shell(site.steward, f"sed -i '1i # by sed' {name}")
        assert site.shell(site.steward, f"cp {name} .{name}.swp && mv -f .{name}.swp {name}")
        text = (site.folder.root / name).read_text()
        assert text.startswith("# by sed\n")
        assert text.endswith("# by append\n")
        assert site.shell(site.agent, f"cat {name}"), "the agent must read what the steward wrote"
    code, said = site.feddp(site.steward, "policy", "check")
    assert code == 0, said
    assert site.feddp(site.agent, "policy", "check")[0] == 0


def test_the_agents_user_is_refused_and_so_is_everybody_else(site: Site) -> None:
    """The agent reads the steward's files and can neither write, replace nor remove them; the
    steward cannot touch what is the agent's; a stranger sees nothing."""
    acts = (
        "echo x >> policy.yaml",
        "sed -i 1d policy.yaml",
        "cp policy.yaml mine && mv -f mine policy.yaml",
        "rm -f policy.yaml",
        "mv datasets.yaml old",
        "chmod 666 policy.yaml",
    )
    assert not [act for act in acts if site.shell(site.agent, act)]
    taken = ("cat state.db", "rm -f state.db", "mv agent.yaml x", "ls identity", "chmod 777 .")
    assert not [act for act in taken if site.shell(site.steward, act)]
    assert not [act for act in ("ls", "cat policy.yaml") if site.shell(site.stranger, act)]
    assert stat.S_IMODE(site.folder.root.stat().st_mode) == 0o3770


def test_a_successor_gets_in_and_the_one_before_is_out(site: Site) -> None:
    """`install-service` again, for another steward; root needs no list."""
    site.installed(site.stranger)
    assert site.shell(site.stranger, "sed -i '1i # mine' policy.yaml")
    assert not site.shell(site.steward, "cat policy.yaml")
    site.installed("root")
    assert not site.shell(site.stranger, "cat policy.yaml")
    assert site.shell(site.agent, "cat policy.yaml")


def test_a_dry_run_shows_the_access_list_and_what_would_keep_the_steward_out(site: Site) -> None:
    """A closed folder above; a file system without access lists, with the command to run."""
    words = ["agent", "install-service", "--dry-run", "--user", site.agent]
    words += ["--steward", site.steward, "--dir", str(site.folder.root)]
    ran = CliRunner().invoke(app, words)
    assert f"{site.folder.root}, and {site.steward} may make files there" in ran.stderr
    assert owners(site.folder.root, site.agent, site.agent, "root")[0].guest == ""
    site.folder.root.parent.chmod(0o700)
    said = "\n".join(advice(site.service(), site.steward))
    assert f"may not be entered by {site.steward}" in said
    assert f"may not be entered by {site.agent}" in said
    # /proc is a file system without them that every machine has.
    without = Service(Path("/proc/self"), site.agent, site.agent, Path("/usr/bin/true"))
    assert not access_list.is_offered(without.folder)
    (sentence,) = advice(without, site.steward)
    assert f"gpasswd --add {site.steward} {site.agent}" in sentence
    assert "logs in anew" in sentence


@pytest.mark.parametrize("words", CASES.values(), ids=list(CASES))
def test_another_user_is_told_whose_the_files_are_and_what_to_run(
    site: Site, words: tuple[str, ...]
) -> None:
    """No word of a backup, of damage or of joining: nothing of the kind is wrong."""
    for name in (site.steward, site.stranger):
        code, said = site.feddp(name, *words)
        assert (code, "sudo -u" in said) == (NOT_FOUND, True), said
        assert f"sudo -u {site.agent} feddp agent" in said
        assert "may not read it; nothing is wrong with it" in said
        for wrong in ("restore", "backup", "damaged", "join", "put a copy back", "incident"):
            assert wrong not in said, said


def test_joining_again_as_another_user_is_told_alike(site: Site) -> None:
    """Before anything is asked or written."""
    before = {path: path.stat().st_mtime_ns for path in site.folder.identity.iterdir()}
    root = Authority.load(site.folder.root.parent / "ca").root_der
    code, said = site.feddp(
        site.steward, "join", JoinToken("127.0.0.1:1", new_secret(), root).encode()
    )
    assert (code, f"sudo -u {site.agent} feddp agent" in said) == (NOT_FOUND, True), said
    assert {path: path.stat().st_mtime_ns for path in site.folder.identity.iterdir()} == before


def test_the_agents_user_is_told_of_a_policy_that_it_may_not_read(site: Site) -> None:
    """As an editor with a strict umask leaves it: the mode and the command, not a backup."""
    site.folder.policy_yaml.chmod(0o600)
    for words in (("policy", "check"), ("policy", "show")):
        code, said = site.feddp(site.agent, *words)
        assert code == USAGE
        assert f"belongs to {site.steward} with mode 0600" in said
        assert f"chmod 640 {site.folder.policy_yaml}" in said
        assert "backup" not in said
    code, said = site.feddp(site.stranger, "policy", "check")
    assert (code, "may not read it" in said, "backup" in said) == (USAGE, True, False)


def test_the_steward_is_not_told_that_records_are_unreadable_for_the_agent(site: Site) -> None:
    """Where only the steward may not read them: the warning says as whom it was looked at."""
    source = site.folder.root / "train.csv"
    shutil.chown(source, site.agent, site.agent)
    source.chmod(0o600)
    code, said = site.feddp(site.steward, "policy", "check")
    assert (code, "attempts on it are refused" in said) == (0, False)
    assert f"as {site.steward} sees it: the agent is another user" in said
    assert "WARNING" not in site.feddp(site.agent, "policy", "check")[1]
    assert status(site.folder.root)["in_order"]
