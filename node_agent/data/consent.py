"""Who is left out: patients without consent, and those on an opt-out list.

Every doubt leaves out: a patient one of whose rows lacks consent, or has more or fewer cells than
the header, is out whole; an id means every id
that differs from it in no more than `spelling` passes over, in the records and on the list; and a
list that cannot be read, or whose lines hold more than an id or a part of one, stops the work.
"""

import itertools
import re
import time
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node_agent.data.datasets import DataSetSpec
from node_agent.sources.problems import DataProblem, WrongHeader, is_plain
from node_agent.sources.source import MISSING, Table, text_of

OPT_OUT_BYTES_MAX: Final = 256 << 20

_MORE_THAN_AN_ID: Final = re.compile(r"[\",;\t|=\u2013\u2014]|(?:\s|^)//|\s#|^#(?:\s|$)|^'|'$")
_CUT: Final = re.compile(r"[+-]?\d+(?:\.\d+)?e\+\d+", re.ASCII)
"""What a spreadsheet makes of a long number: the digits that say who it is are gone."""

_WHOLE: Final = re.compile(r"([+-]?)(?=\d)0*+(\d*+)(?:\.0*+)?", re.ASCII)

_NO_ID: Final = frozenset({"na", "n/a", "nan", "null", "none", "<na>", "#n/a"})
"""What programs write where there is none, by its `spelling`: the rows of all whom it names would
be one patient's."""

_LOOKS_LIKE: Final = str.maketrans(
    {
        **dict.fromkeys("\u02d7\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212", "-"),
        **dict.fromkeys("\u02b9\u02bc\u2018\u2019\u2032", "'"),
        **dict.fromkeys("\u2044\u2215", "/"),
        "\u0131": "i",
    }
)
"""What programs write for a hyphen, an apostrophe and a slash, and Turkish's other i."""

ID_CHARACTERS_MAX: Final = 1000
"""A longer text is no id. To compare spellings takes time that grows faster than their length, and
one patient's id must not decide whether an attempt gives an update."""

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Refusals:
    """Who did not consent.

    Attributes:
        patients: by the `spelling` of their ids.
        unknown: numbers of rows that may withdraw a consent, nobody knows whose.
    """

    patients: frozenset[str] = frozenset()
    unknown: Sequence[int] = ()


def refusals(spec: DataSetSpec, table: Table) -> Refusals:
    """Patients with a row whose consent column holds none of the declared values, or whose cells
    are more or fewer than the header's: where consent stands in it, nobody knows. So are those
    with a line that an open quotation mark may have swallowed.

    A row is of the patient that its cell at the patient column's place names, and of nobody else:
    it changes what is used of that one patient, as clipping demands.
    """
    if spec.consent is None:
        return Refusals()
    agreed = frozenset(spec.consent.values)
    ids, consent = table.columns[spec.patient], table.columns[spec.consent.column]
    rows = zip(table.numbers, ids, map(_spelt, consent), strict=True)
    without = [(number, _named(one), said) for number, one, said in rows if said not in agreed]
    odd = [_named(one) for one in table.in_no_rows.get(spec.patient, ())]
    known = {_named(one) for one in ids} if odd else frozenset[str]()
    unknown = [number for number, name, said in without if not name and said not in MISSING]
    unknown += [
        n for n, name in zip(table.no_rows, odd, strict=True) if not name or name not in known
    ]
    torn = [_named(one) for one in table.in_torn.get(spec.patient, ())]
    named = frozenset([name for _, name, _ in without] + odd + torn)
    return Refusals(named - {""}, sorted(unknown))


def opted_out_of(spec: DataSetSpec) -> frozenset[str]:
    """The ids on the list as it is now, by their `spelling`.

    Raises:
        DataProblem: there is a list and it cannot be read, or a line holds more than an id.
    """
    if spec.opt_out is None:
        return frozenset()
    if not is_plain(spec.opt_out):
        raise DataProblem(f"{spec.opt_out}, the opt-out list, is no plain file")
    try:
        if spec.opt_out.stat().st_size > OPT_OUT_BYTES_MAX:
            raise DataProblem(f"{spec.opt_out} is too long for a list of patients")
        text = spec.opt_out.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataProblem(f"{spec.opt_out}, the opt-out list, cannot be read") from None
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        plain = unicodedata.normalize("NFKC", line[:ID_CHARACTERS_MAX]).strip()
        if (
            len(line) > ID_CHARACTERS_MAX
            or _MORE_THAN_AN_ID.search(plain)
            or _CUT.fullmatch(plain.casefold())
        ):
            raise DataProblem(
                f"line {number} of {spec.opt_out}, the opt-out list, holds more than an id, or a "
                "number that was cut to powers of ten: write one id a line, without quotes, "
                "commas, semicolons, bars, tabs, equals signs, long dashes or remarks"
            )
    return frozenset(map(spelling, lines)) - {""}


