"""Which delta means something: one below one over the number of patients that are declared.

With delta = 1/n, handing out the whole record of one of n patients, drawn by lot, would keep the
promise; so a delta that large promises nobody anything.
"""

from decimal import ROUND_FLOOR, Context, Decimal


def is_too_large(delta: float, declared_n: int) -> bool:
    """Whether a delta is 1/n or more; the nearest number to 1/n counts as 1/n."""
    return delta >= 1 / declared_n


def bound_said(declared_n: int, *, figure: bool = True) -> str:
    """What delta must be, in words.

    Args:
        figure: say as well what will do, rounded down, so that it is itself allowed. Not where the
            sentence goes on with another delta, which is the one to take.
    """
    if not figure:
        return f"below 1/{declared_n}"
    least = Context(prec=3, rounding=ROUND_FLOOR).divide(Decimal(1), Decimal(declared_n))
    if Decimal(declared_n) * least >= 1:  # a power of ten, say: 1/n is not below itself
        least -= Decimal(1).scaleb(least.adjusted() - 3)
    return f"below 1/{declared_n} ({float(least):g} will do)"
