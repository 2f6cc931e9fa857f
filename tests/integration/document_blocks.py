"""The shell blocks of a document, which tests run as they stand.

A block says after `sh` how it is run; `not run: REASON` is a block that cannot run here.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """One shell block.

    Attributes:
        section: title of the second level under which it stands.
        how: what stands after `sh`.
    """

    section: str
    how: str
    text: str

    @property
    def reason(self) -> str:
        """Why it is not run; empty if it is."""
        return self.how.partition("not run:")[2].strip()

    @property
    def exit_code(self) -> int:
        """What it should end with: `exit N`, or 0."""
        found = re.search(r"\bexit (\d+)", self.how)
        return int(found[1]) if found else 0

    def lines(self) -> list[str]:
        """Commands, continued lines joined."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip()]


def shell_blocks(text: str) -> list[Block]:
    """Every shell block, in the order of the document."""
    return [
        Block(title.strip(), match[1].strip(), match[2])
        for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]
        for title, _, body in [part.partition("\n")]
        for match in re.finditer(r"^```sh([^\n]*)\n(.*?)^```", body, re.DOTALL | re.MULTILINE)
    ]


def put_in(block: Block, names: dict[str, str]) -> str:
    """The block with its names replaced; a name that stands for nothing is an error."""
    text = re.sub(rf"\b({'|'.join(names)})\b", lambda match: names[match[1]], block.text)
    left = re.findall(r"\b[A-Z]{3,}(?:_[A-Z]+)*\b(?![=:])", re.sub(r"\$\{?\w+", "", text))
    left = [one for one in left if one in block.text and one not in names]
    assert not left, f"{left} stand for nothing here: name them, or say that it is not run"
    return text
