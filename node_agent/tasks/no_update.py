"""How the worker says that an attempt gives no update; no numpy, as its first start has none."""


class NoUpdate(Exception):
    """There will be no update, for this reason; a sentence for the hospital, without values."""
