"""Giving memory back: only what the kernel can bring again."""

import subprocess
import sys

from node_agent.footprint import unwritten_code

_MAPPINGS = """\
1000-3000 r-xp 00001000 08:01 42                         /lib/a library.so
Size:                  8 kB
Anonymous:             0 kB
4000-5000 r-xp 00001000 08:01 43                         /lib/relocated.so
Anonymous:             4 kB
5000-6000 r--p 00001000 08:01 43                         /lib/relocated.so
Anonymous:             0 kB
6000-7000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
7000-8000 r-xp 00000000 00:00 0
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
"""


def test_only_files_code_that_was_never_written_is_unmapped() -> None:
    """Not data, not code that a relocation or a debugger changed, not what has no file."""
    assert list(unwritten_code(_MAPPINGS.splitlines())) == [(0x1000, 0x2000)]


def test_a_process_goes_on_with_fewer_pages() -> None:
    """The code that it runs afterwards comes back by itself."""
    code = (
        "import re\n"
        "import cryptography.x509, grpc\n"
        "from node_agent.footprint import forget_code, trim_heaps\n"
        "def code_kib():\n"
        "    text = open('/proc/self/status').read()\n"
        "    return int(re.search(r'RssFile:\\s+(\\d+)', text)[1])\n"
        "before = code_kib()\n"
        "forget_code()\n"
        "trim_heaps()\n"
        "after = code_kib()\n"
        "grpc.insecure_channel('127.0.0.1:1').close()\n"
        "print(before - after)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 4 << 10
