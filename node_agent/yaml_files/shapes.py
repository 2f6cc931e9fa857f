"""Texts of one shape in a YAML file, whose fault is told in words and with an example."""

import re
from dataclasses import dataclass
from typing import Final

from pydantic import AfterValidator


@dataclass(frozen=True, slots=True)
class Shape:
    """What a text must be.

    Attributes:
        pattern: of the whole text.
        words: what goes on after "must be".
        example: one that is of this shape.
    """

    pattern: str
    words: str
    example: str

    def __call__(self, value: str) -> str:
        """The text itself.

        Raises:
            ValueError: it has another shape; the message holds the words and no pattern.
        """
        if re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"must be {self.words}")
        return value


def shaped(pattern: str, words: str, example: str) -> AfterValidator:
    """For `Annotated[str, ...]`."""
    return AfterValidator(Shape(pattern, words, example))


NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def name_like(example: str) -> AfterValidator:
    """A name of something of this hospital's."""
    return shaped(
        NAME_PATTERN,
        "a name of 1 to 63 of A-Z, a-z, 0-9, . - _ that begins with a letter or a digit",
        example,
    )


PUBLIC_KEY: Final = shaped(
    "[0-9a-f]{64}",
    "64 of the digits 0-9 and a-f, in quotes, as the command that made the key printed them",
    "0123456789abcdef" * 4,
)
