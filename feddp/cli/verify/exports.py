"""An exported ledger, read from its file entry by entry, however large it is."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final

from feddp.cli.ledgers import Ledger, Tampered, entry_of, ledger_of, said
from feddp.cli.output import quoted
from feddp.cli.verify.json_windows import JsonWindow
from feddp.cli.verify.known_fields import EXPORT, WITNESSES, unknown_said
from feddp.cli.verify.witnesses import ACCOUNTS, Witnesses, from_json
from privacy.ledger import Entry
from protos.errors import FeddpError, Malformed, NotFound

VALUE_CHARS_MAX: Final = 1 << 24
"""Of one entry, account, head or checkpoint. All are below 20,000 but the first checkpoint, which
takes some 100 for each account that there is."""

ENTRY_BYTES: Final = 650
"""What an entry takes in a file, about."""

TOLD_EACH: Final = 2000
"""Entries from one report of progress to the next."""

COUNT_MAX: Final = 2**63 - 1
"""A ledger's whole numbers are columns of 64 bits."""

Progress = Callable[[int, float], None]
"""(entries read, share of the file from 0 to 1)."""


@dataclass(frozen=True, slots=True)
class ExportedEntries:
    """The entries of an export, read anew each time they are gone through.

    Raises, while they are: Malformed (EXPORT_INVALID), Tampered.
    """

    path: Path
    progress: Progress

    def __iter__(self) -> Iterator[Entry]:
        number = 0
        with _opened(self.path) as file:
            size = max(1, self.path.stat().st_size)
            window = JsonWindow(file, VALUE_CHARS_MAX)
            for name in window.members():
                if name != "entries":
                    _skip(window, name)
                    continue
                for number, value in enumerate(window.elements(), start=1):
                    if not isinstance(value, dict):
                        raise ValueError("an entry is no object")
                    yield entry_of(value, number)
                    if number % TOLD_EACH == 0:
                        self.progress(number, os.lseek(file.fileno(), 0, os.SEEK_CUR) / size)
            window.end()
        self.progress(number, 1.0)


def from_file(path: Path, progress: Progress = lambda *_: None) -> Ledger:
    """What `budget ledger --json` printed. Its entries are read when they are asked for.

    Exports have the accounts first, so that this is quick. Where the entries come first (those of
    0.1.0, or what other tools wrote), the file is gone through once more.

    Raises:
        NotFound: FILE_MISSING.
        Malformed: FILE_UNREADABLE, EXPORT_INVALID.
        Tampered: an account is not one that was ever printed.
    """
    with _opened(path) as file:
        content = _beside_entries(JsonWindow(file, VALUE_CHARS_MAX))
        bytes_total = path.stat().st_size
    try:
        # An export of 0.1.0 has no witnesses.
        witnesses = from_json(content.get("witnesses", Witnesses("").export()), "the coordinator")
        found = ledger_of(
            ExportedEntries(path, progress),
            bytes_total // ENTRY_BYTES,
            content["accounts"],
            witnesses,
        )
        for account in found.accounts:
            _ = account["account"], account["node"]
            for name, kinds in _ACCOUNT_FIELDS.items():
                if type(account[name]) not in kinds:
                    raise Malformed("EXPORT_INVALID", f"its {name} is of another kind")
            for name, value in account.items():
                if type(value) is int and abs(value) > COUNT_MAX:
                    raise Malformed("EXPORT_INVALID", f"its {quoted(name)} is beyond any ledger's")
    except KeyError as error:
        text = f"{error.args[0]} is missing" if error.args[0] in _NAMES else "a field is missing"
        raise Tampered(ACCOUNTS, 0, f"an account or a witness is not one: {text}") from None
    except (FeddpError, ValueError, TypeError, AttributeError) as error:
        raise Tampered(ACCOUNTS, 0, f"an account or a witness is not one: {said(error)}") from None
    return found


_ACCOUNT_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "entries": (int,),
    "posted_units": (int,),
    "guarantee": (bool,),
    "head_hash": (str,),
    "epsilon_limit": (int, float),
}


_NAMES: Final = frozenset(
    (
        *("account", "node", "filter", "rdp_order", "epsilon_limit_highest", "delta"),
        *("ledger_public_key", "coordinator_ledger_key", "heads", "checkpoints", "seq", "hash"),
        *("node_signature", "number", "prev_hash", "root", "signature", *_ACCOUNT_FIELDS),
        *("restored_at_s", "backup_made_at_s", "checkpoint_number", "checkpoint_hash"),
        *("heads_root", "places", "reconciled"),
    )
)
"""Those that may be told as missing: a file's own text is not printed as if it were ours."""


def _beside_entries(window: JsonWindow) -> dict[str, Any]:
    """The accounts and witnesses; stops before the entries where both stand before them."""
    content: dict[str, Any] = {}
    entries = False
    for name in window.members():
        if name == "entries":
            entries = True
            if content.keys() >= {"accounts", "witnesses"}:
                return content
            _skip(window, name)
        elif name == "accounts":
            content[name] = list(window.elements())
            if not all(isinstance(one, dict) for one in content[name]):
                raise ValueError("an account is no object")
        elif name == "witnesses":
            content[name] = _witnesses(window)
        else:
            _skip(window, name)
    window.end()
    if not entries or "accounts" not in content:
        raise ValueError("there are no entries, or no accounts")
    return content


_LISTS: Final = frozenset({"entries", "accounts", "heads", "checkpoints", "restorations"})


def _witnesses(window: JsonWindow) -> dict[str, Any]:
    found = {
        name: list(window.elements()) if name in _LISTS else window.value()
        for name in window.members()
    }
    if other := next((name for name in found if name not in WITNESSES), None):
        raise Tampered(ACCOUNTS, 0, unknown_said(other, "witnesses"))
    return found


def _skip(window: JsonWindow, name: str) -> None:
    """Pass over a member, none of whose values is long.

    Raises:
        Tampered: no export has one of that name.
    """
    if name not in EXPORT:
        raise Tampered(ACCOUNTS, 0, unknown_said(name, "the export"))
    if name == "witnesses":
        _witnesses(window)
    elif name in _LISTS:
        for _ in window.elements():
            pass
    else:
        window.value()


@contextmanager
def _opened(path: Path) -> Iterator[TextIOWrapper]:
    try:
        with path.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig") as file:
            yield file
    except FileNotFoundError:
        raise NotFound("FILE_MISSING", f"there is no file {path}") from None
    except OSError as error:
        raise Malformed("FILE_UNREADABLE", f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Malformed(
            "EXPORT_INVALID", f"{path} is not what `feddp budget ledger --json` prints"
        ) from None
