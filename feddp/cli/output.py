"""What commands print: JSON for programs, tables and lines for people, errors on stderr."""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.message import Message


def as_dict(message: "Message") -> dict[str, Any]:
    """A wire message as JSON knows it: every field, None for an unset optional, bytes as hex."""
    return {
        field.name: (
            None
            if field.has_presence and not message.HasField(field.name)
            else _value(getattr(message, field.name), field.is_repeated)
        )
        for field in message.DESCRIPTOR.fields
    }


def _value(value: Any, repeated: bool) -> Any:
    if repeated:
        return [_value(one, False) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return as_dict(value) if hasattr(value, "DESCRIPTOR") else value


def print_json(value: object, *, one_line: bool = False) -> None:
    """One JSON value on stdout."""
    text = json.dumps(value, allow_nan=False, indent=None if one_line else 2)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def line(text: str) -> None:
    """One line on stdout, and one alone: what stands in a name begins no other."""
    sys.stdout.write(f"{_one_line(text)}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """For people on stderr, so that stdout holds the answer only. May be several lines of ours."""
    sys.stderr.write(f"{clean(text)}\n")
    sys.stderr.flush()


def counted(count: int, what: str) -> str:
    """A number of things: "1 post", "2 posts", "2 entries"."""
    many = f"{what.removesuffix('y')}ies" if what.endswith("y") else f"{what}s"
    return f"{count} {what if count == 1 else many}"


QUOTED_MAX: Final = 60


def quoted(value: object) -> str:
    """A file's own value within a sentence of ours: escaped, and no longer than QUOTED_MAX."""
    text = ascii(value)
    return text if len(text) <= QUOTED_MAX else f"{text[:QUOTED_MAX]}…"


def clean(text: str) -> str:
    """Text without characters that could steer a terminal: names come from other machines."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _one_line(text: str) -> str:
    return clean(text).replace("\n", "?")


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; without frames and never wrapped when stdout is a pipe."""
    from rich import box
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else 1000, highlight=False)
    console.print(rich_table(headers, rows, frame=box.SIMPLE_HEAD if terminal else None))


def rich_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, frame: Any = None) -> Any:
    """The same as a value for rich; cells are text, never markup."""
    from rich.table import Table
    from rich.text import Text

    found = Table(box=frame, show_edge=False, pad_edge=False, header_style="bold")
    for header in headers:
        found.add_column(header, overflow="fold")
    for row in rows:
        found.add_row(*(Text(_one_line(cell)) for cell in row))
    return found


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values on stdout, one a line."""
    found = list(pairs)
    width = max((len(name) for name, _ in found), default=0)
    for name, value in found:
        line(f"{name:<{width}}  {value}")


def moment(epoch_s: float) -> str:
    """Seconds since the epoch as UTC text; "never" for 0."""
    if epoch_s <= 0:
        return "never"
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def epsilon(value: float | None, digits: int = 4) -> str:
    """An epsilon, never shown smaller than it is; "none" where there is no guarantee."""
    if value is None:
        return "none"
    if not math.isfinite(value):
        return "unbounded"
    step = Decimal(1).scaleb(-digits)
    text = f"{Decimal(repr(value)).quantize(step, ROUND_CEILING):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def at_most(value: float, digits: int = 3) -> str:
    """A number that is never shown smaller than it is, to so many digits."""
    return _shortened(value, digits, ROUND_CEILING)


def noise(noise_multiplier: float | None, without: str = "") -> str:
    """A noise multiplier, never shown larger than it is: to the 1e-6 that plans have, below 10."""
    return without if noise_multiplier is None else _shortened(noise_multiplier, 7, ROUND_FLOOR)


def _shortened(value: float, digits: int, rounding: str) -> str:
    short = Context(digits, rounding).plus(Decimal(repr(value)))
    if not 1e-4 <= value < 1e15:
        return f"{float(short):.{digits}g}"
    text = f"{short:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def bytes_text(count: int) -> str:
    """A size for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
