"""Which delta means something: one below one over the number of patients that are declared.

With delta = 1/n, handing out the whole record of one of n patients, drawn by lot, would keep the
promise; so a delta that large promises nobody anything.
"""

from decimal import ROUND_FLOOR, Context, Decimal


def is_too_large(delta: float, declared_n: int) -> bool:
    """Whether a delta is 1/n or more; the nearest number to 1/n counts as 1/n."""
    return delta >= 1 / declared_n


def bound_said(declared_n: int) -> str:
    """What delta must be, in words; the figure is rounded down, so that it is itself allowed."""
    figure = Context(prec=3, rounding=ROUND_FLOOR).divide(Decimal(1), Decimal(declared_n))
    if Decimal(declared_n) * figure >= 1:  # a power of ten, say: 1/n is not below itself
        figure -= Decimal(1).scaleb(figure.adjusted() - 3)
    return f"below 1/{declared_n} ({float(figure):g} will do)"
