"""Reading records in a process of its own: an idle agent must not keep what that loads."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from node_agent.launchers.local import environment


async def run_aside(module: str, folder: Path, given: str = "") -> Any | None:
    """The JSON that `python -m module folder` prints; None where it cannot be run, or fails.

    Args:
        given: for its stdin.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            module,
            str(folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(dict(os.environ), 1),
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        said, _ = await process.communicate(given.encode())
    finally:
        if process.returncode is None:  # given up: nothing of it stays, not even who waits for it
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return json.loads(said) if process.returncode == 0 else None
