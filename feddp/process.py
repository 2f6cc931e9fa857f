"""What a process that runs for months does before it imports anything large."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Final

LONG_LIVED: Final = (["agent", "run"], ["coordinator", "serve"])
"""The commands that go on until they are told to stop."""

_INSTEAD: Final = (("_hashlib", "hmac"), ("ssl", "asyncio"), ("rich", "structlog"))
"""(what is not to be loaded, the module that would load it only because it is there)."""


def become_long_lived() -> None:
    """Keep this process small; call it before asyncio, hmac and structlog are imported.

    asyncio and hashlib load a second OpenSSL, and structlog loads rich. gRPC and cryptography
    bring their own OpenSSL and our log lines hold exceptions as text already, so neither is used
    in these processes; together they hold about 9 MiB. Who needs one later can still import it.
    """
    for unwanted, module in _INSTEAD:
        with _absent(unwanted):
            importlib.import_module(module)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import everything inside, without looking for garbage in what is going to stay.

    Modules are never garbage: looking for it took a tenth of the time to load them, and would take
    it again in every later full collection.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let imports of a module fail, unless it is loaded already."""
    if name in sys.modules:
        yield
        return
    # The import system's own sign for a module that is not to be found.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
