"""Where a program lies: the file, the Python that it starts, and what links lead to them."""

import re
from pathlib import Path
from typing import Final

LINKS_MAX: Final = 40
"""As the kernel follows."""

_SHEBANG: Final = re.compile(r"#!\s*(/\S+)")
_LONG_SHEBANG: Final = re.compile(r"'''exec' \"?(/[^\"\n]+?)\"? \"\$0\"")
"""What pip writes where the path is too long for the kernel, or holds a space."""


def program_places(command: Path) -> list[Path]:
    """Every path that is passed until a script in Python runs, in this order: the command, what
    its links lead to, the interpreter in its first line, and what that one's links lead to."""
    places = _followed(command)
    try:
        with places[-1].open("rb") as file:
            head = file.read(4096).decode(errors="replace")
    except OSError:
        return places
    found = _SHEBANG.match(head)
    if found and found[1].endswith("/sh"):
        found = _LONG_SHEBANG.search(head) or found
    return places + (_followed(Path(found[1])) if found else [])


def _followed(path: Path) -> list[Path]:
    """A path and what its last part leads to, link by link."""
    places = [path]
    while places[-1].is_symlink() and len(places) < LINKS_MAX:
        last = places[-1]
        places.append(last.parent.resolve() / last.readlink())
    return places