def perhaps_listed(listed: Collection[str]) -> frozenset[str]:
    """Ids, by their `spelling`, that a line of the list may mean beside the one that it is: each of
    its words, as it may be numbered, begin with a bullet or be followed by a remark, without the
    brackets, quotes and stops around it."""
    words = itertools.chain.from_iterable(one.split() for one in listed if not one.isalnum())
    return frozenset(map(spelling, map(_bare, words))) - frozenset(listed) - {""}


def _bare(word: str) -> str:
    """Without what is neither letter nor digit at its ends."""
    if word[0].isalnum() and word[-1].isalnum():
        return word
    kept = [at for at, one in enumerate(word) if unicodedata.category(one)[0] in "LMN"]
    return word[kept[0] : kept[-1] + 1] if kept else ""


def spelling(identifier: str) -> str:
    """What two spellings of one id have in common: programs drop zeros before a number and put .0
    after it, compose letters in two ways, write another hyphen, leave invisible characters and
    blanks, and change case. Empty for what is no id: blank, a word for none, longer than an id, or
    a number of which only powers of ten are left."""
    if len(identifier) > ID_CHARACTERS_MAX:
        return ""
    text = identifier.casefold()
    if not (text.isascii() and text.isprintable()):
        # Before composing: an invisible character may stand between a letter and its accent.
        seen = "".join(one for one in identifier if not _is_invisible(one))
        # Taken apart before: a letter with two marks has other parts in capitals than as a whole.
        text = unicodedata.normalize("NFKD", seen).casefold()
        text = unicodedata.normalize("NFKC", text).translate(_LOOKS_LIKE)
        text = "".join(str(int(one)) if one.isdecimal() else one for one in text)
        text = text.replace("i\u0307", "i")
    text = " ".join(text.split())
    number = _WHOLE.fullmatch(text)
    if not number:
        return "" if text in _NO_ID or _CUT.fullmatch(text) else text
    digits = number[2] or "0"
    return f"-{digits}" if number[1] == "-" and digits != "0" else digits


def _is_invisible(one: str) -> bool:
    """Marks of format, controls that are no blank, and what Unicode's Default_Ignorable_Code_Point
    has besides: joiners, fillers, and selectors of variants."""
    category = unicodedata.category(one)
    return category == "Cf" or (category == "Cc" and one not in _BLANK) or one in _IGNORED


_BLANK: Final = "\t\n\x0b\x0c\r\x85"


_IGNORED: Final = frozenset(
    [*map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0))]
    + [chr(one) for one in (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10))]
    + [chr(one) for one in range(0xE0100, 0xE01F0)]
)


def check_opt_out(spec: DataSetSpec) -> None:
    """Look at the list before the data is opened, when the attempt may still be given back.

    Raises:
        WrongHeader: OPT_OUT_UNREADABLE.
    """
    try:
        opted_out_of(spec)
    except DataProblem as problem:
        raise WrongHeader("OPT_OUT_UNREADABLE", str(problem)) from None


def stamp_of(spec: DataSetSpec) -> Stamp:
    """Differs from an earlier one when the records, or the list, may have changed since: who
    withdrew or opted out is in no attempt after that. A database does not tell."""
    if spec.database is not None:
        return ((time.monotonic_ns(), 0, 0),)
    files = [spec.source] if spec.opt_out is None else [spec.source, spec.opt_out]
    return tuple(map(_stamp, files))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino


def _named(cell: object) -> str:
    """Whose row it is, by the `spelling`; empty where it cannot be told. A database may write a
    whole number as 7.0 in one row of many, which training does not read as an id."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    text = text_of(cell)
    return "" if text is None or text in MISSING else spelling(text)


def _spelt(cell: object) -> str:
    """As the steward writes it in YAML; true and false of a typed column read so."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if cell is None or isinstance(cell, int):
        return text_of(cell) or ""
    try:
        return str(cell).strip()
    except ValueError:  # a number of too many digits within
        return ""
