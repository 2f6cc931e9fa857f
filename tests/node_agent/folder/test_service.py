"""The systemd unit, and that the agent's user cannot change what the steward says."""

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from feddp.cli.app import app
from node_agent.folder.config import Folder
from node_agent.folder.handover import hand_over, owners
from node_agent.folder.program import program_places
from node_agent.folder.service import Service, install, weaknesses
from node_agent.folder.service_advice import advice
from protos.errors import Conflict, Malformed, NotAllowed, NotFound
from tests.node_agent.samples import DATA_SET, write_rules

AGENT, STEWARD = "daemon", "games"
"""Users that every Debian has."""


def _append(name: str) -> None:
    with Path(name).open("a"):
        pass


def _replace(name: str, beside: str = "mine") -> None:
    _append(beside)
    Path(beside).replace(name)


ATTEMPTS: dict[str, Callable[[], object]] = {
    "write policy.yaml": lambda: _append("policy.yaml"),
    "replace policy.yaml": lambda: _replace("policy.yaml"),
    "remove datasets.yaml": lambda: Path("datasets.yaml").unlink(),
    "rename datasets.yaml": lambda: Path("datasets.yaml").rename("old"),
    "open the folder to all": lambda: Path().chmod(0o777),
}
WORK: dict[str, Callable[[], object]] = {
    "read policy.yaml": lambda: Path("policy.yaml").read_text(),
    "read agent.yaml": lambda: Path("agent.yaml").read_text(),
    "replace agent.yaml": lambda: _replace("agent.yaml"),
    "write the ledger": lambda: _append("state.db"),
    "make the ledger's journal": lambda: _append("state.db-wal"),
    "replace a certificate": lambda: _replace("identity/node.crt", "identity/mine"),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """An agent's folder where other users can get to."""
    root = Path(tempfile.mkdtemp(prefix="feddp-service-"))
    root.chmod(0o755)
    path = root / "agent"
    for part in ("identity", "spool", "logs"):
        (path / part).mkdir(parents=True)
    for name in ("agent.yaml", "policy.yaml", "datasets.yaml", "state.db", "identity/node.crt"):
        (path / name).write_text("x: 1\n")
    yield path
    shutil.rmtree(root)


def service(path: Path, **changes: object) -> Service:
    """The service of a folder."""
    fields = {"user": AGENT, "group": AGENT, "command": Path("/usr/bin/true"), **changes}
    return Service(path, **fields)  # type: ignore[arg-type]


def as_user(name: str, path: Path, action: Callable[[], object]) -> bool:
    """Whether a user may do this in the folder; tried in a process of theirs."""
    one, group = pwd.getpwnam(name), pwd.getpwnam(AGENT).pw_gid
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(path)
            os.setgroups([group])
            os.setgid(one.pw_gid)
            os.setuid(one.pw_uid)
            action()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_unit_is_what_systemd_understands(folder: Path) -> None:
    """By `systemd-analyze verify`, without a word; and it is exposed little by its own measure."""
    path = folder / "feddp-agent.service"
    path.write_text(service(folder).unit())
    analyze = shutil.which("systemd-analyze")
    if analyze is None:  # said, so that nobody takes it for checked
        pytest.skip("this machine has no systemd-analyze")
    done = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    measured = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=35", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert measured.returncode == 0, measured.stdout


@pytest.mark.parametrize(
    "line",
    [
        f"User={AGENT}",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
        "UMask=0077",
        "LimitCORE=0",
    ],
)
def test_the_unit_says(folder: Path, line: str) -> None:
    """What the documents promise."""
    assert line in service(folder).unit().splitlines()


def test_the_gpu_is_hidden_unless_asked_for(folder: Path) -> None:
    """And a program below a home can be read."""
    assert "PrivateDevices=yes" in service(folder).unit()
    assert "PrivateDevices=yes" not in service(folder, gpu=True).unit()
    homely = service(folder, command=Path("/home/it/venv/bin/feddp")).unit()
    assert "ProtectHome=read-only" in homely


@pytest.mark.parametrize("path", ["/srv/my agent", "/srv/a%n", "srv/agent", "/srv/a\nUser=root"])
def test_a_path_that_systemd_would_read_otherwise_is_refused(path: str) -> None:
    """No second line, no specifier."""
    with pytest.raises(Malformed, match="cannot stand in a unit"):
        service(Path(path)).unit()


def test_root_is_refused(folder: Path) -> None:
    """Whoever asks for it."""
    with pytest.raises(Malformed, match="does not run as root"):
        service(folder, user="root").unit()


def test_the_agent_can_work_and_cannot_touch_what_the_steward_says(folder: Path) -> None:
    """Tried as the users themselves."""
    units = folder.parent / "units"
    units.mkdir()
    if os.geteuid() != 0:
        with pytest.raises(NotAllowed):
            install(service(folder), STEWARD, units)
        return
    assert install(service(folder), STEWARD, units).read_text() == service(folder).unit()
    assert not [what for what, code in WORK.items() if not as_user(AGENT, folder, code)]
    assert not [what for what, code in ATTEMPTS.items() if as_user(AGENT, folder, code)]
    assert as_user(STEWARD, folder, lambda: _append("policy.yaml"))
    assert as_user(STEWARD, folder, lambda: _replace("policy.yaml", "editor"))
    assert not as_user(STEWARD, folder, lambda: Path("state.db").read_text())
    assert not as_user(STEWARD, folder, lambda: _append("agent.yaml"))


def test_what_is_not_apart_is_said(folder: Path) -> None:
    """The file itself, or the folder that it could be replaced in."""
    uid, agent = pwd.getpwnam(AGENT).pw_uid, Folder(folder)
    if os.geteuid() != 0:
        assert len(weaknesses(agent)) == 2
        return
    os.chown(folder, uid, -1)
    for one in (agent.policy_yaml, agent.datasets_yaml):
        os.chown(one, uid, -1)
    assert [("can be changed" in text) for text in weaknesses(agent, uid)] == [True, True]
    for one in (agent.policy_yaml, agent.datasets_yaml):
        os.chown(one, 0, 0)
    assert ["can be replaced" in text for text in weaknesses(agent, uid)] == [True, True]
    (folder.parent / "units").mkdir()
    install(service(folder), STEWARD, folder.parent / "units")
    assert weaknesses(agent, uid) == []


def test_an_unknown_user_is_named_with_the_command_that_makes_it(folder: Path) -> None:
    """And nothing was changed."""
    if os.geteuid() != 0:
        return
    before = folder.stat().st_mode
    with pytest.raises(NotFound, match="useradd --system"):
        install(service(folder, user="no-such", group="no-such"), STEWARD, folder.parent)
    assert folder.stat().st_mode == before
    assert owners(folder, AGENT, AGENT, STEWARD)[0].path == folder


def test_a_folder_without_an_agent_is_told(tmp_path: Path) -> None:
    """Before anything is given to anybody."""
    with pytest.raises(NotFound, match="agent join"):
        install(service(tmp_path), STEWARD, tmp_path)


def test_what_would_keep_the_service_from_working_is_said(folder: Path) -> None:
    """One user for both is refused; unreadable records and a folder below /tmp are warned of."""
    with pytest.raises(Malformed, match="name two users"):
        install(service(folder), AGENT, folder.parent)
    source = folder / "train.csv"
    source.write_text("patient_id\n")
    source.chmod(0o600)
    write_rules(folder)
    below, unreadable = advice(service(folder), STEWARD)
    assert "temporary files" in below
    assert (str(source) in unreadable, AGENT in unreadable) == (True, True)
    source.chmod(0o644)
    assert len(advice(service(folder), STEWARD)) == 1


def test_a_dry_run_names_the_unit_and_refuses_what_the_real_one_does(
    folder: Path, tmp_path: Path
) -> None:
    """Its path and its owners; a folder without an agent is told."""
    named = folder.rename(folder.with_name("svc"))
    words = ["agent", "install-service", "--dry-run", "--user", AGENT, "--dir"]
    ran = CliRunner().invoke(app, [*words, str(named)])
    assert ran.exit_code == 0
    assert "would write /etc/systemd/system/feddp-agent-svc.service" in ran.stderr
    assert f"mode as it is {named / 'identity/node.crt'}" in ran.stderr
    assert CliRunner().invoke(app, [*words, str(tmp_path / "nope")]).exit_code != 0
    as_json = CliRunner().invoke(app, [*words, str(named), "--json"])
    found = json.loads(as_json.stdout)
    assert found["unit_file"] == "/etc/systemd/system/feddp-agent-svc.service"
    assert (found["unit"], found["written"]) == (ran.stdout, False)
    assert {"path": str(named), "mode": "3770"}.items() <= found["owners"][0].items()
    assert all(f"WARNING: {one}" in ran.stderr for one in found["warnings"])


def _as_agent(folder: Path, script: str) -> None:
    """What the agent's user does in the folder that it works in, by a shell."""
    assert as_user(AGENT, folder, lambda: subprocess.run(["sh", "-ec", script], check=True))


LINKED: dict[str, str] = {
    "the place of logs": 'mv logs spool/logs.old; ln -s "{victim}" logs',
    "the place of the ledger": 'rm state.db; ln -s "{victim}/shadow" state.db',
    "a file in the spool": 'ln -s "{victim}/shadow" spool/shadow',
    "a folder in the spool": 'mkdir spool/in; ln -s "{victim}" spool/in/deep',
    "a pipe": "mkfifo spool/pipe",
}


@pytest.mark.parametrize("script", LINKED.values(), ids=LINKED)
def test_a_link_that_the_agents_user_made_gives_it_nothing(folder: Path, script: str) -> None:
    """Installed again, as after an upgrade: refused with the path, and nothing changes hands."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    victim, units = folder.parent / "victim", folder.parent / "units"
    (victim / "sub").mkdir(parents=True)
    units.mkdir()
    (victim / "shadow").write_text("secret")
    install(service(folder), STEWARD, units)
    _as_agent(folder, script.format(victim=victim))
    with pytest.raises(Conflict, match="not given to anybody"):
        install(service(folder), "root", units)
    assert {one.lstat().st_uid for one in (victim, *victim.rglob("*"))} == {0}
    assert (folder / "policy.yaml").stat().st_uid == pwd.getpwnam(STEWARD).pw_uid


def test_a_second_name_of_a_file_elsewhere_is_refused(folder: Path) -> None:
    """Where a kernel lets anybody make one."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    victim = folder.parent / "shadow"
    victim.write_text("secret")
    os.link(victim, folder / "spool" / "x")
    with pytest.raises(Conflict, match="hard links"):
        install(service(folder), STEWARD, folder.parent)
    assert victim.stat().st_uid == 0


def test_a_link_that_is_made_after_the_look_is_not_followed(folder: Path) -> None:
    """Between the list and the giving, at its end and on the way."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    victim = folder.parent / "victim"
    (victim / "a").mkdir(parents=True)
    (folder / "spool" / "in").mkdir()
    (folder / "spool" / "in" / "a").mkdir()
    for swapped in ("spool/in/a", "spool/in"):
        given = owners(folder, AGENT, AGENT, STEWARD)
        (folder / swapped).rename(folder.parent / swapped.replace("/", "-"))
        (folder / swapped).symlink_to(victim / "a" if swapped.endswith("a") else victim)
        with pytest.raises(Conflict, match="is a link"):
            hand_over(folder, given, lambda _: 1, lambda _: 1)
        assert {one.stat().st_uid for one in (victim, victim / "a")} == {0}
        (folder / swapped).unlink()
        (folder.parent / swapped.replace("/", "-")).rename(folder / swapped)


def test_a_folder_that_is_a_link_is_named_by_where_it_leads(folder: Path) -> None:
    """Whoever may change the link must not choose what root gives away."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    link = folder.parent / "link"
    link.symlink_to(folder)
    with pytest.raises(Conflict, match=str(folder)):
        install(service(link), STEWARD, folder.parent)


def test_a_program_that_the_service_cannot_start_is_named(folder: Path) -> None:
    """As pipx installs it for root: a link in a home to a script, whose Python lies there too."""
    open_, closed = folder.parent / "opt", folder.parent / "root"
    for one in (open_, closed):
        one.mkdir(mode=0o755)
    (closed / "python").symlink_to("/usr/bin/env")
    (open_ / "feddp").write_text(f"#!{closed}/python\n")
    (open_ / "feddp").chmod(0o755)
    (open_ / "link").symlink_to(open_ / "feddp")
    here = service(folder, command=open_ / "link")
    assert "/usr/bin/env" in map(str, program_places(here.command))
    assert not [text for text in advice(here, STEWARD) if "may not be" in text]
    closed.chmod(0o700)
    (said,) = [text for text in advice(here, STEWARD) if "may not be" in text]
    assert said.startswith(f"{closed} may not be entered by {AGENT}, so that the service cannot")
    assert "/opt/feddp" in said
    hidden = [text for text in advice(here, STEWARD) if "it cannot start" in text]
    assert len(hidden) == 1
    (open_ / "feddp").write_text("#!/home/it/.pyenv/bin/python\n")
    assert "ProtectHome=read-only" in here.unit()


def test_the_python_of_a_long_path_is_found(tmp_path: Path) -> None:
    """Where pip starts it by way of the shell."""
    script = tmp_path / "feddp"
    script.write_text('#!/bin/sh\n\'\'\'exec\' "/a b/bin/python" "$0" "$@"\n')
    assert program_places(script) == [script, Path("/a b/bin/python")]


def test_a_credential_that_the_service_cannot_read_is_said(folder: Path) -> None:
    """Without the proxy's it does not start; root wrote it, for nobody else."""
    for name in ("proxy", "mail", "ca.pem", "password"):
        (folder / name).write_text("user:password")
        (folder / name).chmod(0o600)
    (folder / "agent.yaml").write_text(
        "coordinator: feddp.example:8443\ntrust_domain: a.example\nnode: alpha\nnode_class: edge\n"
        f"proxy: {{url: http://proxy.example:3128, credentials_file: {folder / 'proxy'}}}\n"
        "alerts: {mail: {server: mail.example:587, sender: a@b, to: [a@b], user: a,"
        f" password_file: {folder / 'mail'}}}}}\n"
        "tracing: {endpoint: https://collector.example:4317, ca_file: ca.pem}\n"
    )
    database = {"url": "postgresql://a@b/c", "password_file": "password"}
    (folder / "q.sql").write_text("SELECT 1")
    write_rules(folder, data_sets=[{**DATA_SET, "source": "q.sql", "database": database}])
    (folder / "q.sql").chmod(0o644)
    said = [one for one in advice(service(folder), STEWARD) if "cannot be read" in one]
    for name, what in (
        ("proxy", "the proxy's credentials"),
        ("mail", "the mail's password"),
        ("ca.pem", "the trace collector's authority"),
        ("password", "the database's password of data set heart"),
    ):
        (found,) = [one for one in said if one.startswith(f"{folder / name}, {what}, ")]
        assert f"chgrp {AGENT} {folder / name}" in found
        (folder / name).chmod(0o644)
    assert not [one for one in advice(service(folder), STEWARD) if "cannot be read" in one]


@pytest.mark.parametrize(
    ("path", "drop_in", "said"),
    [
        ("/run/feddp/alerts.json", "", "`RuntimeDirectory=feddp`"),
        ("/run/feddp/alerts.json", "[Service]\nRuntimeDirectory=feddp\n", ""),
        ("/var/log/feddp/alerts.json", "", "`ReadWritePaths=/var/log/feddp`"),
        ("/var/log/feddp/alerts.json", "[Service]\nReadWritePaths=/var/log/feddp\n", ""),
        ("/tmp/alerts.json", "", "nobody else would see it"),  # noqa: S108 - what is warned of
    ],
)
def test_a_file_of_alerts_that_the_unit_does_not_let_be_written_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, drop_in: str, said: str
) -> None:
    """The doctor, which runs outside the unit, cannot find it."""
    monkeypatch.setattr("node_agent.folder.service_advice.UNIT_FOLDER", folder.parent)
    write_rules(folder)
    (folder / "train.csv").chmod(0o644)
    (folder / "agent.yaml").write_text(
        "coordinator: feddp.example:8443\ntrust_domain: a.example\nnode: alpha\nnode_class: edge\n"
        f"alerts: {{file: {{path: {path}}}}}\n"
    )
    if drop_in:
        place = folder.parent / f"{service(folder).name}.d"
        place.mkdir()
        (place / "override.conf").write_text(drop_in)
    found = [one for one in advice(service(folder), STEWARD) if "alerts.file.path" in one]
    assert len(found) == bool(said)
    assert all(said in one for one in found)
