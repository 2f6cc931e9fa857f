"""Which delta means something, and how it is said."""

import re

from hypothesis import given
from hypothesis import strategies as st

from privacy.deltas import bound_said, is_too_large


@given(st.integers(1, 2**53))
def test_the_figure_that_is_said_to_do_does_and_one_over_n_does_not(declared_n: int) -> None:
    """Whoever types what the sentence offers is not refused by it again; 1/n itself always is."""
    said = bound_said(declared_n)
    found = re.fullmatch(rf"below 1/{declared_n} \((\S+) will do\)", said)
    assert found is not None
    assert not is_too_large(float(found[1]), declared_n)
    assert float(found[1]) > 0.98 / declared_n
    assert is_too_large(1 / declared_n, declared_n)
