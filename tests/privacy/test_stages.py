"""What people are told about how far an account has come."""

import pytest

from privacy.filters import make_filter
from privacy.stages import stage_of


@pytest.mark.parametrize(
    ("used", "posted", "running", "stage"),
    [
        (799, 700, 7.99, ""),
        (800, 0, None, "nearly_spent"),
        (0, 0, 8.0, "nearly_spent"),
        (999, 999, 9.99, "nearly_spent"),
        (1000, 999, 9.0, "spent"),
        (900, 900, 9.9903, "spent"),
        (1001, 1000, 9.0, "spent"),
        (1001, 1001, 9.0, "over_limit"),
    ],
)
def test_either_share_counts(used: int, posted: int, running: float | None, stage: str) -> None:
    """Of 1,000 units and epsilon 10; what is only reserved is not above the limit yet."""
    assert stage_of(used, posted, 1000, running, 10.0) == stage


def test_epsilon_reaches_80_percent_before_the_units_do() -> None:
    """In gdp at limit 10: 8.7 of epsilon is less than 80 % of the units, and a warning."""
    budget = make_filter("gdp", 0, 10.0, 1e-5)
    units = budget.limit_units * 78 // 100
    assert budget.epsilon_of(units) > 8.0
    assert stage_of(units, units, budget.limit_units, None, 10.0) == ""
    assert stage_of(units, units, budget.limit_units, budget.epsilon_of(units), 10.0)
